"""Where the time of an export goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

LOAD, RECORD, GRAPHS, CHECKS, HASHES = "loading", "recording", "graphs", "checks", "hashes"


class Stages:
    """Seconds by stage: `with stages("checks"): ...`. A stage inside another one counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._mark = time.perf_counter()
        self._open: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What runs inside is of this stage."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._mark
        self._mark = now

    def __str__(self) -> str:
        whole = time.perf_counter() - self._began
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        return f"took {whole:.0f} s: {parts}"
