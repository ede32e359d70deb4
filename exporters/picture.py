"""The whole pipeline's certificate: one picture by diffusers, the same one by the bundle, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError, ParityError
from ingot.runtimes.load import build
from ingot.runtimes.manifest import ImageParity, Manifest
from ingot.runtimes.metrics import image_psnr
from ingot.runtimes.pipelines import FAMILIES

from .parity import open_in_bundle
from .recording import quietly
from .request import Request

# dB against diffusers in float32 with the same seed. Float32 graphs: one grey level of 255 in every pixel is 48 dB.
LIMITS = {"float32": 60.0, "float16": 35.0, "bfloat16": 25.0}
NO_LIMIT = 0.0  # for rewrites that change the picture, token merging: by how much is recorded, not judged
PROMPT, SEED, GUIDANCE = "a small yellow star at the left on a purple background", 0, 4.0
STEPS, STEPS_LARGE = 8, 3  # the second for a static size beyond _LARGEST, where a step takes minutes on a CPU
_LARGEST = 256  # pixels: larger defaults are compared at this side, which tells as much in a fraction of the time


@dataclass(frozen=True)
class Reference:
    """A picture by diffusers, (height, width, 3) in 0..1, and the call that made it."""

    picture: NDArray[np.float32]
    height: int
    width: int
    count: int
    steps: int


def reference_picture(pipe: Any, size: tuple[int, int] | None, count: int) -> Reference | None:
    """The picture that diffusers makes; None for a pipeline that has no torch-free counterpart yet.

    Raises ExportError when diffusers refuses the size.
    """
    if type(pipe).__name__ not in FAMILIES:
        return None
    height, width = size or tuple(min(side, _LARGEST) for side in default_size(pipe))
    steps = STEPS if height * width <= _LARGEST**2 else STEPS_LARGE
    call = {"height": height, "width": width, "num_images_per_prompt": count, "output_type": "np"}
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(count)]
    try:
        with quietly(pipe):
            made = pipe(PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generators, **call)
    except ValueError as error:
        raise ExportError(f"{type(pipe).__name__} cannot make a picture of {height}x{width} pixels: {error}") from error
    return Reference(made.images, height, width, count, steps)


def default_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels that a latent pipeline makes when nobody names a size."""
    side = next(getattr(pipe, name) for name in ("unet", "transformer") if hasattr(pipe, name)).config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def compare_pictures(
    folder: Path, manifest: Manifest, reference: Reference | None, wanted: Request
) -> dict[str, ImageParity]:
    """Make the picture on every target that was asked for. Raises ParityError for one that misses its limit."""
    if reference is None:
        return {}
    pictures = {
        name: compare_picture(Bundle(folder, manifest), name, reference, dtype, exact=wanted.exact)
        for name, dtype in wanted.dtypes.items()
    }
    for name, picture in pictures.items() if wanted.progress else ():
        far = "equal to" if picture.psnr_db is None else f"{picture.psnr_db:.1f} dB from"
        tqdm.write(f"picture on {name}: {far} diffusers'")
    return pictures


def compare_picture(
    bundle: Bundle, engine: str, reference: Reference, dtype: str, *, exact: bool = True
) -> ImageParity:
    """Make the picture with the bundle. Raises ParityError when it misses the limit of its precision."""
    with build(bundle, engine=engine, open_graph=open_in_bundle) as pipe:
        made = pipe(
            PROMPT, height=reference.height, width=reference.width, num_inference_steps=reference.steps, guidance_scale=GUIDANCE,
            seed=[SEED + i for i in range(reference.count)], num_images_per_prompt=reference.count, output_type="np", progress=False,
        )  # fmt: skip
    psnr, limit = float(image_psnr(reference.picture, made.images)), LIMITS[dtype] if exact else NO_LIMIT
    if not psnr >= limit:
        raise ParityError(
            f"the {engine} pipeline's picture is {psnr:.1f} dB from diffusers' with the same seed; {dtype} wants {limit:.0f} dB"
        )
    return ImageParity(
        psnr_db=psnr if np.isfinite(psnr) else None, limit_db=limit, prompt=PROMPT, seed=SEED, num_inference_steps=reference.steps,
        height=reference.height, width=reference.width,
    )  # fmt: skip
