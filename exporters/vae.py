"""Another autoencoder in place of the checkpoint's own, such as a tiny one, which decodes in a fraction of the time."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from ingot.runtimes.errors import ExportError, InputError

from .checkpoint import PICKLED


def with_vae(pipe: Any, vae: Any, *, allow_pickle: bool = False) -> Any:
    """A copy of the pipeline that decodes with `vae`: a diffusers folder (of the autoencoder, or of a checkpoint that has
    one), or a module.

    Raises InputError for a folder that holds none, or an autoencoder whose latents are not the pipeline's; ExportError
    when diffusers cannot read it.
    """
    old = getattr(pipe, "vae", None)
    if old is None:
        raise InputError(f"{type(pipe).__name__} has no VAE that another could replace")
    new = vae if isinstance(vae, nn.Module) else _read(Path(vae), allow_pickle)
    _require_fit(old, new)
    pipe = copy.copy(pipe)  # the caller's keeps its own
    pipe.register_modules(vae=new.eval().float())
    return pipe


def _read(folder: Path, allow_pickle: bool) -> nn.Module:
    places = [place for place in (folder, folder / "vae") if (place / "config.json").is_file()]
    if not places:
        raise InputError(
            f"{folder} holds no autoencoder: a diffusers folder with a config.json, or with vae/, is needed"
        )
    try:
        name = json.loads((places[0] / "config.json").read_text(encoding="utf-8")).get("_class_name", "")
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{places[0] / 'config.json'} cannot be read as a config: {error}") from error
    kind = getattr(diffusers, name, None) if "Autoencoder" in name else None
    if kind is None:
        raise InputError(f"{places[0]} holds {name or 'a model without a class name'}, not an autoencoder of diffusers")
    pickled = [file for file in places[0].iterdir() if file.suffix in PICKLED]
    if pickled and not allow_pickle and not any(places[0].glob("*.safetensors")):
        raise InputError(f"{pickled[0]} can run any code when it is read; --allow-pickle (allow_pickle=True) trusts it")
    try:
        loaded: nn.Module = kind.from_pretrained(places[0], use_safetensors=None if allow_pickle else True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ExportError(f"diffusers could not load {places[0]}: {error}") from error
    return loaded


def _require_fit(old: Any, new: Any) -> None:
    """Refuse an autoencoder that takes latents of another kind, naming every difference."""
    if not hasattr(new, "decode") or not hasattr(new, "config"):
        raise InputError(f"vae={type(new).__name__}: an autoencoder of diffusers is needed")
    facts = {"channels of latents": _channels, "pixels to a side of one": _factor}
    wrong = [
        f"{read(new)} {name} where the model has {read(old)}" for name, read in facts.items() if read(new) != read(old)
    ]
    if wrong:
        raise InputError(f"the VAE {type(new).__name__} does not fit this model: {'; '.join(wrong)}")


def _channels(vae: Any) -> int:
    return int(vae.config.latent_channels)


def _factor(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))
