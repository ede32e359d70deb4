"""The checker: what a picture shows, measured from its pixels, so that following the prompt is a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .captions import ATTRIBUTES, COLOURS, PLACES, RADII, SHAPES, Scene, parse
from .draw import OFFSET, SIZE, coverage

_TURNS = (-0.16, -0.08, 0.0, 0.08, 0.16)  # radians; drawn pictures turn by at most 0.12
_MIN_OVERLAP = 0.6  # intersection over union under which a blob is no shape at all
_MIN_CONTRAST = 40.0  # RGB distance of shape and background


def measure(picture: ArrayLike, shapes: Sequence[str] = SHAPES) -> dict[str, str | None]:
    """The five attributes of a picture, (64, 64, 3) uint8 or anything that NumPy reads as that; None: not to be told.

    The background is the border's median colour, the shape's colour the median of what differs most from it. Their
    difference gives each pixel's coverage; the shape is the one whose drawing, at the same centroid and area, overlaps
    that coverage best. `shapes` are those to tell apart.
    """
    pixels = np.asarray(picture, dtype=np.float32)
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(f"the checker measures {SIZE}x{SIZE} RGB pictures, not an array of shape {pixels.shape}")
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    found: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    found["background"] = _nearest_colour(ground)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    paint = np.median(pixels[distance >= 0.8 * np.sort(distance, axis=None)[-20]], axis=0)
    contrast = paint - ground
    if np.linalg.norm(contrast) < _MIN_CONTRAST:
        return found
    mask = np.clip((pixels - ground) @ contrast / (contrast @ contrast), 0, 1)
    mask[mask < 0.25] = 0
    found["colour"] = _nearest_colour(paint)
    area = float(mask.sum())
    y, x = (float((mask * (axis + 0.5)).sum() / area) for axis in np.mgrid[:SIZE, :SIZE])
    found["place"] = min(
        PLACES, key=lambda p: (x - SIZE / 2 - PLACES[p][0] * OFFSET) ** 2 + (y - SIZE / 2 - PLACES[p][1] * OFFSET) ** 2
    )
    overlaps = {shape: _overlap(mask, shape, area, x, y) for shape in shapes}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    if overlaps[best] >= _MIN_OVERLAP:
        radius = float(np.sqrt(area / _unit_area(best)))
        found["shape"] = best
        found["size"] = min(RADII, key=lambda size: abs(RADII[size] - radius))
    return found


def score(captions: Sequence[str | Scene], pictures: Iterable[Any], shapes: Sequence[str] = SHAPES) -> dict[str, float]:
    """The share of pictures, 0 to 1, that show what their captions say: one figure an attribute, and `all`.

    Captions with words that the model does not know come as scenes, and `shapes` has theirs too.
    """
    right: dict[str, list[bool]] = {name: [] for name in (*ATTRIBUTES, "all")}
    for caption, picture in zip(captions, pictures, strict=True):
        scene = parse(caption) if isinstance(caption, str) else caption
        found = measure(picture, shapes)
        hits = {name: found[name] == getattr(scene, name) for name in ATTRIBUTES}
        for name, hit in {**hits, "all": all(hits.values())}.items():
            right[name].append(hit)
    return {name: float(np.mean(hits)) for name, hits in right.items()}


def _nearest_colour(rgb: NDArray[np.float32]) -> str:
    return min(COLOURS, key=lambda name: float(((rgb - COLOURS[name]) ** 2).sum()))


@cache
def _unit_area(shape: str) -> float:
    return float(coverage(shape, 20.0, SIZE / 2, SIZE / 2).sum()) / 20.0**2


def _overlap(mask: NDArray[np.float32], shape: str, area: float, x: float, y: float) -> float:
    radius = min(float(np.sqrt(area / _unit_area(shape))), SIZE / 2)
    turns = (0.0,) if shape in ("circle", "ring") else _TURNS
    drawn = (coverage(shape, radius, x, y, turn) for turn in turns)
    return max(float(np.minimum(mask, d).sum() / np.maximum(mask, d).sum()) for d in drawn)
