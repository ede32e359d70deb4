"""Inpainting closer: what the mask covers, and a margin, is cut out, painted at the size of the call, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..images import to_pictures
from ..late import Late
from .call import INPAINTING, Call

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = Late("PIL.Image")

Overlay = Callable[["Image.Image"], "Image.Image"]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def cut(call: Call, size: tuple[int, int]) -> Overlay | None:
    """Put what `padding_mask_crop` cuts out in place of the call's picture and mask; returns what puts a picture back.

    `size` is (height, width) of what is painted. Raises InputError for what cannot be cut.
    """
    padding = call.padding_mask_crop
    if padding is None:
        return None
    if isinstance(padding, bool) or not isinstance(padding, int | np.integer) or padding < 0:
        raise InputError(f"padding_mask_crop must be a whole number of pixels, from 0 on, not {padding!r}")
    if call.task != INPAINTING:
        raise InputError("padding_mask_crop cuts out what mask_image covers: give image and mask_image")
    for name in ("image", "mask_image"):
        if not isinstance(getattr(call, name), Image.Image):
            raise InputError(
                f"padding_mask_crop wants {name} as one PIL image, not {type(getattr(call, name)).__name__}"
            )
    (whole,), mask = to_pictures(call.image), call.mask_image.convert("L")
    if whole.size != mask.size:
        raise InputError(f"padding_mask_crop wants a mask of the picture's size {whole.size}, not {mask.size}")
    box = region(mask, size, int(padding))
    call.image, call.mask_image = (filled(one.crop(box), size) for one in (whole, call.mask_image))

    def put_back(painted: Image.Image) -> Image.Image:
        base = Image.new("RGB", whole.size)
        base.paste(_covering(painted, (box[3] - box[1], box[2] - box[0])), box[:2])
        return Image.composite(base, whole, mask)

    return put_back


def region(mask: Image.Image, size: tuple[int, int], padding: int) -> Box:
    """The part of the picture with all that is not black, widened by the padding and to the shape of `size`.

    Raises InputError for a black mask.
    """
    found = mask.getbbox()
    if found is None:
        raise InputError(
            "mask_image is black, so that nothing is to be painted: padding_mask_crop has nothing to cut out"
        )
    left, top, right, bottom = found
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    shape = size[1] / size[0]
    if (right - left) / (bottom - top) > shape:
        top, bottom = _widened(top, bottom, (right - left) / shape, mask.height)
    else:
        left, right = _widened(left, right, (bottom - top) * shape, mask.width)
    return left, top, right, bottom


def _widened(low: int, high: int, wanted: float, limit: int) -> tuple[int, int]:
    """A side made longer on both ends, moved inside of the picture, and cut where it is longer than that."""
    more = int(wanted - (high - low))
    low, high = low - more // 2, high + more - more // 2
    low, high = low - max(high - limit, 0), min(high, limit)
    return max(low, 0), min(high - min(low, 0), limit)


def filled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture inside of `size` (height, width) at its own shape, in the middle, its edges drawn out to the sides."""
    height, width = size
    wide, high = width, height
    if width * image.height < height * image.width:
        high = image.height * width // image.width
    else:
        wide = image.width * height // image.height
    resized, made = image.resize((wide, high), Image.Resampling.LANCZOS), Image.new("RGB", (width, height))
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    made.paste(resized, (left, top))
    for at, box in (((0, 0), (0, 0, wide, 0)), ((0, top + high), (0, high, wide, high))) if top else ():
        made.paste(resized.resize((width, top), box=box), at)
    for at, box in (((0, 0), (0, 0, 0, high)), ((left + wide, 0), (wide, 0, wide, high))) if left else ():
        made.paste(resized.resize((left, height), box=box), at)
    return made


def _covering(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture over all of `size` (height, width) at its own shape, what stands out cut off."""
    height, width = size
    wide, high = width, height
    if width * image.height > height * image.width:
        high = image.height * width // image.width
    else:
        wide = image.width * height // image.height
    made = Image.new("RGB", (width, height))
    resized = image.resize((wide, high), Image.Resampling.LANCZOS)
    made.paste(resized, (width // 2 - wide // 2, height // 2 - high // 2))
    return made
