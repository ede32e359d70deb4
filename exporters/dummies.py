"""What a pipeline's call is given while it is recorded: a table by parameter name, so that unseen pipelines run too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ingot.runtimes.errors import ExportError

# Two steps, since a timestep must vary; one in the second recording, whose larger batch costs most of a capture.
STEPS = (2, 1)
WORDS = ("a red cat on a tree", "two blue rings", "a small house at night in the rain", "stars")


@dataclass(frozen=True)
class Sizes:
    """What a recording asks for: how many images, their size in pixels, and which of the recordings it is."""

    batch: int
    height: int
    width: int
    index: int = 0

    def axes(self) -> dict[str, int]:
        """The sizes by the names that they have in a signature."""
        return {"batch": self.batch, "height": self.height, "width": self.width}


def _prompts(sizes: Sizes) -> list[str]:
    return [WORDS[(sizes.index + i) % len(WORDS)] for i in range(sizes.batch)]


def _pixels(sizes: Sizes, seed: int) -> NDArray[np.uint8]:
    shape = (sizes.height, sizes.width, 3)
    return np.random.RandomState(seed + sizes.index).randint(0, 256, shape).astype(np.uint8)


def _images(sizes: Sizes) -> list[Image.Image]:
    return [Image.fromarray(_pixels(sizes, seed)) for seed in range(sizes.batch)]


def _masks(sizes: Sizes) -> list[Image.Image]:
    return [
        Image.fromarray(_pixels(sizes, seed)[..., 0]).point(lambda v: 255 * (v > 127)) for seed in range(sizes.batch)
    ]


INPUTS: dict[str, Callable[[Sizes], Any]] = {
    "prompt": _prompts,
    "negative_prompt": lambda sizes: ["blurred"] * sizes.batch,
    "image": _images,
    "control_image": _images,
    "mask_image": _masks,
    "batch_size": lambda sizes: sizes.batch,
    "class_labels": lambda sizes: [1] * sizes.batch,
    "height": lambda sizes: sizes.height,
    "width": lambda sizes: sizes.width,
    "num_inference_steps": lambda sizes: STEPS[sizes.index],
    "strength": lambda _: 1.0,
    # Another value the second time, so that it becomes an input of the graph and not a constant in it.
    "controlnet_conditioning_scale": lambda sizes: 1.0 if sizes.index == 0 else 0.75,
    "generator": lambda sizes: torch.Generator().manual_seed(sizes.index),
    # Neither "latent", which skips the decoder, nor "pt", which the older pipelines do not know.
    "output_type": lambda _: "np",
    # PixArt's: the first needs bs4 and ftfy, the second replaces the size that was asked for by one from its own list.
    "clean_caption": lambda _: False,
    "use_resolution_binning": lambda _: False,
}


def call_inputs(call: Callable[..., Any], sizes: Sizes, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a pipeline's call: what the caller gives, then the table.

    Raises ExportError listing the parameters without a default that neither knows.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    values = {name: INPUTS[name](sizes) for name in parameters if name in INPUTS} | dict(given)
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in values and name != "self"]
    if missing:
        raise ExportError(f"no example for the pipeline's argument(s) {', '.join(missing)}: give them in `inputs`")
    return values
