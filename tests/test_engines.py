"""What every engine promises, asked of each: one contract, whichever toolchain is underneath."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets import target
from ingot.runtimes import engines
from ingot.runtimes.engines import Engine, open_with
from ingot.runtimes.errors import EngineError, InputError

from .conftest import Tiny

# float32 engines on small random models: 2e-7 to 1e-6 was measured
TOLERANCE = 1e-5
EVERYWHERE = ("onnx", "openvino", "torch")  # these have no excuse


@dataclass(frozen=True)
class Case:
    """A small UNet, written for an engine, and calls of two sizes with torch's answers."""

    engine: str
    component: Component
    written: GraphFile

    def open(self, **options: Any) -> Engine:
        given = {**engines.engine(self.engine).PARITY_OPTIONS, **options}
        return open_with(self.engine, self.written.path, self.written.signature, self.written.stored, given)

    def inputs(self, call: int = 0) -> dict[str, Any]:
        return {name: tensor.numpy().copy() for name, tensor in self.component.calls[call].inputs.items()}

    def answer(self, call: int = 0) -> Any:
        return self.component.calls[call].outputs["out_sample"].numpy()


@pytest.fixture(scope="module")
def unet(tiny_sd: Tiny) -> Component:
    return next(component for component in capture(tiny_sd.pipe) if component.role == "unet")


def absence(name: str) -> str | None:
    """Why an engine cannot be asked here."""
    try:
        module = engines.engine(name)
    except EngineError as error:
        return str(error)
    return None if module.devices() else f"{name} has no device on this machine: {module.report()}"


@pytest.fixture(scope="module", params=engines.available())
def case(request: pytest.FixtureRequest, unet: Component, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name = request.param
    absent = absence(name)
    if absent:
        assert name not in EVERYWHERE, absent
        pytest.skip(absent)
    folder = tmp_path_factory.mktemp(name)
    return Case(name, unet, target(name).export(unet, folder / "unet", dtype="float32"))


@pytest.fixture(scope="module")
def opened(case: Case) -> Iterator[Engine]:
    engine = case.open()
    yield engine
    engine.close()


def far(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_it_keeps_the_signature_that_was_written(case: Case, opened: Engine) -> None:
    assert opened.signature == case.written.signature
    assert [spec.name for spec in opened.signature.inputs] == ["sample", "timestep", "encoder_hidden_states"]


def test_it_answers_what_the_model_answers_at_both_sizes(case: Case, opened: Engine) -> None:
    for call in (0, len(case.component.calls) - 1):
        found = opened.run(case.inputs(call))
        assert list(found) == ["out_sample"]
        assert found["out_sample"].dtype == np.float32
        assert far(found["out_sample"], case.answer(call)) < TOLERANCE


def test_other_floats_are_cast_and_other_kinds_refused(case: Case, opened: Engine) -> None:
    inputs = case.inputs()
    found = opened.run({**inputs, "sample": inputs["sample"].astype(np.float64)})
    assert far(found["out_sample"], case.answer()) < TOLERANCE
    with pytest.raises(InputError, match="'sample' is int64, not float32"):
        opened.run({**inputs, "sample": inputs["sample"].astype(np.int64)})


def test_every_mismatch_is_named_at_once(case: Case, opened: Engine) -> None:
    inputs = case.inputs()
    inputs["sample"] = inputs["sample"][0]
    del inputs["timestep"]
    with pytest.raises(InputError) as caught:
        opened.run({**inputs, "extra": np.zeros(1, np.float32)})
    for part in ("unknown input 'extra'", "missing input 'timestep'", "'sample' has shape", "encoder_hidden_states"):
        assert part in str(caught.value)


def test_a_fixed_dimension_is_held(case: Case, opened: Engine) -> None:
    inputs = case.inputs()
    with pytest.raises(InputError, match=r"'sample' has shape .*, not \["):
        opened.run({**inputs, "sample": np.zeros((2, 5, 8, 8), np.float32)})


def test_views_that_are_not_contiguous_are_read_right(case: Case, opened: Engine) -> None:
    inputs = case.inputs()
    turned = np.ascontiguousarray(inputs["sample"].transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not turned.flags.c_contiguous
    found = opened.run({**inputs, "sample": turned})
    assert far(found["out_sample"], case.answer()) < TOLERANCE


def test_outputs_are_the_callers_and_inputs_are_left_alone(case: Case, opened: Engine) -> None:
    inputs = case.inputs()
    before = {name: array.copy() for name, array in inputs.items()}
    first = opened.run(inputs)["out_sample"]
    kept = first.copy()
    second = opened.run({**inputs, "sample": inputs["sample"] * 2})["out_sample"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert all(np.array_equal(inputs[name], array) for name, array in before.items())


def test_two_threads_get_each_their_own_answer(case: Case, opened: Engine) -> None:
    calls = [0, len(case.component.calls) - 1] * 4
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda call: opened.run(case.inputs(call))["out_sample"], calls))
    for call, array in zip(calls, found, strict=True):
        assert far(array, case.answer(call)) < TOLERANCE


def test_closing_frees_it_and_opening_again_gives_the_same(case: Case) -> None:
    engine = case.open()
    first = engine.run(case.inputs())["out_sample"]
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(case.inputs())
    again = case.open()
    assert np.array_equal(again.run(case.inputs())["out_sample"], first)
    again.close()


def test_a_device_that_does_not_exist_is_answered_with_those_that_do(case: Case) -> None:
    with pytest.raises((InputError, EngineError), match=engines.engine(case.engine).devices()[0]):
        case.open(device="abacus")


def test_an_unknown_option_is_answered_with_those_that_exist(case: Case) -> None:
    with pytest.raises(InputError, match=rf"unknown option for the engine {case.engine} 'speed'; available: .*device"):
        case.open(speed=3)


def test_a_file_that_is_no_graph_is_refused(case: Case, tmp_path: Path) -> None:
    broken = tmp_path / case.written.path.name
    broken.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match=broken.stem):
        open_with(case.engine, broken, case.written.signature, case.written.stored, {})


def test_the_machine_is_reported(case: Case) -> None:
    assert "version" in engines.engine(case.engine).report()
