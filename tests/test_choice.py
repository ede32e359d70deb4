"""Which engine and device a bundle is run with, when the caller says all, something or nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import ingot
from ingot import Bundle, EngineError, InputError
from ingot.runtimes import choice, engines
from ingot.runtimes.choice import choose, pick
from ingot.runtimes.manifest import Quantization, Timing

ROLES = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each engine finds on a machine that the test makes up; engines that are not in it are not installed."""
    devices: dict[str, list[str]] = {}

    def engine(name: str) -> Any:
        if name not in devices:
            raise EngineError(f"the engine {name} needs {name}, which is not installed")
        return SimpleNamespace(devices=lambda: devices[name])

    monkeypatch.setattr(choice, "engine", engine)
    monkeypatch.setattr(
        choice, "_plausible", lambda device: device != "cuda" or any("cuda" in d for d in devices.values())
    )
    return devices


def bundle_of(path: Path, *engines: str) -> Bundle:
    """The bundle as if every graph in it were there for each of these engines."""
    bundle = Bundle.open(path)
    components = {
        role: msgspec.structs.replace(
            entry, graphs=tuple(msgspec.structs.replace(entry.graphs[0], engine=name) for name in engines)
        )
        for role, entry in bundle.manifest.components.items()
    }
    return Bundle(path, msgspec.structs.replace(bundle.manifest, components=components))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ({"onnx": ["cpu"], "openvino": ["cpu"], "torch": ["cpu"]}, ("openvino", "cpu")),
        ({"onnx": ["cpu"], "torch": ["cpu"]}, ("onnx", "cpu")),
        ({"onnx": ["cuda", "cpu"], "openvino": ["cpu"], "torch": ["cuda", "cpu"]}, ("onnx", "cuda")),
        ({"onnx": ["cpu"], "openvino": ["cpu"], "torch": ["cuda", "cpu"]}, ("torch", "cuda")),
        ({"onnx": ["cpu"], "tensorrt": ["cuda"], "torch": ["cuda", "cpu"]}, ("tensorrt", "cuda")),
        ({"onnx": ["cpu"], "coreml": ["all"], "torch": ["mps", "cpu"]}, ("coreml", "all")),
        ({"onnx": ["cpu"], "openvino": ["cpu"], "torch": ["mps", "cpu"]}, ("torch", "mps")),
        ({"torch": ["hpu", "cpu"], "onnx": ["cpu"]}, ("torch", "hpu")),
    ],
)
def test_the_machine_decides_when_nothing_is_said(
    tiny_bundle: Path, machine: dict[str, list[str]], devices: dict[str, list[str]], expected: tuple[str, str]
) -> None:
    machine.update(devices)
    chosen = choose(bundle_of(tiny_bundle, "onnx", "openvino", "torch", "coreml", "tensorrt"), ROLES)
    assert (chosen.engine, chosen.device) == expected
    assert "first of onnx, openvino, torch, coreml, tensorrt" in chosen.reason


def test_what_was_passed_over_is_told(tiny_bundle: Path, machine: dict[str, list[str]]) -> None:
    machine["onnx"] = ["cpu"]
    chosen = choose(bundle_of(tiny_bundle, "onnx", "openvino"), ROLES)
    assert str(chosen) == (
        "onnx on cpu (onnx on cuda: not on this machine; "
        "openvino on cpu: the engine openvino needs openvino, which is not installed; first of onnx, openvino)"
    )


def test_a_named_engine_is_taken_on_its_best_device(tiny_bundle: Path, machine: dict[str, list[str]]) -> None:
    machine.update(onnx=["cpu"], torch=["mps", "cpu"])
    chosen = choose(bundle_of(tiny_bundle, "onnx", "torch"), ROLES, "torch")
    assert (chosen.engine, chosen.device) == ("torch", "mps")


def test_a_named_device_finds_its_engine(tiny_bundle: Path, machine: dict[str, list[str]]) -> None:
    machine.update(onnx=["cuda", "cpu"], torch=["cuda", "cpu"], openvino=["gpu.0", "gpu.1", "npu", "cpu"])
    bundle = bundle_of(tiny_bundle, "torch", "onnx", "openvino")
    for device, expected in (
        ("cpu", "openvino"),
        ("cuda:1", "onnx"),
        ("npu", "openvino"),
        ("gpu.1", "openvino"),
        ("gpu", "openvino"),
    ):
        chosen = choose(bundle, ROLES, device=device)
        assert (chosen.engine, chosen.device) == (expected, device)


def test_a_device_that_nothing_has_is_answered_with_those_that_exist(
    tiny_bundle: Path, machine: dict[str, list[str]]
) -> None:
    machine.update(onnx=["cpu"], openvino=["cpu", "gpu"])
    with pytest.raises(InputError, match=r"has the device 'npu' here; devices: onnx cpu; openvino cpu, gpu"):
        choose(bundle_of(tiny_bundle, "onnx", "openvino"), ROLES, device="npu")


def test_an_engine_that_the_bundle_lacks_is_answered_with_what_it_has(tiny_bundle: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"has no graphs for torch; it has: onnx float32 for onnxruntime, onnx float32. `ingot add .* --to torch`",
    ):
        ingot.load(tiny_bundle, engine="torch")
    with pytest.raises(InputError, match=r"unknown engine 'onx'; available: coreml, onnx, openvino, tensorrt, torch"):
        ingot.load(tiny_bundle, engine="onx")
    with pytest.raises(InputError, match=r"has no graphs for onnx float16; it has: onnx float32"):
        ingot.load(tiny_bundle, engine="onnx", precision="float16")


def test_nothing_that_runs_it_is_an_error_with_every_reason(tiny_bundle: Path, machine: dict[str, list[str]]) -> None:
    machine["coreml"] = []
    with pytest.raises(EngineError, match=r"nothing here runs .*coreml on all: .*openvino on cpu: .*not installed"):
        choose(bundle_of(tiny_bundle, "coreml", "openvino"), ROLES)


def test_load_says_what_it_picked(tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ingot"), ingot.load(tiny_bundle) as pipe:
        assert (pipe.choice.engine, pipe.choice.device) == ("onnx", "cpu")
    assert "onnx on cpu (" in caplog.text
    with pytest.raises(EngineError, match="closed"):
        pipe("a cat", num_inference_steps=1, height=64, width=64, progress=False)


def test_an_option_that_the_engine_lacks_is_answered_with_those_it_has(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"unknown option for the engine onnx 'thread'; available: .*threads"):
        ingot.load(tiny_bundle, thread=2)


def test_a_device_that_is_named_is_not_lost_beside_other_options(tiny_bundle: Path) -> None:
    import onnxruntime

    with pytest.raises(InputError, match="unknown device 'abacus'"):
        ingot.load(tiny_bundle, device="abacus", session_options=onnxruntime.SessionOptions())


def test_an_option_of_the_wrong_kind_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"option of the engine onnx: threads='2': Expected `int \| null`, got `str`"):
        ingot.load(tiny_bundle, threads="2")


def test_a_toolchain_that_does_not_load_is_an_error_of_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Any:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr("ingot.runtimes.engines.importlib.import_module", broken)
    with pytest.raises(EngineError, match=r"openvino is installed but cannot be loaded: libopenvino\.so"):
        engines.engine("openvino")


def test_a_graph_for_certain_devices_is_not_picked_for_others(tiny_bundle: Path) -> None:
    """The form with ONNX Runtime's own operators runs on its CPU and CUDA; other providers get the portable one."""
    opened = Bundle.open(tiny_bundle)
    forms = {
        device: pick(opened, ["unet"], "onnx", device=device)["unet"].form
        for device in ("cpu", "cuda:0", "tensorrt", None)
    }
    assert forms == {"cpu": "onnxruntime", "cuda:0": "onnxruntime", "tensorrt": "", None: "onnxruntime"}
    assert pick(opened, ["unet"], "onnx", form="")["unet"].form == ""
    with ingot.load(tiny_bundle, providers=["CPUExecutionProvider"]) as pipe:
        assert pipe.choice.engine == "onnx"
    with ingot.load(tiny_bundle, form="") as portable, ingot.load(tiny_bundle) as tuned:
        call = {"seed": 0, "num_inference_steps": 2, "output_type": "np", "progress": False}
        assert (
            np.abs(portable("a", **call).images - tuned("a", **call).images).max() < 1e-4
        )  # rounding in another order


def test_a_quantized_graph_is_the_default_only_where_it_was_measured_to_be_faster(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    entry = bundle.component("unet")
    recipe = Quantization(
        asked="auto", scheme="int8-dynamic", source="float32", fingerprint="", layers=1, keep=(), options={}, calibration=None,
        sqnr_db=30.0, timing=Timing(seconds=1.0, float_seconds=2.0, machine="a processor"),
    )  # fmt: skip
    fast = msgspec.structs.replace(entry.graphs[0], precision="int8-dynamic", quantization=recipe)
    untimed = msgspec.structs.replace(fast, quantization=msgspec.structs.replace(recipe, timing=None))

    def default(first: Any, device: str | None) -> str:
        changed = msgspec.structs.replace(entry, graphs=(first, *entry.graphs))
        components = {**bundle.manifest.components, "unet": changed}
        opened = Bundle(tiny_bundle, msgspec.structs.replace(bundle.manifest, components=components))
        return opened.graph("unet", "onnx", device=device).precision

    assert default(fast, None) == default(fast, "cpu") == "int8-dynamic"
    assert default(fast, "cuda") == default(fast, "cuda:0") == "float32"
    assert default(untimed, "cpu") == "float32"
