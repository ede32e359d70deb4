"""Depth to image: a picture is painted anew over its depth, which stands behind the latents as a further channel.

The depth is given, or estimated from the picture (Ranftl et al. 2021, DPT), and brought to -1..1 for each picture.
Stable Diffusion 2's checkpoint of this kind: Rombach et al. 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..engines import Engine, run_in_batches
from ..errors import InputError
from ..images import resize_cubic, to_pictures
from ..schedulers import Scheduler
from .base import Parts
from .call import IMAGE_TO_IMAGE, Call
from .common import Array, Generators, check_array
from .latent_diffusion import Defaults
from .stable_diffusion import StableDiffusion
from .start import Span, Starting, require_share, tiled

ESTIMATOR = "depth_estimator"


@dataclass(kw_only=True)
class DepthCall(Call):
    """What `steps` takes: `depth_map`, (height, width) or (batch, height, width) in any unit, near is large, too."""

    depth_map: Any = None


class DepthToImage(StableDiffusion):
    """diffusers' `StableDiffusionDepth2ImgPipeline`. Without `depth_map` the bundle's own estimator makes one."""

    optional_roles = (*StableDiffusion.optional_roles, ESTIMATOR)
    lazy_roles = (*StableDiffusion.lazy_roles, ESTIMATOR)
    call_type = DepthCall
    further_channels = 1
    defaults: ClassVar[Defaults] = {IMAGE_TO_IMAGE: {"num_inference_steps": 50, "guidance_scale": 7.5, "strength": 0.8}}

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.depth_estimator = parts.engines.get(ESTIMATOR)
        self._processor = parts.processors.get("feature_extractor")

    def _start(
        self, call: Call, scheduler: Scheduler, batch: int, size: tuple[int, int], generators: Generators, span: Span
    ) -> Starting:
        """The noised picture's latents, with its depth behind them."""
        assert isinstance(call, DepthCall)
        channel = self._depth(call, batch, size)
        begin = super()._start(call, scheduler, batch, size, generators, span)
        return lambda: dataclasses.replace(begin(), channels=channel())

    def _depth(self, call: DepthCall, batch: int, size: tuple[int, int]) -> Callable[[], Array]:
        """What makes the channel of depth, (batch, 1, height, width) of latents."""
        height, width = (side // self.vae_scale_factor for side in size)

        def channel(depth: Array) -> Array:
            return tiled(_between(resize_cubic(depth[:, None], (height, width))), batch, "depth_map")

        if call.depth_map is not None:
            given = channel(_given(call.depth_map))
            return lambda: given
        pixels = self._estimator_pixels(call.image)
        require_share(len(pixels), batch, "image")
        return lambda: channel(_estimate(self.depth_estimator, pixels))

    def _estimator_pixels(self, image: Any) -> Array:
        """The pictures as the estimator reads them. Raises InputError for a bundle without one."""
        if self.depth_estimator is None or self._processor is None:
            raise InputError(
                f"depth_map is needed, an array (height, width) or (batch, height, width): this bundle has no {ESTIMATOR} to make it"
            )
        return estimator_pixels(to_pictures(image), self._processor)


def estimator_pixels(pictures: list[Image.Image], processor: Mapping[str, Any]) -> Array:
    """Pictures as transformers' `DPTImageProcessor` of this config makes them: (pictures, 3, height, width).

    Raises InputError for an option that is not followed here.
    """
    if processor.get("do_pad") or not processor.get("do_resize", True):
        raise InputError(
            "this depth estimator's processor pads, or does not resize, which is not followed here: give depth_map"
        )
    found = []
    for picture in pictures:
        height, width = _processed_size(picture, processor)
        resized = picture.resize((width, height), Image.Resampling(processor.get("resample", Image.Resampling.BICUBIC)))
        array = np.asarray(resized, dtype=np.float32)
        if processor.get("do_rescale", True):
            array = array * np.float32(processor.get("rescale_factor", 1 / 255))
        if processor.get("do_normalize", True):
            mean, deviation = (np.asarray(processor[f"image_{name}"], dtype=np.float32) for name in ("mean", "std"))
            array = (array - mean) / deviation
        found.append(array.transpose(2, 0, 1))
    if len({array.shape for array in found}) > 1:
        raise InputError("the pictures of image differ in shape, and so would their depth: give them one by one")
    return np.stack(found)


def _processed_size(picture: Image.Image, processor: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width): the config's, or with `keep_aspect_ratio` the picture's own, scaled as little as possible."""
    size = processor["size"]
    scales = [size["height"] / picture.height, size["width"] / picture.width]
    if processor.get("keep_aspect_ratio"):
        scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2  # of equals the height
    multiple = processor.get("ensure_multiple_of") or 1
    sides = zip((picture.height, picture.width), scales, strict=True)
    height, width = (round(side * scale / multiple) * multiple for side, scale in sides)
    return height, width


def _estimate(estimator: Engine | None, pixels: Array) -> Array:
    """(pictures, height, width) at the estimator's own size."""
    assert estimator is not None
    depth: Array = run_in_batches(estimator, {"pixel_values": pixels}, most=1)["predicted_depth"].astype(np.float32)
    return depth


def _given(depth_map: Any) -> Array:
    array = check_array("depth_map", depth_map)
    if array.ndim not in (2, 3) or not array.size or not np.isfinite(array).all():
        raise InputError(
            f"depth_map must be an array (height, width) or (batch, height, width) of finite numbers, not of shape {array.shape}"
        )
    return array.astype(np.float32).reshape(-1, *array.shape[-2:])


def _between(depth: Array) -> Array:
    """Each picture's depth, (pictures, 1, height, width), between -1 and 1."""
    low, high = (find(depth, axis=(1, 2, 3), keepdims=True) for find in (np.min, np.max))
    if (high == low).any():
        raise InputError("depth_map is the same everywhere, so that it says nothing: give another")
    between: Array = np.float32(2) * (depth - low) / (high - low) - np.float32(1)
    return between


PIPELINE = DepthToImage
