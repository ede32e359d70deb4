"""Between decoded arrays and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_unit(decoded: NDArray[Any]) -> NDArray[np.float32]:
    """VAE output (batch, 3, height, width) in -1..1 to pictures (batch, height, width, 3) in 0..1."""
    halved = decoded.astype(np.float32) / np.float32(2) + np.float32(0.5)
    pictures: NDArray[np.float32] = np.clip(halved, 0, 1).transpose(0, 2, 3, 1)
    return pictures


def to_uint8(pictures: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 to 0..255, half to even, as diffusers rounds."""
    return np.rint(pictures * 255).astype(np.uint8)


def to_pil(pictures: NDArray[np.float32]) -> list[Image.Image]:
    """Pictures (batch, height, width, 3) in 0..1 as PIL images."""
    return [Image.fromarray(picture) for picture in to_uint8(pictures)]


def grid(pictures: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size in rows, near a square when `columns` is not given."""
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
