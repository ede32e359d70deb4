"""The language of Shapes: what a picture can show, and the sentence that says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 48),
    "orange": (247, 140, 28),
    "yellow": (246, 219, 55),
    "green": (38, 148, 72),
    "blue": (44, 92, 214),
    "purple": (136, 56, 170),
    "white": (242, 242, 240),
    "black": (26, 26, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
NEW_SHAPES = ("heart",)
"""What the model itself does not know, and learns by the LoRA of this name in `LORA_DIR`."""
RADII: dict[str, float] = {"small": 9.0, "medium": 13.5, "large": 19.0}  # pixels of a 64 px picture
PLACES: dict[str, tuple[int, int]] = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
ATTRIBUTES = ("colour", "shape", "size", "place", "background")

_CAPTION = re.compile(
    r"an? (?P<size>\w+) (?P<colour>\w+) (?P<shape>\w+)(?: at the (?P<place>\w+))? on an? (?P<background>\w+) background"
)


@dataclass(frozen=True)
class Scene:
    """One shape on one background: the five attributes that a caption names and the checker measures."""

    colour: str
    shape: str
    size: str
    place: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence for this scene; the centre is the place that goes without saying."""
        where = "" if self.place == "centre" else f" at the {self.place}"
        article = "an" if self.background == "orange" else "a"
        return f"a {self.size} {self.colour} {self.shape}{where} on {article} {self.background} background"


def parse(caption: str) -> Scene:
    """The scene that a caption describes. Raises ValueError naming the caption when it is not one of Shapes'."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        raise ValueError(f"not a Shapes caption: {caption!r}; an example: {all_scenes()[0].caption!r}")
    scene = Scene(**{**match.groupdict(), "place": match["place"] or "centre"})
    if scene not in set(all_scenes()):
        raise ValueError(
            f"Shapes does not know the words of {caption!r}; colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}"
        )
    return scene


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene there is (5,040), in a fixed order; a shape never has its background's colour."""
    return tuple(
        Scene(colour, shape, size, place, background)
        for colour, shape, size, place, background in product(COLOURS, SHAPES, RADII, PLACES, COLOURS)
        if colour != background
    )


@cache
def split(held_out: int = 300, seed: int = 0) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """(training scenes, held-out scenes): the model never saw a held-out caption or a picture of it."""
    scenes = all_scenes()
    order = np.random.RandomState(seed).permutation(len(scenes))
    return tuple(scenes[i] for i in order[held_out:]), tuple(scenes[i] for i in order[:held_out])
