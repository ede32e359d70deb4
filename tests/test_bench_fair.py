"""What would favour one contestant of `ingot bench`: kept embeddings, another device, lower sums, parts told by other names."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ingot
from ingot.benchmarks.contestants import _diffusers_loop as loop
from ingot.benchmarks.contestants.ingot import OpenedBundle
from ingot.benchmarks.contestants.measure import Clock, Task
from ingot.benchmarks.harness import environments, grid, process, quality, request
from ingot.benchmarks.harness.page_data import scheme_of
from ingot.benchmarks.harness.record import Contestant
from ingot.runtimes.errors import InputError


def task(model: str = "m", **changed: Any) -> Task:
    values = {
        "kind": "ingot", "model": model, "options": {}, "call": {}, "height": 16, "width": 16, "batch": 1, "steps": 1,
        "guidance_scale": 3.0, "scheduler": "DDIMScheduler", "threads": 1, "seed": 0, "prompts": ["a"], "noise": "n.npy",
        "calls": 1, "spawned": time.monotonic(),
    }  # fmt: skip
    return Task(**{**values, **changed})


def test_every_call_encodes_its_prompts_again(tiny_bundle: Path) -> None:
    pipe = ingot.load(tiny_bundle)
    width, scheduler = pipe.default_size[1], pipe.scheduler.config["_class_name"]
    clock = Clock()
    opened = OpenedBundle(task(str(tiny_bundle), height=width, width=width, scheduler=scheduler), clock)
    encoded = []
    for _ in range(2):
        clock.begin()
        opened(["a"], [0], lambda: None)
        encoded.append([role for role, _, _ in clock.spans].count("text_encoder"))
    assert encoded == [2, 2]  # the prompt, the negative one


@dataclass
class Asked:
    """A call's arguments."""

    height: int = 0


class Scheduler:
    def __init__(self) -> None:
        self.config = {"_class_name": "DDIMScheduler"}

    def step(self) -> None: ...


def opened_from(
    engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, clock: Clock, device: str | None = None
) -> Any:
    """A contestant over these stand-ins for engines."""
    choice = SimpleNamespace(engine="", device=device)
    pipe = SimpleNamespace(engines=engines, choice=choice, scheduler=Scheduler(), call_type=Asked)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(ingot, "load", lambda _, **options: (seen.update(options), pipe)[1])
    opened = OpenedBundle(task(options={"device": device} if device else {}), clock)
    assert seen["device"] == (device or "cpu")  # as the baselines, whatever Ingot would choose
    return opened


def test_two_text_encoders_are_told_as_one_as_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {name: SimpleNamespace(run=lambda: None) for name in ("text_encoder", "text_encoder_2", "unet")}
    clock = Clock()
    opened_from(engines, monkeypatch, clock)
    for one in engines.values():
        one.run()
    assert [role for role, _, _ in clock.spans] == ["text_encoder", "text_encoder", "unet"]


def test_sums_below_float32_and_another_device_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(hint: str) -> Any:
        given = SimpleNamespace(to_string=lambda: hint)
        return SimpleNamespace(run=None, _compiled=SimpleNamespace(get_property=lambda _: given))

    by_itself = "sums in bf16: OpenVINO's own choice for this device"
    assert opened_from({"unet": compiled("bf16")}, monkeypatch, Clock()).notes == [by_itself]
    assert opened_from({"unet": compiled("f32")}, monkeypatch, Clock(), "cpu").notes == []
    assert opened_from({"unet": compiled("f32")}, monkeypatch, Clock(), "cuda:1").notes == ["on the device cuda:1"]


def test_a_bundle_may_be_called_as_shapes_is(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    asked = request.make(["shapes"], contestant=["r: bundle=./shapes"], engines=["onnx"])
    for one in asked.contestants:
        assert one.model == str(tmp_path / "shapes")
        assert process.resolved(one.model) == one.model
        assert not quality._is_shapes(one.model)


def test_a_device_is_given_to_all_that_have_it(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(grid, "absent", lambda *_: None)
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "none")
    (file := tmp_path / "own.py").touch()
    recipes = ["r: device=cpu", f"own={file}"]
    asked = request.make([tiny_bundle], baseline=["diffusers"], device="cuda", engines=["onnx"], contestant=recipes)
    assert [one.options["device"] for one in asked.contestants] == ["cuda", "cuda", "cpu", "cuda"]
    assert asked.contestants[0].python == ""


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Part:
        def forward(self) -> None:
            order.append("forward")

    class Told(Clock):
        def now(self) -> float:
            order.append("clock")
            return super().now()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    for device, expected in (
        ("cuda:0", ["wait", "clock", "forward", "wait", "clock"]),
        ("cpu", ["clock", "forward", "clock"]),
    ):
        part = Part()
        loop.timed(part, "forward", "unet", Told(), task(options={"device": device}))
        order.clear()
        part.forward()
        assert order == expected


def test_only_a_missing_environment_is_stood_in_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    assert request.interpreter("diffusers", None) == ""
    (tmp_path / "diffusers").mkdir()
    with pytest.raises(InputError, match="is half-made; to make it"):
        request.interpreter("diffusers", None)
    with pytest.raises(InputError, match="diffusers-compile is not in"):
        request.interpreter("diffusers-compile", tmp_path / "other")


def test_the_page_calls_equal_weights_by_one_name() -> None:
    told = {
        "float32": [
            ("ingot", {"precision": "float32"}), ("diffusers", {}), ("optimum-onnx", {}), ("optimum-intel", {"precision": "f32"}),
        ],
        "bfloat16": [("diffusers", {"dtype": "bfloat16"})],
        "float16": [("openvino-genai", {"weights": "fp16"})],
        "int8": [("openvino-genai", {"weights": "int8"})],
        "as it is": [("own.py", {})],
    }  # fmt: skip
    for name, contestants in told.items():
        for kind, options in contestants:
            assert scheme_of(Contestant(name="x", kind=kind, model="m", options=options)) == name
