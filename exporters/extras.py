"""What a pipeline needs of a component beside its graph: small arrays, as files in the component's folder.

final_layer_norm.npz   of a CLIP text encoder: weight, bias, eps; `clip_skip` applies it to an earlier layer
latents_to_rgb.npz     of a VAE's decoder: matrix (channels, 3), offset (3,); previews are latents through it
embedding_statistics.npz   of a prior: mean, deviation (1, width) of the embeddings that it makes at unit variance
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .component import Component

NORM, PREVIEW, STATISTICS = "final_layer_norm", "latents_to_rgb", "embedding_statistics"
# 16 pictures of 8 x 8 latents: 1024 equations for 5 unknowns of each colour. A full-size VAE takes 3 seconds for them.
PICTURES, LATENTS = 16, 8
Arrays = dict[str, NDArray[np.float32]]


def write_extras(component: Component, folder: Path) -> dict[str, str]:
    """Write what there is for a component into its folder in the bundle, where it is not there yet; the files' names by what
    they are."""
    written = {}
    for name, make in _found(component).items():
        file = folder / component.role / f"{name}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **make())  # type: ignore[arg-type]  # its stub takes the names for options
        written[name] = file.relative_to(folder).as_posix()
    return written


def _found(component: Component) -> dict[str, Callable[[], Arrays]]:
    source: Any = component.source
    # transformers 5 has a CLIP text encoder's norm in the model, those before it in `text_model`
    norm = getattr(getattr(source, "text_model", source), NORM, None)
    if component.role.startswith("text_encoder") and isinstance(norm, torch.nn.LayerNorm):
        return {NORM: lambda: _norm(norm)}
    if component.role == "vae_decoder" and _is_of_pictures(component):
        return {PREVIEW: lambda: fit_preview(source)}
    if component.role == "prior" and hasattr(source, "clip_std"):
        return {STATISTICS: lambda: _statistics(source)}
    return {}


def _statistics(prior: Any) -> Arrays:
    return {"mean": prior.clip_mean.detach().float().numpy(), "deviation": prior.clip_std.detach().float().numpy()}


def _norm(norm: torch.nn.LayerNorm) -> Arrays:
    weight, bias = (part.detach().float().numpy() for part in (norm.weight, norm.bias))
    return {"weight": weight, "bias": bias, "eps": np.array(norm.eps, np.float32)}


def _is_of_pictures(component: Component) -> bool:
    """Whether it decodes latents (batch, channels, height, width) to three colours, one by one, and can encode."""
    call = component.calls[0]
    shapes = [tuple(tensor.shape) for tensor in (*call.inputs.values(), *call.outputs.values())]
    source: Any = component.source
    config = source.config
    return (
        [len(shape) for shape in shapes] == [4, 4]
        and shapes[1][1] == 3
        and hasattr(source, "encode")
        and "num_frames" not in inspect.signature(source.decode).parameters
        and all(hasattr(config, name) for name in ("scaling_factor", "block_out_channels", "latent_channels"))
    )


def fit_preview(vae: Any) -> Arrays:
    """The matrix and the offset that come nearest to the decoder's colours, in -1..1, by least squares over latents of
    coloured patches: rgb = latents . matrix + offset, with the latents as a denoiser sees them."""
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    scale, shift = _scaling(config)
    rows, colours = [], []
    with torch.no_grad():
        for picture in _patches(factor):
            found = vae.encode(picture)
            z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
            decoded = torch.nn.functional.avg_pool2d(vae.decode(z).sample, factor).clamp(-1, 1)
            rows.append(_pixels((z - shift) * scale))
            colours.append(_pixels(decoded))
    equations = np.concatenate(rows)
    ones = np.ones((len(equations), 1), np.float32)
    found, *_ = np.linalg.lstsq(np.hstack([equations, ones]), np.concatenate(colours), rcond=None)
    return {"matrix": found[:-1].astype(np.float32), "offset": found[-1].astype(np.float32)}


def _scaling(config: Any) -> tuple[Any, Any]:
    """latents = (z - shift) * scale: runtimes.pipelines.vae."""
    mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
    shift, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, deviation))
    return config.scaling_factor / std, shift


def _patches(factor: int) -> list[torch.Tensor]:
    """Pictures (1, 3, side, side) in -1..1: one random colour, or four, each in a quarter."""
    generator = torch.Generator().manual_seed(0)
    side = LATENTS * factor
    fields = [torch.rand((1, 3, 1 + i % 2, 1 + i % 2), generator=generator) * 2 - 1 for i in range(PICTURES)]
    return [torch.nn.functional.interpolate(field, size=(side, side), mode="nearest") for field in fields]


def _pixels(planes: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = planes[0].flatten(1).T.float().numpy()
    return array
