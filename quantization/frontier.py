"""What is worth keeping: the candidates that no other beats in time, size and quality at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NOISE = 0.03  # of time: less is not faster
QUALITY_NOISE_DB = 0.5


@dataclass(frozen=True)
class Point:
    """One form of a component: its time as a share of the float graph's, its megabytes, the pictures' PSNR in dB."""

    name: str
    time: float
    megabytes: float
    psnr_db: float

    def beats(self, other: Point) -> bool:
        """Whether it is no worse in anything and clearly better in something."""
        no_worse = (
            self.time <= other.time * (1 + NOISE)
            and self.megabytes <= other.megabytes
            and self.psnr_db >= other.psnr_db - QUALITY_NOISE_DB
        )
        better = (
            self.time < other.time * (1 - NOISE)
            or self.megabytes < other.megabytes * 0.99
            or self.psnr_db > other.psnr_db + QUALITY_NOISE_DB
        )
        return no_worse and better

    def __str__(self) -> str:
        return f"{self.time:.2f} of the time, {self.megabytes:.1f} MB, PSNR {self.psnr_db:.1f} dB"


def frontier(points: Sequence[Point]) -> tuple[list[Point], dict[str, str]]:
    """The points that none beats, and by name why each other one is not among them."""
    beaten = {point.name: next((one for one in points if one.beats(point)), None) for point in points}
    kept = [point for point in points if beaten[point.name] is None]
    return kept, {name: f"{one.name} is better: {one}" for name, one in beaten.items() if one is not None}


def fastest(points: Sequence[Point], floor_db: float) -> Point | None:
    """The fastest that is clearly faster than the float graph and good enough; None where none is."""
    able = [point for point in points if point.time < 1 - NOISE and point.psnr_db >= floor_db]
    return min(able, key=lambda point: point.time, default=None)
