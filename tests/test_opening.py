"""Opening the graphs of a bundle: side by side where that pays, and what is left when one cannot be opened."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ingot
from ingot.runtimes import load
from ingot.runtimes.engines import Engine, onnx
from ingot.runtimes.errors import EngineError
from ingot.runtimes.load import _open_all
from ingot.runtimes.signature import Signature


class Opened:
    """An engine that says where it was opened."""

    signature = Signature((), ())

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(inputs)

    def close(self) -> None:
        pass


def opening(wait: threading.Barrier | None = None, error: Exception | None = None) -> Callable[[], Engine]:
    def open_one() -> Engine:
        if wait is not None:
            wait.wait(timeout=30)  # passes when all of them are being opened at once
        if error is not None:
            raise error
        return Opened()

    return open_one


def test_graphs_are_opened_at_once_and_stay_in_the_order_of_their_roles() -> None:
    engines: dict[str, Engine] = {}
    wait = threading.Barrier(3)
    _open_all({name: opening(wait) for name in ("text_encoder", "unet", "vae_decoder")}, engines, together=True)
    assert list(engines) == ["text_encoder", "unet", "vae_decoder"]


def test_one_after_another_they_are_opened_in_the_thread_that_asked() -> None:
    engines: dict[str, Any] = {}
    _open_all({"a": opening(), "b": opening()}, engines, together=False)
    assert {engine.thread for engine in engines.values()} == {threading.get_ident()}


@pytest.mark.parametrize("together", [True, False])
def test_the_first_error_by_role_is_raised_and_what_was_opened_is_there_to_close(together: bool) -> None:
    engines: dict[str, Engine] = {}
    openings = {"a": opening(), "b": opening(error=EngineError("b")), "c": opening(error=EngineError("c"))}
    with pytest.raises(EngineError, match=r"^b$"):
        _open_all(openings, engines, together=together)
    assert list(engines) == ["a"]


def test_a_picture_does_not_depend_on_how_the_graphs_were_opened(tiny_bundle: Path) -> None:
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "progress": False, "output_type": "np"}
    found = []
    for threads in (1, 2):  # with one thread they are opened one after another
        with ingot.load(tiny_bundle, engine="onnx", threads=threads) as pipe:
            found.append(pipe("a cat", **call).images)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)  # 0 was measured; sums may be taken in another order


def test_on_a_processor_onnx_runtime_plans_no_memory_beforehand() -> None:
    on_cpu, elsewhere = (onnx._options(None, True, on_cpu) for on_cpu in (True, False))
    assert not on_cpu.enable_mem_reuse
    assert not on_cpu.enable_mem_pattern
    assert elsewhere.enable_mem_reuse
    assert elsewhere.enable_mem_pattern


def test_openvinos_converter_is_imported_when_it_is_asked_for() -> None:
    script = """
import sys
import ingot.runtimes.engines.openvino
import openvino
assert "openvino.tools.ovc" not in sys.modules
assert not hasattr(openvino, "no_such_name")
assert openvino.tools.ovc.convert_model
from openvino import convert_model
assert convert_model is sys.modules["openvino.tools.ovc"].convert_model
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_openvino_was_imported_before_nothing_is_changed() -> None:
    script = """
import openvino
import ingot.runtimes.engines.openvino
assert "convert_model" in vars(openvino) and "__getattr__" not in vars(openvino)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_opened_after_an_interrupt_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads go on opening when the caller is told to stop."""
    closed: list[str] = []

    class Closing(Opened):
        def close(self) -> None:
            closed.append("one")

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "wait", interrupted)
    engines: dict[str, Engine] = {}
    with pytest.raises(KeyboardInterrupt):
        _open_all({"unet": Closing, "vae_decoder": Closing}, engines, together=True)
    assert (engines, closed) == ({}, ["one", "one"])
