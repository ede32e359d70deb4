"""The whole pipeline's certificate: one picture by diffusers, the same one by the bundle, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ingot.runtimes.errors import ParityError
from ingot.runtimes.load import load
from ingot.runtimes.manifest import ImageParity
from ingot.runtimes.metrics import image_psnr
from ingot.runtimes.pipelines import FAMILIES

# dB against diffusers in float32 with the same seed. Float32 graphs: one grey level of 255 in every pixel is 48 dB.
LIMITS = {"float32": 60.0, "float16": 35.0}
PROMPT, SEED, STEPS, GUIDANCE = "a small yellow star at the left on a purple background", 0, 8, 4.0
_LARGEST = 256  # pixels: larger defaults are compared at this side, which tells as much in a fraction of the time


@dataclass(frozen=True)
class Reference:
    """A picture by diffusers, (height, width, 3) in 0..1, and the call that made it."""

    picture: NDArray[np.float32]
    height: int
    width: int
    count: int


def reference_picture(pipe: Any, size: tuple[int, int] | None, count: int) -> Reference | None:
    """The picture that diffusers makes; None for a pipeline that has no torch-free counterpart yet."""
    if type(pipe).__name__ not in FAMILIES:
        return None
    default = pipe.unet.config.sample_size * pipe.vae_scale_factor
    height, width = size or (min(default, _LARGEST),) * 2
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(count)]
    shown = getattr(pipe, "_progress_bar_config", {})
    checker, pipe.safety_checker = pipe.safety_checker, None
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        PROMPT,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generators,
        num_images_per_prompt=count,
        output_type="np",
    )
    pipe.set_progress_bar_config(**shown)
    pipe.safety_checker = checker
    return Reference(made.images, height, width, count)


def compare_picture(folder: Path, engine: str, reference: Reference, dtype: str) -> ImageParity:
    """Make the picture with the bundle. Raises ParityError when it misses the limit of its precision."""
    pipe = load(folder, engine=engine, verify=False)
    made = pipe(
        PROMPT, height=reference.height, width=reference.width, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        seed=[SEED + i for i in range(reference.count)], num_images_per_prompt=reference.count, output_type="np", progress=False,
    )  # fmt: skip
    psnr = float(image_psnr(reference.picture, made.images))
    if psnr < LIMITS[dtype]:
        raise ParityError(
            f"the {engine} pipeline's picture is {psnr:.1f} dB from diffusers' with the same seed; {dtype} wants {LIMITS[dtype]:.0f} dB"
        )
    return ImageParity(
        psnr_db=psnr if np.isfinite(psnr) else None, limit_db=LIMITS[dtype], prompt=PROMPT, seed=SEED, num_inference_steps=STEPS,
        height=reference.height, width=reference.width,
    )  # fmt: skip
