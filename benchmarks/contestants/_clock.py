"""Where a call's time goes: what a contestant wraps its parts with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

DENOISERS = ("unet", "unet_shallow", "transformer")


class Clock:
    """Where a call's time goes. Roles: text_encoder, unet or transformer, vae_decoder, vae_encoder, scheduler."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, float, float]] = []  # seconds from the call's beginning
        self.steps: list[float] = []  # where each step ended
        self.turns = 1  # pictures that were made one after the other, all steps of one before the next
        self.began = time.monotonic()

    def begin(self) -> None:
        """Forget the last call."""
        self.spans, self.steps, self.turns = [], [], 1
        self.began = time.monotonic()

    def now(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self.began

    @contextmanager
    def span(self, role: str) -> Iterator[None]:
        """Time what is done inside."""
        start = self.now()
        try:
            yield
        finally:
            self.spans.append((role, start, self.now()))

    def wrap(self, role: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with each of its calls timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((role, start, self.now()))

        return timed

    def seconds(self) -> dict[str, float]:
        """By role."""
        found: dict[str, float] = {}
        for role, start, end in self.spans:
            found[role] = found.get(role, 0.0) + end - start
        return found

    def step_seconds(self) -> float | None:
        """The mean step but the first, which has the prompts' encoding in it; a single one whole. None without steps.
        A step is of all pictures: where they are made in turn, the sum over them."""
        turns = self._by_turn()
        if len(turns[0]) < 2:
            return self.steps[0] if self.steps and self.turns == 1 else None
        return sum((steps[-1] - steps[0]) / (len(steps) - 1) for steps in turns)

    def host_seconds(self) -> float | None:
        """The median over the steps but the first: what a step takes outside the denoiser. None where it cannot be told."""
        denoised = [(start, end) for role, start, end in self.spans if role in DENOISERS]
        turns = self._by_turn()
        if len(turns[0]) < 2 or not denoised:
            return None
        outside = [0.0] * (len(turns[0]) - 1)
        for steps in turns:
            for i, (before, after) in enumerate(pairwise(steps)):
                inside = sum(
                    min(end, after) - max(start, before) for start, end in denoised if start < after and end > before
                )
                outside[i] += after - before - inside
        outside.sort()
        return (outside[len(outside) // 2] + outside[(len(outside) - 1) // 2]) / 2

    def _by_turn(self) -> list[list[float]]:
        """Where the steps of each turn ended, as many of each."""
        count = len(self.steps) // self.turns
        return [self.steps[i * count : (i + 1) * count] for i in range(self.turns)]
