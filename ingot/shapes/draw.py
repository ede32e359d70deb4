"""Pictures of Shapes scenes, drawn by code."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .captions import COLOURS, PLACES, RADII, Scene

SIZE = 64  # pixels
OFFSET = 12.0  # pixels from the centre to a named place
RING_HOLE = 0.55  # inner radius over outer radius
STAR_WAIST = 0.45
CROSS_ARM = 0.34  # half the arm's width over its length
_SUPERSAMPLING = 4


def outline(shape: str, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a polygonal shape around the origin, x right and y down; `turn` in radians."""
    if shape == "cross":
        a = CROSS_ARM * radius
        quarter = [(a, -radius), (a, -a), (radius, -a)]
        points = [
            (x * math.cos(k) - y * math.sin(k), x * math.sin(k) + y * math.cos(k))
            for k in (0, math.pi / 2, math.pi, 3 * math.pi / 2)
            for x, y in quarter
        ]
    elif shape == "heart":
        points = [(radius * x, radius * y) for x, y in _heart()]
    else:
        corners, first = {"square": (4, math.pi / 4), "triangle": (3, -math.pi / 2), "star": (10, -math.pi / 2)}[shape]
        points = [
            (r * math.cos(first + 2 * math.pi * k / corners), r * math.sin(first + 2 * math.pi * k / corners))
            for k in range(corners)
            for r in [radius * STAR_WAIST if shape == "star" and k % 2 else radius]
        ]
    c, s = math.cos(turn), math.sin(turn)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


@cache
def _heart() -> tuple[tuple[float, float], ...]:
    """Corners of the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, its centroid moved to the
    origin and its height to 2."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = np.sin(t) ** 3 * 16
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    middle = float(((y + np.roll(y, -1)) * cross).sum() / (3 * cross.sum()))  # of a polygon's area
    half = float(np.ptp(y)) / 2
    return tuple((float(a) / half, (float(b) - middle) / half) for a, b in zip(x, y, strict=True))


def coverage(shape: str, radius: float, x: float, y: float, turn: float = 0.0) -> NDArray[np.float32]:
    """How much of each pixel the shape covers: (64, 64), 0 to 1."""
    k = _SUPERSAMPLING
    mask = Image.new("L", (SIZE * k, SIZE * k), 0)
    pen = ImageDraw.Draw(mask)

    def disc(r: float, value: int) -> None:
        pen.ellipse([(x - r) * k, (y - r) * k, (x + r) * k - 1, (y + r) * k - 1], fill=value)

    if shape in ("circle", "ring"):
        disc(radius, 255)
        if shape == "ring":
            disc(radius * RING_HOLE, 0)
    else:
        pen.polygon([((x + px) * k - 0.5, (y + py) * k - 0.5) for px, py in outline(shape, radius, turn)], fill=255)
    return np.asarray(mask.reduce(k), dtype=np.float32) / np.float32(255)


def draw(scene: Scene, rng: np.random.RandomState) -> NDArray[np.uint8]:
    """One picture of the scene, (64, 64, 3), with small random changes of place, size, angle and tint."""
    dx, dy = PLACES[scene.place]
    x = SIZE / 2 + dx * OFFSET + rng.uniform(-1.2, 1.2)
    y = SIZE / 2 + dy * OFFSET + rng.uniform(-1.2, 1.2)
    radius = RADII[scene.size] + rng.uniform(-0.7, 0.7)
    mask = coverage(scene.shape, radius, x, y, rng.uniform(-0.12, 0.12))[..., None]
    paint, ground = (np.asarray(COLOURS[name]) + rng.uniform(-7, 7, 3) for name in (scene.colour, scene.background))
    return np.clip(np.rint(ground + (paint - ground) * mask), 0, 255).astype(np.uint8)
