"""Calls and changes of weights side by side: nobody waits for ever, nobody sees half a change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ingot import EngineError, InputError
from ingot.runtimes.images import to_pil, to_pixels
from ingot.runtimes.loras.gate import Gate
from ingot.runtimes.pipelines.base import Pipeline
from ingot.runtimes.pipelines.common import Engines


def in_thread(work: Any) -> list[Any]:
    """What a call in another thread returns or raises; fails where it does not end in five seconds."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # for the test to look at
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for ever"
    return found


def change(gate: Gate) -> str:
    with gate.change():
        return "changed"


def test_a_change_that_is_stopped_while_it_waits_leaves_the_gate_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    held = in_thread(gate.call)  # another thread's call, which is not over
    monkeypatch.setattr(gate, "_others", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        change(gate)
    monkeypatch.undo()
    held[0].close()
    assert in_thread(lambda: change(gate)) == ["changed"]


def test_a_loop_belongs_to_the_thread_that_asks_for_its_next_step() -> None:
    pipe = Engines({})

    def states() -> Iterator[Any]:
        yield from range(3)

    loop = pipe.guarded(states)  # type: ignore[arg-type]  # numbers stand for states
    [first] = in_thread(lambda: next(loop))
    assert first == 0
    held = pipe.gate.call()  # this thread has a call of its own
    [refused] = in_thread(lambda: (next(loop), pipe.set_loras([])))
    assert isinstance(refused, EngineError)
    held.close()
    assert list(loop) == [2]
    assert in_thread(lambda: change(pipe.gate)) == ["changed"]


class Counted(Pipeline):
    """Three steps of nothing."""

    def __init__(self) -> None:
        Engines.__init__(self, {})

    def steps(self, prompt: Any = None, **_: Any) -> Iterator[Any]:
        def states() -> Iterator[Any]:
            for step in range(3):
                if prompt == step:
                    raise ZeroDivisionError
                yield SimpleNamespace(step=step, num_steps=3, timestep=0.0, latents=0)

        return self.guarded(states)

    def finish(self, state: Any, output_type: str) -> Any:  # noqa: ARG002  # the base class has it
        return state.step


@pytest.mark.parametrize("how", ["error", "interrupt", "a wrong answer", "a step's own error", "at once"])
def test_a_call_that_is_broken_off_keeps_no_one_waiting(how: str) -> None:
    """Not even while somebody holds the error, whose traceback holds the loop."""
    pipe = Counted()
    raised = {"error": RuntimeError("no"), "interrupt": KeyboardInterrupt()}

    def callback(_: Any, step: int, __: float, ___: Any) -> dict[str, Any]:
        if step == 1 and how in raised:
            raise raised[how]
        return {"wonder": 1} if how == "a wrong answer" else {}

    prompt: Any = {"a step's own error": 2, "at once": 0}.get(how)
    with pytest.raises((RuntimeError, KeyboardInterrupt, InputError, ZeroDivisionError)) as held:
        pipe(prompt, progress=False, callback_on_step_end=callback)
    assert in_thread(lambda: pipe.set_loras([])) == [None]
    assert held.tb is not None
    assert in_thread(lambda: pipe(progress=False)) == [2]


def test_grey_pictures_are_grey_images() -> None:
    [made] = to_pil(np.full((1, 4, 5, 1), 0.5, np.float32))
    assert (made.mode, made.size) == ("L", (5, 4))


@pytest.mark.parametrize("array", [np.full((4, 4, 3), np.nan, np.float32), np.zeros((0, 4, 3), np.float32)])
def test_pictures_of_nothing_are_refused(array: Any) -> None:
    with pytest.raises(InputError, match="image"):
        to_pixels(array)
