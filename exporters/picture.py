"""The whole pipeline's certificate: one picture by diffusers, the same one by the bundle, and how far they are apart."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import ExportError, InputError, ParityError
from ingot.runtimes.load import build
from ingot.runtimes.manifest import ImageParity, Manifest
from ingot.runtimes.metrics import image_psnr
from ingot.runtimes.pipelines import FAMILIES, pipeline_class

from .capture import DENOISERS, factor
from .dummies import Sizes, call_inputs
from .parity import open_in_bundle
from .recording import quietly
from .request import Request
from .stages import CHECKS

# dB against diffusers in float32 with the same seed. Float32 graphs: one grey level of 255 in every pixel is 48 dB.
LIMITS = {"float32": 60.0, "float16": 35.0, "bfloat16": 25.0}
NO_LIMIT = 0.0  # for rewrites that change the picture, token merging: by how much is recorded, not judged
PROMPT, SEED, GUIDANCE = "a small yellow star at the left on a purple background", 0, 4.0
STRENGTH = 0.6  # of a picture to start from, so that both it and the noise show
# The second for denoisers of many parameters (_HEAVY), the third for a static size beyond _LARGEST, where a step takes minutes.
STEPS, STEPS_HEAVY, STEPS_LARGE = 8, 4, 3
_LARGEST = 256  # pixels
# Latents to a side: larger defaults are compared at this size, which tells as much in a fraction of the time; the second is
# for denoisers of that many parameters, of which a step at the first takes seconds.
_LATENTS, _LATENTS_HEAVY, _HEAVY = 32, 16, 300_000_000


@dataclass(frozen=True)
class Reference:
    """Pictures by diffusers, (count, height, width, 3) in 0..1, or a prior's embeddings, and the call that made them:
    `arguments` are those that a bundle's pipeline takes as well."""

    picture: NDArray[np.float32]
    count: int
    steps: int
    arguments: Mapping[str, Any]


def reference_picture(pipe: Any, size: tuple[int, int] | None, count: int) -> Reference | None:
    """The picture that diffusers makes; None for a pipeline that has no torch-free counterpart yet.

    Raises ExportError when diffusers refuses the size.
    """
    if type(pipe).__name__ not in FAMILIES:
        return None
    heavy = _is_heavy(pipe)
    most = (_LATENTS_HEAVY if heavy else _LATENTS) * _pixels(pipe)
    height, width = size or tuple(min(side, most) for side in _said_size(pipe) or (most, most))
    steps = STEPS_LARGE if height * width > _LARGEST**2 else STEPS_HEAVY if heavy else STEPS
    arguments = _arguments(pipe, Sizes(1, height, width), steps, count)
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(count)]
    try:
        with quietly(pipe):
            made = pipe(**{**arguments, "generator": generators})
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{type(pipe).__name__} cannot make a picture of {height}x{width} pixels: {error}") from error
    known = {field.name for field in dataclasses.fields(pipeline_class(type(pipe).__name__).call_type)} | {
        "output_type"
    }
    shared = {name: _plain(value) for name, value in arguments.items() if name in known - {"generator"}}
    return Reference(made[0], count, steps, shared)


def _arguments(pipe: Any, sizes: Sizes, steps: int, count: int) -> dict[str, Any]:
    """A call of diffusers' pipeline: pictures, masks and the like as it is recorded with, and these numbers, as far as it
    takes them."""
    own = {
        "prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": GUIDANCE, "num_images_per_prompt": count,
        "strength": STRENGTH,
    }  # fmt: skip
    taken = inspect.signature(pipe.__call__).parameters
    if "num_images_per_prompt" not in taken:  # a class or nothing stands for each picture
        sizes = dataclasses.replace(sizes, batch=count)
    made = call_inputs(pipe, sizes, {name: value for name, value in own.items() if name in taken})
    return {name: value for name, value in made.items() if name != "negative_prompt"}


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def default_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels that a pipeline makes when nobody names a size. Raises InputError where it does not say."""
    said = _said_size(pipe)
    if said is None:
        raise InputError(f"{type(pipe).__name__} does not say its size: give --size (height=, width=)")
    return said


def _is_heavy(pipe: Any) -> bool:
    parts = [getattr(pipe, name, None) for name in DENOISERS]
    parameters = sum(p.numel() for part in parts if part is not None for p in part.parameters())
    return bool(parameters > _HEAVY)


def _said_size(pipe: Any) -> tuple[int, int] | None:
    parts = [getattr(pipe, name) for name in DENOISERS if hasattr(pipe, name)]
    if not parts:  # a prior, which makes embeddings
        return _LATENTS, _LATENTS
    config = parts[0].config
    side = getattr(pipe, "default_sample_size", None) or config.get("sample_size")  # no config of FLUX says it
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return height * _pixels(pipe), width * _pixels(pipe)


def _pixels(pipe: Any) -> int:
    """Pixels to a side of one latent; of a picture that is to be enlarged 1, whose latents are of its own size."""
    return 1 if "low_res_scheduler" in pipe.components else factor(pipe)


def compare_pictures(
    folder: Path, manifest: Manifest, reference: Reference | None, wanted: Request
) -> dict[str, ImageParity]:
    """Make the picture on every target that was asked for. Raises ParityError for one that misses its limit."""
    if reference is None:
        return {}
    with wanted.stages(CHECKS):
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
    with build(bundle, engine=engine, open_graph=open_in_bundle, safety_checker=None) as pipe:
        seeds = [SEED + i for i in range(reference.count)]
        made = pipe(**reference.arguments, seed=seeds, progress=False)
    psnr, limit = float(image_psnr(reference.picture, made.images)), LIMITS[dtype] if exact else NO_LIMIT
    if not psnr >= limit:
        raise ParityError(
            f"the {engine} pipeline's picture is {psnr:.1f} dB from diffusers' with the same seed; {dtype} wants {limit:.0f} dB"
        )
    shape = reference.picture.shape
    height, width = shape[-3:-1] if len(shape) > 3 else (0, 0)  # a prior's are embeddings
    return ImageParity(
        psnr_db=psnr if np.isfinite(psnr) else None, limit_db=limit, prompt=reference.arguments.get("prompt", ""), seed=SEED,
        num_inference_steps=reference.steps, height=height, width=width,
        class_labels=tuple(reference.arguments.get("class_labels", ())),
    )  # fmt: skip
