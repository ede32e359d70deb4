"""TensorRT's target and what a plan is built with, on a machine without a GPU and on one that pretends to have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.targets import onnx as onnx_target
from ingot.exporters.targets import tensorrt as target
from ingot.runtimes.engines import _tensorrt_options as options
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

from .conftest import Tiny
from .tensorrt_machine import H100, Machine, install

__all__ = ["install"]  # a fixture


# --- options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 3}, "unknown TensorRT build option 'speed'; available: hardware_compatibility"),
        ({"optimization_level": 6}, "optimization_level=6 is not one of 0 to 5"),
        ({"hardware_compatibility": "hopper"}, "'hopper' is not one of none, ampere_plus"),
        ({"workspace": "8 GB"}, "workspace='8 GB' is not a number of bytes"),
        ({"refit": 1, "tf32": "no"}, "tf32='no' is neither true nor false; refit=1 is neither"),
        ({"sizes": 512}, "sizes=512 is not a mapping"),
        ({"sizes": {"height": [512, 256, 1024]}}, r"height=\[512, 256, 1024\] is not \[min, opt, max\]"),
        ({"sizes": {"height": [512, 1024]}}, "height="),
        ({"sizes": {"height": [True, True, True]}}, "height="),
        ({"sizes": {"height": "512"}}, "height='512'"),
        ({"sizes": {"batch": 0}}, "batch=0"),
    ],
)
def test_build_options_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options.build_options(given)


def test_dimensions_become_numbers() -> None:
    sizes = {"batch": 3, "height": 500, "width": 64}
    dims = {"batch": 3, "2*batch": 6, "height/8": 63, "height*width/64": 500, "3*height/8": 188, 77: 77}
    assert {dim: options.evaluate(dim, sizes) for dim in dims} == dims
    spec = TensorSpec("x", "float32", ("batch", "size_77_154", "height*width/64", 4))
    signature = Signature((spec,), ())
    assert options.names(signature) == ["batch", "size_77_154", "height", "width"]
    shapes = options.profile(signature, {"height": (64, 64, 64), "width": (64, 64, 128)})["x"]
    assert shapes == ((1, 77, 64, 4), (2, 154, 64, 4), (8, 154, 128, 4))
    with pytest.raises(InputError, match=r"a dimension 'frames'; sizes must say"):
        options.profile(Signature((TensorSpec("x", "float32", ("frames",)),), ()), {})


def test_a_misspelt_size_is_refused_and_another_graphs_is_not() -> None:
    words = Signature((TensorSpec("input_ids", "int64", ("batch", 77)),), ())
    sizes = dict.fromkeys(("batch", "height", "width", "size_77_154"), (1, 2, 3))
    assert options.profile(words, sizes) == {"input_ids": ((1, 77), (2, 77), (3, 77))}
    frames = Signature((TensorSpec("x", "float32", ("frames",)),), ())
    assert options.profile(frames, {"frames": (1, 2, 3)}) == {"x": ((1,), (2,), (3,))}
    with pytest.raises(InputError, match=r"^unknown size 'heigth'; available: batch, height, width$"):
        options.profile(words, {"heigth": (1, 2, 3)})
    with pytest.raises(InputError, match=r"^unknown size 'frame'; available: batch, frames, height, width$"):
        options.profile(frames, {"frame": (1, 2, 3), "frames": (1, 2, 3)})


def test_recorded_sizes_are_read_back_and_held() -> None:
    spec = TensorSpec("x", "float32", ("batch", "height/8", "height*width/64"))
    seen = options.seen(Signature((spec,), ()), [{"x": (2, 4, 32)}, {"x": (3, 8, 128)}])
    assert seen == {"batch": (2, 3), "height": (32, 64)}
    wide = options.widened({"batch": (1, 1, 1), "height": (512, 512, 512), "width": (8, 8, 8)}, seen)
    assert wide == {"batch": (1, 1, 3), "height": (32, 512, 512), "width": (8, 8, 8)}


def test_examples_in_the_docstrings() -> None:
    import doctest

    assert doctest.testmod(options).attempted > 0
    assert doctest.testmod(options).failed == 0


# --- the target ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_encoder(tiny_sd: Tiny) -> Any:
    return next(component for component in capture(tiny_sd.pipe) if component.role == "text_encoder")


@pytest.fixture(autouse=True, scope="module")
def _written_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The ONNX graph of the text encoder, which most tests of the target write: seconds, the same each time."""
    honest, made = onnx_target.export, {}

    def export(component: Any, folder: Path, **given: Any) -> Any:
        key = (component.role, *(given[name] for name in ("dtype", "static", "opset", "name")))
        if key not in made:
            made[key] = honest(component, tmp_path_factory.mktemp("written") / component.role, **given)
        folder.mkdir(parents=True, exist_ok=True)
        return replace(made[key], path=Path(shutil.copy(made[key].path, folder)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_target, "export", export)
        yield


def test_without_a_gpu_the_graph_is_written_and_checked_on_the_cpu(text_encoder: Any, tmp_path: Path) -> None:
    written = target.export(text_encoder, tmp_path / "text_encoder", dtype="float32")
    assert written.path.name == "tensorrt.onnx"
    assert written.extra_files == ()
    assert written.stored["build"]["sizes"] == {"batch": [1, 2, 8]}
    assert "plan" not in written.stored
    assert json.loads(json.dumps(written.stored)) == written.stored
    opened = target.open_for_parity(written.path, written.signature, written.stored)
    # torch and ONNX Runtime add in different orders: 1e-6 here
    certificate = parity.check(text_encoder, opened.run, "float32", signature=written.signature)
    assert certificate.rel_l2 < 1e-5
    with pytest.raises(ExportError, match=r"plan=true: .*tensorrt"):
        target.export(text_encoder, tmp_path / "other", dtype="float32", plan=True)


def test_with_a_gpu_the_plan_is_built_and_held_against_the_model(
    install: Callable[..., Machine], text_encoder: Any, tmp_path: Path
) -> None:
    machine = install(H100)
    written = target.export(
        text_encoder, tmp_path / "text_encoder", dtype="float32", sizes={"batch": [4, 4, 6]}, version_compatible=True
    )
    assert [file.name for file in written.extra_files] == ["model.plan"]
    assert written.stored["plan"] == "model.plan"
    assert written.stored["gpu"] == H100[0]
    assert machine.trt.built[0]["profile"] == {"input_ids": [[1, 77], [4, 77], [6, 77]]}  # widened to the recordings
    opened = target.open_for_parity(written.path, written.signature, written.stored)
    assert parity.check(text_encoder, opened.run, "float32", signature=written.signature).rel_l2 < 1e-5
    assert "cudaMemcpyAsync" in machine.cuda.calls
    elsewhere = {**written.stored, "gpu": "NVIDIA H200"}
    with pytest.raises(EngineError, match="was built for the GPU NVIDIA H200"):
        target.open_for_parity(written.path, written.signature, elsewhere)
    machine.cuda.gpus = ()  # another machine, without any
    opened = target.open_for_parity(written.path, written.signature, elsewhere)
    assert parity.check(text_encoder, opened.run, "float32", signature=written.signature).rel_l2 < 1e-5
    machine.cuda.gpus = (H100,)
    machine.trt.settings["build"] = False
    with pytest.raises(ExportError, match="cannot build a plan"):
        target.export(text_encoder, tmp_path / "other", dtype="float32")
    assert not (tmp_path / "other" / "model.plan").exists()
    target.export(text_encoder, tmp_path / "third", dtype="float32", plan=False)


def test_options_are_refused_before_anything_is_written(text_encoder: Any, tmp_path: Path) -> None:
    for given, message in (
        ({"sizes": {"batch": [2, 1, 1]}}, "batch"),
        ({"sizes": {"heigth": 512}}, "unknown size 'heigth'; available: batch, height, width"),
        ({"sizes": {"heigth": 512}, "static": True}, "unknown size 'heigth'"),
        ({"hardware_compatibility": "all"}, "hardware_compatibility='all'"),
        ({"optimization_level": "fast"}, "optimization_level='fast'"),
    ):
        with pytest.raises(InputError, match=message):
            target.export(text_encoder, tmp_path / "none", dtype="float32", **given)
    assert not (tmp_path / "none").exists()


def test_sizes_follow_the_model(tiny_sd: Tiny) -> None:
    """The tiny pipeline works on latents of 16x16, half of the pixels, and its VAE was made for 32x32."""
    sizes = {
        component.role: target._sizes(component, options.build_options({}), False)
        for component in capture(tiny_sd.pipe)
    }
    assert sizes["text_encoder"] == {"batch": (1, 2, 8)}
    assert sizes["unet"] == {"batch": (1, 2, 8), "height": (8, 32, 48), "width": (16, 32, 48)}
    assert sizes["vae_decoder"]["batch"][1:] == (1, 2)  # one picture, but two were recorded
    assert sizes["vae_decoder"]["height"] == (8, 32, 48)


def test_the_benchmark_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ingot.benchmarks import verify_tensorrt

    def absent(_: str) -> None:
        raise EngineError("the engine tensorrt needs tensorrt")

    monkeypatch.setattr(verify_tensorrt, "engine", absent)
    monkeypatch.setattr(verify_tensorrt.shutil, "which", lambda _: None)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert verify_tensorrt.main([]) == 1
    said = capsys.readouterr().out
    assert said == (
        "nothing was measured: there is no NVIDIA GPU with a driver here; the engine tensorrt needs tensorrt\n"
    )
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(verify_tensorrt, "engine", lambda _: SimpleNamespace(devices=list))
    assert verify_tensorrt.absent() == "CUDA shows no NVIDIA GPU here"
