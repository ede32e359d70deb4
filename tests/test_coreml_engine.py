"""The Core ML engine: its checks as they run anywhere, its predictions with the evaluator in Core ML's place."""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

import ingot
from ingot.cli import main
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.coreml_chunks import split_package
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.mil import open_package, package
from ingot.exporters.targets import coreml as target
from ingot.runtimes.engines import coreml as engine
from ingot.runtimes.engines._coreml import Feature, stored_packages
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.metrics import compare
from ingot.runtimes.signature import Signature, TensorSpec

from . import tiny
from .test_safety import checker, processor

FLOAT16 = 4e-3  # relative L2; 1.2e-3 measured


@pytest.fixture(scope="module")
def encoder(tiny_sd: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, GraphFile]:
    """A VAE encoder in half precision, in two packages."""
    component = next(part for part in capture(tiny_sd.pipe) if part.role == "vae_encoder")
    folder = tmp_path_factory.mktemp("graph")
    graph = target.export(component, folder, dtype="float16", static=True, compute_units="cpu_and_gpu")
    halves = ("First.mlpackage", "Second.mlpackage")
    split_package(graph.path.parent, [folder / name for name in halves])
    return component, replace(
        graph, path=folder / halves[0] / "Manifest.json", stored={**graph.stored, "packages": halves}
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Core ML's place taken by the evaluator, at the one call that opens a package; returns the units asked for."""
    asked: list[str] = []

    class Model:
        def __init__(self, path: Path) -> None:
            self.program = open_package(path)
            self.threads = 0

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            assert set(inputs) == {port.name for port in self.program.inputs}
            assert all(array.dtype == port.dtype for port in self.program.inputs for array in [inputs[port.name]])
            self.threads += 1
            assert self.threads == 1  # Core ML: a model on one thread at a time
            found = self.program.run(inputs)
            self.threads -= 1
            inputs.clear()  # coremltools changes what it is given
            return found

    def load(path: Path, units: str) -> Model:
        asked.append(units)
        return Model(path)

    monkeypatch.setattr(engine, "_load", load)
    monkeypatch.setattr(engine, "_can_predict", lambda: True)
    return asked


def test_it_runs_packages_behind_each_other(encoder: tuple[Component, GraphFile], stand_in: list[str]) -> None:
    component, graph = encoder
    opened = engine.open_graph(graph.path, graph.signature, stored=graph.stored)
    assert stand_in == ["CPU_AND_GPU"] * 2  # as the export chose
    call = component.calls[0]
    inputs = {name: tensor.numpy() for name, tensor in call.inputs.items()}  # float32: cast to what the package takes
    found = opened.run(inputs)
    assert compare(call.outputs["latent_parameters"].numpy(), found["latent_parameters"]).rel_l2 < FLOAT16
    found["latent_parameters"][:] = 0  # a caller may write into what it got
    results: list[Any] = [None] * 3

    def run(index: int) -> None:
        results[index] = opened.run(inputs)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = results[0]["latent_parameters"]
    assert first.any()
    assert all(np.array_equal(result["latent_parameters"], first) for result in results)
    for wrong, message in (
        ({}, "missing input 'sample'"),
        ({"sample": inputs["sample"][:, :1]}, "'sample' has shape"),
        ({"sample": inputs["sample"].astype(np.int64)}, "'sample' is int64, not float16"),
        (inputs | {"other": np.zeros(1)}, "unknown input 'other'"),
    ):
        with pytest.raises(InputError, match=message):
            opened.run(wrong)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="was closed"):
        opened.run(inputs)


def test_devices_are_compute_units(encoder: tuple[Component, GraphFile], stand_in: list[str]) -> None:
    _, graph = encoder
    for given in ({"device": "gpu"}, {"device": "cpu"}, {"compute_units": "cpu_and_ne"}, {"device": "all"}):
        engine.open_graph(graph.path, graph.signature, stored=graph.stored, **given)
    assert stand_in[::2] == ["CPU_AND_GPU", "CPU_ONLY", "CPU_AND_NE", "ALL"]
    assert engine.devices() == ["all", "ne", "gpu", "cpu"]
    for wrong, message in (
        ({"device": "tpu"}, "unknown device for Core ML 'tpu'; available: all, cpu, gpu, ne"),
        ({"compute_units": "NPU"}, "unknown compute_units 'NPU'; available: ALL, CPU_AND_GPU, CPU_AND_NE, CPU_ONLY"),
        ({"device": "cpu", "compute_units": "ALL"}, "say the same thing"),
    ):
        with pytest.raises(InputError, match=message):
            engine.open_graph(graph.path, graph.signature, stored=graph.stored, **wrong)


@pytest.mark.usefixtures("stand_in")
def test_a_failure_of_core_ml_is_an_engine_error(
    encoder: tuple[Component, GraphFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, graph = encoder

    class Broken:
        def predict(self, _: Any) -> None:
            raise RuntimeError("error code: -1")

    monkeypatch.setattr(engine, "_load", lambda *_: Broken())
    opened = engine.open_graph(graph.path, graph.signature, stored=graph.stored)
    with pytest.raises(EngineError, match=r"could not run First.mlpackage on \{'x': \[1, 3, 8, 32\]\}: error code: -1"):
        opened.run({"sample": np.zeros((1, 3, 8, 32), np.float32)})

    def refuse(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(engine, "_load", refuse)
    with pytest.raises(EngineError, match=r"Core ML cannot open First.mlpackage: no such operation"):
        engine.open_graph(graph.path, graph.signature, stored=graph.stored)


@pytest.mark.skipif(sys.platform == "darwin", reason="predictions work on macOS")
def test_off_macos_a_package_is_checked_and_not_run(encoder: tuple[Component, GraphFile]) -> None:
    _, graph = encoder
    assert engine.devices() == []
    assert "need macOS" in engine.report()["devices"]
    with pytest.raises(
        EngineError, match=rf"on macOS only, and this is {sys.platform}.*`ingot verify --deep` computes First"
    ):
        engine.open_graph(graph.path, graph.signature, stored=graph.stored)


def test_a_package_that_is_another_one_is_refused(encoder: tuple[Component, GraphFile], tmp_path: Path) -> None:
    _, graph = encoder

    def refused(message: str, signature: Signature = graph.signature, **changed: Any) -> None:
        with pytest.raises(EngineError, match=message):
            engine.open_graph(graph.path, signature, stored={**graph.stored, **changed})

    (source,), (result,) = graph.signature.inputs, graph.signature.outputs
    other = Signature((TensorSpec("sample", "float16", (1, 3, 8, 8)),), (result,))
    refused(r"First.mlpackage is not the package .*: 'x' has shape \[1, 3, 8, 32\], not \[1, 3, 8, 8\]$", other)
    other = Signature((source,), (TensorSpec(result.name, "float16", (1, 8, 4, 15)),))
    refused(r"'latent' is float32, not float16; 'latent' has shape \[1, 8, 4, 16\], not \[1, 8, 4, 15\]", other)
    refused("unknown input 'x'; no input for 'sample'", inputs={"sample": Feature("y", "float16", "same")})
    refused("no output for 'latent_parameters'", outputs={})
    refused("Nothing.mlpackage is not a Core ML package", packages=["Nothing.mlpackage"])
    with pytest.raises(EngineError, match="not those of a Core ML graph: Object missing required field `packages`"):
        engine.open_graph(graph.path, graph.signature)
    broken = shutil.copytree(graph.path.parent, tmp_path / "First.mlpackage")
    (broken / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"\xff" * 9)
    with pytest.raises(EngineError, match="is not a Core ML package"):
        engine.open_graph(
            broken / "Manifest.json", graph.signature, stored={**graph.stored, "packages": ["First.mlpackage"]}
        )


@pytest.mark.parametrize(
    "name",
    [
        "/etc", "/etc/Unet.mlpackage", "../../../outside.mlpackage", "..", ".mlpackage", ".hidden.mlpackage", "",
        "Unet.mlpackage/../..", "sub/Unet.mlpackage", "sub\\Unet.mlpackage", "Unet.mlpackage\n", "-r.mlpackage",
        "Unet", "Unet.mlmodelc", "a b.mlpackage", "$(id).mlpackage", "Ünet.mlpackage", "Un.et.mlpackage",
    ],
)  # fmt: skip
def test_a_package_lies_beside_the_others_or_nowhere(encoder: tuple[Component, GraphFile], name: str) -> None:
    _, graph = encoder
    stored = {**graph.stored, "packages": ["First.mlpackage", name]}
    for opening in (
        lambda: engine.open_graph(graph.path, graph.signature, stored=stored),
        lambda: target.open_for_parity(graph.path, graph.signature, stored),
    ):
        with pytest.raises(EngineError) as caught:
            opening()
        assert str(caught.value).startswith(f"{name!r}: no name of a Core ML package in a bundle")


def test_a_graph_has_packages(encoder: tuple[Component, GraphFile]) -> None:
    _, graph = encoder
    assert stored_packages({**graph.stored, "packages": ["Unet_2-a.mlpackage"]}).packages == ("Unet_2-a.mlpackage",)
    with pytest.raises(EngineError, match="they name no packages"):
        engine.open_graph(graph.path, graph.signature, stored={**graph.stored, "packages": []})


def test_the_evaluator_alone_warns_of_nothing() -> None:
    """coremltools says eight times, while it is imported, that Apple's libraries are not here: the filter comes first."""
    tree = ast.parse(inspect.getsource(package))
    imported = [
        f"{node.module}.{name.name}" for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    ]
    toolchain = next(index for index, name in enumerate(imported) if name.startswith("coremltools"))
    assert imported.index("ingot.runtimes.engines._coreml_import") < toolchain


def test_layouts() -> None:
    words = np.arange(24.0).reshape(2, 3, 4)
    moved = Feature("encoder_hidden_states", "float16", "channels_first")
    assert moved.shape(("batch", 77, 768), "batch") == ("batch", 768, 1, 77)
    array = moved.array(words, 2)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == ((2, 4, 1, 3), np.float16, True)
    assert array[1, 2, 0, 0] == words[1, 0, 2]
    rows = Feature("timestep", "float32", "rows")
    assert rows.shape((), 2) == (2,)
    np.testing.assert_array_equal(rows.array(np.float32(7.5), 3), np.full(3, 7.5, np.float32))
    np.testing.assert_array_equal(Feature("scale", "float32", "one").array(np.float32(0.75), 3), np.float32([0.75]))
    assert Feature("input_ids", "float32", "same").array(np.array([[49407]]), 1)[0, 0] == 49407


def test_a_picture_can_be_had_without_the_bundles_safety_checker(
    tmp_path: Path, stand_in: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Exported for real, with a checker that flags everything: `ingot generate` with and without it."""
    parts = tiny.sd(tmp_path / "parts").components | {"safety_checker": checker(), "feature_extractor": processor()}
    parts["safety_checker"].concept_embeds_weights.data.fill_(-2.0)  # every cosine is above
    bundle = ingot.export(
        StableDiffusionPipeline(**parts), tmp_path / "bundle", to="coreml", dtype="float32", height=16, width=16, static=True,
        options={"coreml": {"attention": "original"}}, progress=False,
    )  # fmt: skip
    assert {"SafetyScores", "SafetyChecker"} == {
        package.stem for package in (bundle / "safety_checker").glob("*.mlpackage")
    }
    call = ["generate", str(bundle), "a cat", "--engine", "coreml", "--steps", "1", "--quiet", "--grid", "-o"]
    opened = []
    for options, black in (([], True), (["--no-safety-checker"], False)):
        stand_in.clear()
        assert main([*call, str(tmp_path / f"{black}.png"), *options]) == 0
        opened.append(len(stand_in))
        with Image.open(tmp_path / f"{black}.png") as picture:
            assert (np.asarray(picture).max() == 0) == black
    assert caplog.text.count("flagged 1 of 1 pictures") == 1
    assert opened[0] == opened[1] + 1  # the checker's package alone
