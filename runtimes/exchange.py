"""A part of a bundle in place of another's: the VAE, such as a tiny one that decodes in a fraction of the time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .bundle import Bundle
from .choice import Precision, choose, engines_of, pick
from .errors import InputError
from .manifest import ComponentEntry, Graph
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


def shared_precision(precision: Precision) -> tuple[Precision, Precision]:
    """What a precision says of a bundle whose VAE is replaced, and what of the VAE: by role each has its own, a name is for
    both."""
    if precision is None or isinstance(precision, str):
        return precision, precision
    vae = {role: name for role, name in precision.items() if role in VAE_ROLES}
    return {role: name for role, name in precision.items() if role not in vae} or None, vae or None


def vae_graphs(
    other: Bundle, roles: Sequence[str], engine: str | None, device: str | None, precision: Precision, form: str | None
) -> dict[str, Graph]:
    """The VAE's graphs of the other bundle: for the engine of the rest where it has them. Raises InputError for a precision by
    role that it has not."""
    named = None if isinstance(precision, str) else precision
    if engine not in engines_of(other, roles, named):
        engine = choose(other, roles, None, device, named).engine
    return pick(other, roles, engine, precision, form=form, device=device)


def _latents(entry: ComponentEntry) -> dict[str, object]:
    """What a VAE's latents are like."""
    config = entry.config
    factor = 2 ** (len(config.get("block_out_channels", ())) - 1)
    return {"channels of latents": config.get("latent_channels"), "pixels to a side of one": factor}
