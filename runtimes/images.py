"""Between decoded arrays and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError


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


def to_pixels(
    images: object, size: tuple[int, int] | None = None, *, multiple: int = 1, name: str = "image"
) -> NDArray[np.float32]:
    """Pictures as a VAE's encoder wants them, (batch, 3, height, width) in -1..1.

    Takes a PIL image, an array (height, width, 3), of uint8 or of floats in 0..1, or a list or a batch of either. PIL images
    are resized (Lanczos) to `size`, (height, width), or to their own cut down to a `multiple`; arrays must have it. Raises
    InputError for what is no picture, has an alpha channel, or has another size.
    """
    pictures = [_unit(one, size, multiple, name) for one in _several(images, name)]
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"the pictures of {name} differ in size: {sorted({p.shape[:2] for p in pictures})}")
    pixels: NDArray[np.float32] = np.stack(pictures).transpose(0, 3, 1, 2) * np.float32(2) - np.float32(1)
    return pixels


def to_mask(images: object, size: tuple[int, int], *, name: str = "mask_image") -> NDArray[np.float32]:
    """Masks (batch, 1, height, width) of 0 and 1: 1, where the picture is at least half white, is painted anew.

    Takes what `to_pixels` takes, grey or in colours, which become grey. Raises InputError.
    """
    found = []
    for one in _several(images, name, grey=True):
        if isinstance(one, Image.Image):
            one = np.asarray(_resized(one, size).convert("L"), dtype=np.float32) / np.float32(255)
        else:
            one = _floats(one, name)
            one = one.mean(axis=-1) if one.ndim == 3 else one
            _require_size(one, size, name)
        found.append((one >= 0.5).astype(np.float32))
    return np.stack(found)[:, None]


def size_of(images: object, *, name: str = "image") -> tuple[int, int]:
    """(height, width) of the first picture. Raises InputError for what is no picture."""
    first = _several(images, name)[0]
    return (first.height, first.width) if isinstance(first, Image.Image) else (first.shape[0], first.shape[1])


def _several(images: object, name: str, *, grey: bool = False) -> list[Any]:
    ranks = (2, 3) if grey else (3,)
    if isinstance(images, np.ndarray):
        batch = images.ndim == 4 or (grey and images.ndim == 3 and images.shape[-1] not in (1, 3))
        images = list(images) if batch else [images]
    several = list(images) if isinstance(images, list | tuple) else [images]
    for one in several:
        if isinstance(one, Image.Image):
            continue
        if not isinstance(one, np.ndarray) or one.ndim not in ranks or (one.ndim == 3 and one.shape[-1] not in (1, 3)):
            kind = f"an array of shape {one.shape}" if isinstance(one, np.ndarray) else type(one).__name__
            raise InputError(f"{name} must be a PIL image, an array (height, width, 3), or a list of them, not {kind}")
    if not several:
        raise InputError(f"{name} is an empty list; give a picture")
    return several


def _unit(one: Any, size: tuple[int, int] | None, multiple: int, name: str) -> NDArray[np.float32]:
    """One picture (height, width, 3) in 0..1."""
    if isinstance(one, Image.Image):
        if "A" in one.getbands() or one.info.get("transparency") is not None:
            raise InputError(f"{name} has an alpha channel ({one.mode}): give it without, image.convert('RGB')")
        height, width = size or (one.height // multiple * multiple, one.width // multiple * multiple)
        return np.asarray(_resized(one.convert("RGB"), (height, width)), dtype=np.float32) / np.float32(255)
    array = _floats(one, name)
    _require_size(array, size or tuple(side // multiple * multiple for side in array.shape[:2]), name)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _floats(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """0..1 from 0..255 or from floats, which must lie in 0..1."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not np.issubdtype(array.dtype, np.floating) or array.min() < 0 or array.max() > 1:
        raise InputError(
            f"{name}: an array is of uint8, or of floats in 0..1, not {array.dtype} in {array.min()}..{array.max()}"
        )
    return array.astype(np.float32)


def _require_size(array: NDArray[Any], size: tuple[int, ...], name: str) -> None:
    if array.shape[:2] != tuple(size):
        had, wanted = ("x".join(map(str, sides)) for sides in (array.shape[:2], size))
        raise InputError(f"{name} is an array of {had} pixels, not {wanted}; PIL images are resized")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
