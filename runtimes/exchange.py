"""A part of a bundle in place of another's: the VAE, such as a tiny one that decodes in a fraction of the time."""

from __future__ import annotations

from pathlib import Path

from .bundle import Bundle
from .errors import InputError
from .manifest import ComponentEntry
from .pipelines.vae import DECODER, ENCODER

VAE_ROLES = (DECODER, ENCODER)


def other_vae(bundle: Bundle, path: str | Path) -> Bundle:
    """The bundle at `path`, whose VAE fits this bundle's latents.

    Raises InputError where one of them has no VAE, or the latents differ, naming every difference; BundleError for what is no
    bundle.
    """
    other = Bundle.open(path, hashes=False)
    for one in (bundle, other):
        if DECODER not in one.manifest.components:
            raise InputError(f"{one.path} has no {DECODER}; it has: {', '.join(one.manifest.components)}")
    ours, theirs = (_latents(one.manifest.components[DECODER]) for one in (bundle, other))
    wrong = [
        f"{value} {name} where the model has {ours[name]}" for name, value in theirs.items() if value != ours[name]
    ]
    if wrong:
        raise InputError(f"the VAE of {other.path} does not fit {bundle.path}: {'; '.join(wrong)}")
    return other


def _latents(entry: ComponentEntry) -> dict[str, object]:
    """What a VAE's latents are like."""
    config = entry.config
    factor = 2 ** (len(config.get("block_out_channels", ())) - 1)
    return {"channels of latents": config.get("latent_channels"), "pixels to a side of one": factor}
