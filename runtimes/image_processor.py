"""CLIP's image processor with PIL and NumPy: the pictures that a CLIP vision model wants, by the checkpoint's own config.

    resize (shortest edge to `size`) -> crop the middle (`crop_size`) -> / 255 -> (x - mean) / deviation

Follows transformers' `CLIPImageProcessor` on PIL, the one whose numbers CLIP was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError
from .late import Late

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = Late("PIL.Image")

# of CLIP's training pictures: Radford et al. 2021, and what every config says
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL's number of it, which configs name
DEFAULTS: Mapping[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": BICUBIC, "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": MEAN, "image_std": DEVIATION,
}  # fmt: skip


class ClipImageProcessor:
    """`processor(pictures)`; `config` is the checkpoint's preprocessor_config.json, whose gaps CLIP's defaults fill."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        said = {name: value for name, value in config.items() if value is not None}
        self.config = {**DEFAULTS, **said}
        size = self.config["size"]
        size = {"shortest_edge": size} if isinstance(size, int) else size  # how old configs say it
        self._edge, self._size = size.get("shortest_edge"), _sides(size)
        self._crop = _sides(self.config["crop_size"])
        if self.config["do_resize"] and self._edge is None and self._size is None:
            raise BundleError(
                f"an image processor's size is {self.config['size']}; shortest_edge, or height and width, are read"
            )

    def __call__(self, pictures: Image.Image | Sequence[Image.Image]) -> NDArray[np.float32]:
        """Pixel values, (pictures, 3, height, width) in float32. Raises InputError for what is no PIL picture."""
        several = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
        wrong = [type(one).__name__ for one in several if not isinstance(one, Image.Image)]
        if wrong or not several:
            raise InputError(f"PIL pictures are needed, not {wrong[0] if wrong else 'an empty list'}")
        return np.stack([self._one(picture) for picture in several])

    def _one(self, picture: Image.Image) -> NDArray[np.float32]:
        config = self.config
        picture = picture.convert("RGB")
        if config["do_resize"]:
            height, width = self._resized(picture)
            picture = picture.resize((width, height), Image.Resampling(config["resample"]))
        pixels: NDArray[Any] = np.asarray(picture).transpose(2, 0, 1)
        if config["do_center_crop"] and self._crop is not None:
            pixels = _cropped(pixels, self._crop)
        if config["do_rescale"]:
            pixels = (pixels.astype(np.float64) * config["rescale_factor"]).astype(np.float32)
        pixels = pixels.astype(np.float32)
        if config["do_normalize"]:
            mean, deviation = (
                np.array(config[name], np.float32).reshape(-1, 1, 1) for name in ("image_mean", "image_std")
            )
            pixels = (pixels - mean) / deviation
        return pixels

    def _resized(self, picture: Image.Image) -> tuple[int, int]:
        """(height, width) that a picture is brought to: the proportions kept where the config names one edge."""
        if self._size is not None:
            return self._size
        assert self._edge is not None
        short, long = sorted(picture.size)
        longer = int(self._edge * long / short)
        return (longer, self._edge) if picture.width <= picture.height else (self._edge, longer)


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return (size, size)
    return None if size.get("height") is None else (int(size["height"]), int(size["width"]))


def _cropped(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The middle of a picture (3, height, width), with black around it where the picture is smaller."""
    out = np.zeros((len(pixels), *size), pixels.dtype)
    places = []
    for had, wanted in zip(pixels.shape[1:], size, strict=True):
        start = (had - wanted) // 2  # rounds down, for what is missing too
        if had < wanted:
            places.append((slice(0, had), slice(-start, -start + had)))
        else:
            places.append((slice(start, start + wanted), slice(0, wanted)))
    (rows, out_rows), (columns, out_columns) = places
    out[:, out_rows, out_columns] = pixels[:, rows, columns]
    return out
