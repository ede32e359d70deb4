"""What a pipeline's call is given while it is recorded: a table by parameter name, so that unseen pipelines run too."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ingot.runtimes.errors import ExportError

from .ip_adapter import adapters

# Two steps, since a timestep must vary; one in the second recording, whose larger batch costs most of a capture.
STEPS = (2, 1)
# Pipelines and schedulers that fail with one step: PixArt-α's takes it for a distilled model's, and fails with a scheduler
# that does not say what it predicts; unCLIP's divides by the steps less one, Mochi by half of them (diffusers 0.42).
NOT_ONE_STEP = {"MochiPipeline", "PixArtAlphaPipeline", "UnCLIPScheduler"}
# Where pipelines keep how many frames make one of the latents', the first that is there.
FRAME_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_scale_factor", "vae_temporal_compression_ratio")
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


Example = Callable[[Sizes, Any], Any]
"""Makes an argument, from the sizes and the pipeline."""


def _steps(sizes: Sizes, pipe: Any) -> int:
    kinds = {type(part).__name__ for part in (pipe, *pipe.components.values())}
    return max(STEPS) if kinds & NOT_ONE_STEP else STEPS[sizes.index]


def _scales(sizes: Sizes, pipe: Any) -> Any:
    scale, nets = (1.0, 0.75)[sizes.index], getattr(pipe.controlnet, "nets", None)
    return scale if nets is None else [scale] * len(nets)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _prompts(sizes: Sizes, _: Any) -> list[str]:
    return [WORDS[(sizes.index + i) % len(WORDS)] for i in range(sizes.batch)]


def _pixels(sizes: Sizes, seed: int) -> NDArray[np.uint8]:
    shape = (sizes.height, sizes.width, 3)
    return np.random.RandomState(seed + sizes.index).randint(0, 256, shape).astype(np.uint8)


def _images(sizes: Sizes, _: Any) -> list[Image.Image]:
    return [Image.fromarray(_pixels(sizes, seed)) for seed in range(sizes.batch)]


def _conditions(sizes: Sizes, pipe: Any) -> list[Any]:
    """For a ControlNet or an adapter: a picture for each of the batch, where there are several one for each ControlNet, or
    one for each of the batch for each adapter."""
    nets, adapters = getattr(getattr(pipe, "controlnet", None), "nets", None), _adapters(pipe)
    made = [image.convert("L") for image in _images(sizes, pipe)] if _reads_grey(pipe) else _images(sizes, pipe)
    if adapters:
        return [made] * adapters
    return made if nets is None else made[:1] * len(nets)


def _adapters(pipe: Any) -> int:
    """How many T2I-Adapters there are, if several."""
    return len(getattr(getattr(pipe, "adapter", None), "adapters", ()))


def _reads_grey(pipe: Any) -> bool:
    adapter: Any = getattr(pipe, "adapter", None)
    first = adapter.adapters[0] if _adapters(pipe) else adapter
    return getattr(getattr(first, "config", None), "in_channels", None) == 1


def _adapter_scales(_: Sizes, pipe: Any) -> Any:
    return [1.0] * _adapters(pipe) or 1.0


def _prompt_images(sizes: Sizes, pipe: Any) -> list[Image.Image] | None:
    """A picture for each IP-Adapter that was loaded."""
    count = adapters(getattr(pipe, "unet", None))
    return _images(sizes, pipe)[:1] * count or None


def _image(sizes: Sizes, pipe: Any) -> list[Any]:
    """The condition, unless the pipeline has another name for that."""
    starts = "control_image" in inspect.signature(pipe.__call__).parameters
    return _images(sizes, pipe) if starts else _conditions(sizes, pipe)


def _masks(sizes: Sizes, _: Any) -> list[Image.Image]:
    return [
        Image.fromarray(_pixels(sizes, seed)[..., 0]).point(lambda v: 255 * (v > 127)) for seed in range(sizes.batch)
    ]


def _embeddings(seed: int) -> Example:
    """What a prior answers and its decoder takes: Kandinsky's, (batch, features)."""

    def example(sizes: Sizes, pipe: Any) -> Tensor:
        config = pipe.unet.config
        width = (
            config.cross_attention_dim if config.encoder_hid_dim_type == "text_image_proj" else config.encoder_hid_dim
        )
        return _noise((sizes.batch, width), seed + sizes.index)

    return example


def _feature_maps(sizes: Sizes, pipe: Any) -> Tensor:
    """Those of Wuerstchen's and Stable Cascade's priors, (batch, channels, rows, columns), as small as a decoder takes them."""
    config = pipe.decoder.config
    channels = config.get("effnet_in_channels") or config.get("effnet_embd")
    return _noise((sizes.batch, channels, 2 + sizes.index, 3 + sizes.index), sizes.index)


def _frames(_: Sizes, pipe: Any) -> int:
    """As few as make two frames of latents; the same in both recordings, since models count with it."""
    factors = (getattr(pipe, name, None) for name in FRAME_FACTORS)
    factor = int(next((value for value in factors if value), 1))
    return factor + 1


def _seconds(sizes: Sizes, pipe: Any) -> float | None:
    """As many as make a spectrogram with as many rows as a picture would have."""
    vocoder = getattr(pipe, "vocoder", None)
    if vocoder is None:
        return None
    # the pipelines round rows down
    return float((sizes.height + 0.5) * math.prod(vocoder.config.upsample_rates) / vocoder.config.sampling_rate)


INPUTS: dict[str, Example] = {
    "prompt": _prompts,
    # without it a prior of Kandinsky's shows what stands for it
    "negative_prompt": lambda sizes, pipe: None if hasattr(pipe, "get_zero_embed") else ["blurred"] * sizes.batch,
    "image": _image,
    "control_image": _conditions,
    "mask_image": _masks,
    "example_image": _images,
    "batch_size": lambda sizes, _: sizes.batch,
    "class_labels": lambda sizes, _: [1] * sizes.batch,
    "height": lambda sizes, _: sizes.height,
    "width": lambda sizes, _: sizes.width,
    "num_frames": _frames,
    "video_length": _frames,
    "audio_length_in_s": _seconds,
    "num_inference_steps": _steps,
    "prior_num_inference_steps": _steps,
    "decoder_num_inference_steps": _steps,
    "super_res_num_inference_steps": _steps,
    "image_embeds": _embeddings(0),
    "negative_image_embeds": _embeddings(7),
    "image_embeddings": _feature_maps,
    "hint": lambda sizes, _: _noise((sizes.batch, 3, sizes.height, sizes.width), sizes.index),
    "strength": lambda *_: 1.0,
    # Another value the second time, so that it becomes an input of the graph and not a constant in it; one for each net.
    "controlnet_conditioning_scale": _scales,
    "adapter_conditioning_scale": _adapter_scales,
    "ip_adapter_image": _prompt_images,
    "generator": lambda sizes, _: torch.Generator().manual_seed(sizes.index),
    # Neither "latent", which skips the decoder, nor "pt", which the older pipelines do not know.
    "output_type": lambda *_: "np",
    # The first needs bs4 and ftfy; the second replaces the size that was asked for by one from the pipeline's own list.
    "clean_caption": lambda *_: False,
    "use_resolution_binning": lambda *_: False,
    # Marigold's: the picture as it is, not enlarged first.
    "processing_resolution": lambda *_: 0,
    # Sana's: hundreds of words before each prompt.
    "complex_human_instruction": lambda *_: None,
}


def call_inputs(pipe: Any, sizes: Sizes, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a pipeline's call: what the caller gives, then the table. What is given may be a function of the sizes.

    Raises ExportError listing the parameters without a default that neither knows.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(pipe.__call__).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    known = {name: INPUTS[name] for name, p in parameters.items() if name in INPUTS and not _spared(name, p)}
    values = {name: example(sizes, pipe) for name, example in known.items() if name not in given}
    values |= {name: value(sizes) if callable(value) else value for name, value in given.items()}
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in values and name != "self"]
    if missing:
        raise ExportError(f"no example for the pipeline's argument(s) {', '.join(missing)}: give them in `inputs`")
    return values


def _spared(name: str, parameter: inspect.Parameter) -> bool:
    """Embeddings that stand in for a prompt where it is left out are not given beside one."""
    return name.endswith(("embeds", "embeddings")) and parameter.default is not parameter.empty
