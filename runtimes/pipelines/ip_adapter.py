"""IP-Adapter: a picture as a prompt. The denoiser attends to a picture's embedding beside the text, layer by layer:

    y = attention(q, K c, V c) + s attention(q, K' p, V' p),    p = projection(image encoder(picture))

The projection and the second keys and values are in the denoiser's graph, the scale s of each adapter and layer is its input
`ip_adapter_scale`, (adapters, layers). The unguided half of the batch is given the embedding of no picture: zeros, or what the
encoder makes of zeros.

Source: Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023 (arXiv
2308.06721), equations 4 and 5; scales by layer are of Wang et al., "InstantStyle", 2024 (arXiv 2404.02733).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines import Arrays, run_in_batches
from ..errors import InputError
from ..image_processor import ClipImageProcessor
from ..images import to_pictures
from ..signature import TensorSpec
from .base import Parts
from .call import Call
from .common import Array, check_array, check_number

if TYPE_CHECKING:
    from PIL import Image

ENCODER = "image_encoder"
SCALE = (
    "ip_adapter_scale"  # the denoiser's input, and its config's entry: the adapted layers and their scales at export
)
EMBEDS = "added_cond_kwargs.image_embeds."
PLACES = ("down", "mid", "up")


@dataclass(frozen=True)
class Prompted:
    """The pictures of one call: a `Control`, and what the denoiser is given for the guided and the unguided rows, by its
    inputs' names, (1, 1, …) each."""

    scale: Array  # (adapters, layers)
    guided: Arrays
    unguided: Arrays

    def inputs(self, step: int, steps: int, given: Arrays, rows: int) -> Arrays:  # noqa: ARG002  # see `Control`
        """The scale alone: embeddings are conditions."""
        return {SCALE: self.scale}


class IPAdapters:
    """The adapters that a bundle's denoiser was exported with."""

    def __init__(self, parts: Parts, denoiser: str) -> None:
        self._specs = [spec for spec in parts.engines[denoiser].signature.inputs if spec.name.startswith(EMBEDS)]
        known: Mapping[str, Any] = parts.configs[denoiser].get(SCALE, {})
        self.layers: tuple[str, ...] = tuple(known.get("layers", ()))
        self._scale = np.asarray(known.get("scale", ()), np.float32)
        self._encoder = parts.engines.get(ENCODER)
        self._processor = parts.processors.get("feature_extractor")

    def __len__(self) -> int:
        return len(self._specs)

    def set_scale(self, scale: object) -> None:
        """The scale of calls that name none. Raises InputError: see `scales`."""
        self._scale = self.scales(scale)

    def scales(self, scale: object) -> Array:
        """(adapters, layers) of one scale for all adapters, or a list of one for each.

        A scale is a number, or by the denoiser's parts {"down": {"block_1": [0.0, 1.0]}, "up": 0.5}: a number for a part or a
        block, or one for each of a block's attentions; what is not named gets 0. Raises InputError.
        """
        given = list(scale) if isinstance(scale, list | tuple) else [scale] * len(self)
        if len(given) != len(self):
            raise InputError(f"{SCALE} has {len(given)} scales for {len(self)} IP-Adapters; give one, or one for each")
        return np.asarray([[_of_layer(one, layer) for layer in self.layers] for one in given], np.float32)

    def read(self, call: Call) -> Callable[[], Prompted]:
        """What makes what a call gives. Without pictures the scale is 0, with which the model is what it was. Raises
        InputError here, before the image encoder runs."""
        scale = self._scale if call.ip_adapter_scale is None else self.scales(call.ip_adapter_scale)
        if call.ip_adapter_image is not None and call.ip_adapter_image_embeds is not None:
            raise InputError("give ip_adapter_image or ip_adapter_image_embeds, not both")
        if call.ip_adapter_image_embeds is not None:
            return partial(self._prompted, scale, self._given(call.ip_adapter_image_embeds))
        if call.ip_adapter_image is not None:
            pictures = self._pixels(call.ip_adapter_image)
            return lambda: self._prompted(scale, self._encoded(pictures))
        if call.ip_adapter_scale is not None:
            raise InputError(f"{SCALE} was given without ip_adapter_image, the picture that it is of")
        nothing = [np.zeros((1, *_numbers(spec)), np.float32) for spec in self._specs]
        return partial(self._prompted, np.zeros_like(scale), list(zip(nothing, nothing, strict=True)))

    def _prompted(self, scale: Array, pairs: Sequence[tuple[Array, Array]]) -> Prompted:
        names = [spec.name for spec in self._specs]
        guided, unguided = ({n: pair[i] for n, pair in zip(names, pairs, strict=True)} for i in (0, 1))
        return Prompted(scale, guided, unguided)

    def _given(self, embeds: object) -> list[tuple[Array, Array]]:
        """Guided and unguided embeddings of a list of arrays (2, 1, …), the unguided first, or (1, 1, …)."""
        several = list(embeds) if isinstance(embeds, list | tuple) else [embeds]
        if len(several) != len(self):
            raise InputError(
                f"ip_adapter_image_embeds has {len(several)} arrays for {len(self)} IP-Adapters; give a list of one for each"
            )
        found = []
        for spec, given in zip(self._specs, several, strict=True):
            array = check_array("ip_adapter_image_embeds", given).astype(np.float32)
            if array.shape[1:] != _numbers(spec) or len(array) not in (1, 2):
                wanted = " or ".join(str((rows, *_numbers(spec))) for rows in (2, 1))
                raise InputError(
                    f"ip_adapter_image_embeds has shape {array.shape}, not {wanted}: the unguided embedding first, then the guided"
                )
            if len(array) == 1 and len(_numbers(spec)) > 2:
                raise InputError(
                    "ip_adapter_image_embeds has one row; this adapter's want two: of no picture, then of the picture"
                )
            found.append((array[-1:], array[:1] if len(array) == 2 else np.zeros_like(array)))
        return found

    def _pixels(self, images: object) -> list[Array]:
        """A picture for each adapter as the image encoder reads it. Raises InputError for a bundle without one."""
        if self._encoder is None or self._processor is None:
            raise InputError(
                f"ip_adapter_image was given, and this bundle has no {ENCODER} to read it: give ip_adapter_image_embeds"
            )
        pictures = _one_each(images, len(self))
        processor = ClipImageProcessor(self._processor)
        return [processor([one]) for one in pictures]

    def _encoded(self, pictures: Sequence[Array]) -> list[tuple[Array, Array]]:
        """Guided and unguided embeddings of a picture for each adapter."""
        return [self._embeddings(one, spec) for one, spec in zip(pictures, self._specs, strict=True)]

    def _embeddings(self, pixels: Array, spec: TensorSpec) -> tuple[Array, Array]:
        """By the rank that the denoiser wants: a vector, or the encoder's last hidden states but one."""
        numbers = _numbers(spec)
        if len(numbers) == 2:
            embeds = self._encode(pixels)["image_embeds"][None]
            unguided = np.zeros_like(embeds)
        else:
            embeds, unguided = (_hidden(self._encode(one))[None] for one in (pixels, np.zeros_like(pixels)))
        if embeds.shape[1:] != numbers:
            raise InputError(
                f"this bundle's {ENCODER} answers {embeds.shape[1:]} where {spec.name} is {numbers}: give ip_adapter_image_embeds"
            )
        return embeds, unguided

    def _encode(self, pixels: Array) -> Arrays:
        assert self._encoder is not None
        out = run_in_batches(self._encoder, {"pixel_values": pixels}, most=1)
        return {name: array.astype(np.float32) for name, array in out.items()}


def _hidden(out: Arrays) -> Array:
    states = [array for name, array in out.items() if name.startswith("hidden_states.")]
    if not states:
        raise InputError(f"this bundle's {ENCODER} was exported without the hidden states that this IP-Adapter takes")
    return states[-2]


def _numbers(spec: TensorSpec) -> tuple[int, ...]:
    """The dimensions of an embedding behind the batch's: pictures, and what there is of each."""
    return tuple(int(dim) for dim in spec.shape[1:])


def _one_each(images: object, count: int) -> list[Image.Image]:
    given: Sequence[Any] = list(images) if isinstance(images, list | tuple) else [images]
    given = [one[0] if isinstance(one, list | tuple) and len(one) == 1 else one for one in given]
    if len(given) != count:
        raise InputError(
            f"ip_adapter_image has {len(given)} pictures for {count} IP-Adapters; give a list of one for each"
        )
    if any(isinstance(one, list | tuple) for one in given):
        raise InputError("ip_adapter_image has several pictures for one IP-Adapter; this bundle's take one each")
    return [to_pictures(one, name="ip_adapter_image")[0] for one in given]


def _of_layer(scale: Any, layer: str) -> float:
    """An adapter's scale at a layer of the denoiser, such as `down_blocks.1.attentions.0.transformer_blocks.0.attn2`."""
    if not isinstance(scale, Mapping):
        return check_number(SCALE, scale)
    if strange := [key for key in scale if key not in PLACES]:
        raise InputError(f"{SCALE} names {', '.join(map(repr, strange))}; a denoiser's parts are {', '.join(PLACES)}")
    words = layer.split(".")
    found = scale.get(words[0].partition("_")[0], 0.0)
    if isinstance(found, Mapping):
        found = found.get(f"block_{words[1]}", 0.0)
    if isinstance(found, list | tuple):
        number = int(words[words.index("attentions") + 1])
        if number >= len(found):
            raise InputError(
                f"{SCALE} has {len(found)} numbers for a block with at least {number + 1} attentions, at {layer}"
            )
        found = found[number]
    return check_number(SCALE, found)
