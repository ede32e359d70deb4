"""The sizes that a bundle's pictures may have: its model's own, and those that its graphs were exported for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import pick
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import Graph

from . import grid
from .record import Contestant, Job


def latents(bundle: Bundle) -> tuple[int, int]:
    """Channels, and pixels to a side of one."""
    config = _vae(bundle)
    return int(config.get("latent_channels", 4)), 2 ** (len(config.get("block_out_channels", "four")) - 1)


def own_size(bundle: Bundle) -> tuple[int, int]:
    """(height, width) in pixels that a static bundle was made for, else what the model was trained at."""
    factor = latents(bundle)[1]
    entry = bundle.component(grid.denoiser(bundle))
    side = entry.config.get("sample_size") or 64
    sides = [side, side] if isinstance(side, int) else list(side)
    fixed = _fixed(entry.graphs[0], factor)
    height, width = (own or int(trained) * factor for own, trained in zip(fixed, sides, strict=True))
    return height, width


def check_size(bundle: Bundle, one: Contestant, job: Job) -> None:
    """Raise InputError for a size that the model, or a static denoiser that the contestant takes, does not take."""
    asked, factor = f"--sizes {job.height}x{job.width}", latents(bundle)[1]
    role = grid.denoiser(bundle)
    multiple = factor * (bundle.component(role).config.get("patch_size") or 1)
    for name, value in (("height", job.height), ("width", job.width)):
        if value % multiple:
            below = value // multiple * multiple
            raise InputError(f"{asked}: {name} {value} is not a multiple of {multiple}; {below or multiple} would do")
    wanted = {key: one.options.get(key) for key in ("form", "device")}
    taken = pick(bundle, grid.required_roles(bundle), one.options.get("engine"), one.options.get("precision"), **wanted)
    height, width = _fixed(taken[role], factor)
    if (height or job.height, width or job.width) != (job.height, job.width):
        raise InputError(f"{asked}: {bundle.path} was exported for {one.name} with the static size {height}x{width}")


def _vae(bundle: Bundle) -> Mapping[str, Any]:
    entry = bundle.manifest.components.get("vae_decoder")
    return entry.config if entry else {}


def _fixed(graph: Graph, factor: int) -> tuple[int | None, int | None]:
    """(height, width) in pixels that a denoiser's graph was exported for; None where it takes any."""
    shape = next((spec.shape for spec in graph.signature.inputs if len(spec.shape) == 4), ("", "", "", ""))
    height, width = (dim * factor if isinstance(dim, int) else None for dim in shape[2:])
    return height, width
