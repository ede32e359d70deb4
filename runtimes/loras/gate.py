"""Calls that run side by side, and a change that must not happen during one of them.

A call of a pipeline is many runs of several graphs. Weights that were exchanged half-way would give a picture that is
neither, so a change waits until the calls of other threads have ended, and calls that begin meanwhile wait for it. In its
own thread a change may come between two steps: the caller, who stands there, asked for it.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import EngineError


class Gate:
    """Counts running calls by thread; safe for threads itself."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._running: Counter[int] = Counter()
        self._changing: int | None = None  # the thread that changes, or waits to

    def call(self) -> Call:
        """A call that begins now: waits for a change that is under way."""
        me = threading.get_ident()
        with self._free:
            # who has a call open already must not wait for a change that waits for that call
            self._free.wait_for(lambda: self._changing in (None, me) or self._running[me] > 0)
            self._running[me] += 1
        at = [me]
        return Call(lambda: self._leave(at[0]), lambda: self._move(at))

    @contextmanager
    def change(self) -> Iterator[None]:
        """The time of a change, alone. Raises EngineError where two threads would wait for one another."""
        me = threading.get_ident()
        with self._free:
            if self._running[me] and (self._others(me) or self._changing is not None):
                raise EngineError(
                    "weights cannot be changed from within a call while other threads' calls run: change them between calls, "
                    "or load the bundle once for each thread"
                )
            self._free.wait_for(lambda: self._changing is None)
            self._changing = me
        try:
            with self._free:
                self._free.wait_for(lambda: not self._others(me))
            yield
        finally:
            with self._free:
                self._changing = None
                self._free.notify_all()

    def _others(self, me: int) -> bool:
        return any(count for thread, count in self._running.items() if thread != me)

    def _move(self, at: list[int]) -> None:
        """A call goes on in the thread that asks for its next step, which may be another than it began in."""
        me = threading.get_ident()
        with self._free:
            if me != at[0]:
                self._running[me] += 1
                self._leave(at[0])
                at[0] = me

    def _leave(self, thread: int) -> None:
        with self._free:
            self._running[thread] -= 1
            if not self._running[thread]:
                del self._running[thread]
            self._free.notify_all()


class Call:
    """A call under way: over when it is closed, or when nobody holds it any more (a loop that was never finished)."""

    def __init__(self, leave: Callable[[], None], move: Callable[[], None]) -> None:
        self._end = weakref.finalize(self, leave)
        self.move = move

    def close(self) -> None:
        """The call is over; a second time does nothing."""
        self._end()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
