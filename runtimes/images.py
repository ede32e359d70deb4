"""Between decoded arrays and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .late import Late

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = Late("PIL.Image")


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
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in to_uint8(pictures)]


def from_pil(pictures: list[Image.Image]) -> NDArray[np.float32]:
    """PIL images of one size as pictures (batch, height, width, 3) in 0..1."""
    return np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures]) / np.float32(255)


def grid(pictures: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures of one size in rows, near a square when `columns` is not given."""
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


def to_pixels(
    images: object, size: tuple[int, int] | None = None, *, multiple: int = 1, name: str = "image",
    resample: Image.Resampling | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Pictures as a VAE's encoder wants them, (batch, 3, height, width) in -1..1.

    Takes a PIL image, an array (height, width, 3), of uint8 or of floats in 0..1, or a list or a batch of either. PIL images
    are resized (by `resample`, Lanczos' where none is named) to `size`, (height, width), or to their own cut down to a
    `multiple`; arrays must have it. Raises InputError for what is no picture, has an alpha channel, or has another size.
    """
    pictures = [_unit(one, size, multiple, name, resample) for one in _several(images, name)]
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"the pictures of {name} differ in size: {sorted({p.shape[:2] for p in pictures})}")
    pixels: NDArray[np.float32] = np.stack(pictures).transpose(0, 3, 1, 2) * np.float32(2) - np.float32(1)
    return pixels


def to_conditions(
    images: object, size: tuple[int, int], *, channels: int = 3, name: str = "control_image"
) -> NDArray[np.float32]:
    """Pictures as a ControlNet or an adapter reads them, (batch, channels, height, width) in 0..1; grey for one channel.

    Takes what `to_pixels` takes. Raises InputError.
    """
    given = _several(images, name)
    if channels == 1:
        given = [one.convert("L") if isinstance(one, Image.Image) and one.mode == "RGB" else one for one in given]
        if any(isinstance(one, np.ndarray) and one.shape[-1] != 1 for one in given):
            raise InputError(f"{name}: this model reads grey pictures, an array (height, width, 1), not one in colours")
    pictures = np.stack([_unit(one, size, 1, name) for one in given])
    return np.ascontiguousarray(pictures[..., :channels].transpose(0, 3, 1, 2))


def to_mask(images: object, size: tuple[int, int], *, name: str = "mask_image") -> NDArray[np.float32]:
    """Masks (batch, 1, height, width) of 0 and 1: 1, where the picture is at least half white, is painted anew.

    Takes what `to_pixels` takes, grey or in colours, which become grey. Raises InputError.
    """
    found = []
    for one in _several(images, name, grey=True):
        if isinstance(one, Image.Image):
            _require_opaque(one, name)
            one = np.asarray(_resized(one, size).convert("L"), dtype=np.float32) / np.float32(255)
        else:
            one = one.astype(np.float32) if one.dtype == np.bool_ else _floats(one, name)
            one = one.mean(axis=-1) if one.ndim == 3 else one
            _require_size(one, size, name)
        found.append((one >= 0.5).astype(np.float32))
    return np.stack(found)[:, None]


def size_of(images: object, *, name: str = "image") -> tuple[int, int]:
    """(height, width) of the first picture. Raises InputError for what is no picture."""
    first = _several(images, name)[0]
    return (first.height, first.width) if isinstance(first, Image.Image) else (first.shape[0], first.shape[1])


def to_pictures(images: object, *, name: str = "image") -> list[Image.Image]:
    """Pictures as PIL images in RGB, each of its own size. Takes what `to_pixels` takes. Raises InputError."""
    found = []
    for one in _several(images, name):
        if isinstance(one, Image.Image):
            _require_opaque(one, name)
            found.append(one.convert("RGB"))
        else:
            found.append(Image.fromarray(to_uint8(np.broadcast_to(_floats(one, name), (*one.shape[:2], 3)))))
    return found


def resize_cubic(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Planes (..., height, width) at another size, as `torch.nn.functional.interpolate(mode="bicubic")` makes them.

    Keys 1981 with a = -0.75, the border repeated, and no filter before shrinking.
    """
    rows, columns = (_cubic(had, wanted) for had, wanted in zip(planes.shape[-2:], size, strict=True))
    resized: NDArray[np.float32] = np.matmul(np.matmul(rows, planes), columns.T)
    return resized


def _cubic(had: int, wanted: int) -> NDArray[np.float32]:
    """(wanted, had): what each new value takes of the old ones."""
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(had / wanted) - np.float32(0.5)
    first = np.floor(places).astype(np.int64) - 1
    weights = np.zeros((wanted, had), dtype=np.float32)
    for tap in range(4):
        away = np.abs(places - (first + tap))
        near = (1.25 * away - 2.25) * away * away + 1
        far = -0.75 * (((away - 5) * away + 8) * away - 4)
        np.add.at(weights, (np.arange(wanted), np.clip(first + tap, 0, had - 1)), np.where(away <= 1, near, far))
    return weights


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


def _unit(
    one: Any, size: tuple[int, int] | None, multiple: int, name: str, resample: Image.Resampling | None = None
) -> NDArray[np.float32]:
    """One picture (height, width, 3) in 0..1."""
    if isinstance(one, Image.Image):
        _require_opaque(one, name)
        height, width = size or (one.height // multiple * multiple, one.width // multiple * multiple)
        return np.asarray(_resized(one.convert("RGB"), (height, width), resample), dtype=np.float32) / np.float32(255)
    array = _floats(one, name)
    _require_size(array, size or tuple(side // multiple * multiple for side in array.shape[:2]), name)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _require_opaque(image: Image.Image, name: str) -> None:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        raise InputError(f"{name} has an alpha channel ({image.mode}): give it without, image.convert('RGB')")


def _floats(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """0..1 from 0..255 or from floats, which must lie in 0..1."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not array.size:
        raise InputError(f"{name} is an empty array, of shape {array.shape}")
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):  # nor NaN
        raise InputError(
            f"{name}: an array is of uint8, or of floats in 0..1, not {array.dtype} in {array.min()}..{array.max()}"
        )
    return array.astype(np.float32)


def _require_size(array: NDArray[Any], size: tuple[int, ...], name: str) -> None:
    if array.shape[:2] != tuple(size):
        had, wanted = ("x".join(map(str, sides)) for sides in (array.shape[:2], size))
        raise InputError(f"{name} is an array of {had} pixels, not {wanted}; PIL images are resized")


def _resized(image: Image.Image, size: tuple[int, int], resample: Image.Resampling | None = None) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS if resample is None else resample)
