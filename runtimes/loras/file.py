"""A LoRA file as layers: low-rank changes of weights, read when they are computed.

    delta = (alpha / rank) * up @ down      a linear layer: down (rank, in), up (out, rank)
    the same with (rank, in * k * k)        a convolution: down (rank, in, k, k), up (out, rank, 1, 1)
    delta[o,i,k,l] = sum_pq up[o,p] mid[p,q,k,l] down[q,i]      LyCORIS' Tucker form, down (rank, in, 1, 1)

Without an alpha it is the rank. Sources: Hu et al. 2021 (arXiv 2106.09685), section 4.1; LyCORIS (Yeh et al. 2023, arXiv
2309.14859), section 3.1, for convolutions.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .names import DENOISER, PREFIXES, flat, read_names
from .safetensors import SafeTensors, open_safetensors

METADATA = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings, from 0.34 on


@dataclass(frozen=True)
class Layer:
    """One module's change. `names` are its tensors in the file, by what they are; `strength` is alpha / rank."""

    source: SafeTensors
    target: str
    module: str  # with underscores
    names: Mapping[str, str]
    strength: float

    @property
    def label(self) -> str:
        """Its name in the file, for messages."""
        return self.names["down"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the change: (out, in) or (out, in, k, k)."""
        out, down = self.source.shape(self.names["up"])[0], self.source.shape(self.names["down"])
        kernel = self.source.shape(self.names["mid"])[2:] if "mid" in self.names else down[2:]
        return (out, *down[1:2], *kernel)

    def delta(self, scale: float) -> NDArray[np.float32]:
        """scale * alpha / rank * up @ down, float32."""
        down, up = (self.source.read(self.names[part]) for part in ("down", "up"))
        up = up.reshape(len(up), -1)
        if "mid" in self.names:
            mid = self.source.read(self.names["mid"])
            down = np.einsum("pqkl,qi->pikl", mid, down.reshape(len(down), -1))
        product = up @ down.reshape(len(down), -1)
        return np.float32(scale * self.strength) * product.reshape(self.shape)


def read_lora(file: str | Path) -> list[Layer]:
    """The layers of a LoRA file in any of the namings that `names` lists. Raises InputError for a file that is none, holds
    another kind of adapter, or lacks halves of layers."""
    source = open_safetensors(Path(file))
    parts: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, part in read_names(source.file, source.entries).items():
        parts[part.target, part.module][part.part] = name
    parts = {key: names for key, names in parts.items() if set(names) != {"alpha"}}
    halves = [next(iter(names.values())) for names in parts.values() if not {"up", "down"} <= set(names)]
    if halves:
        raise InputError(f"{file}: {len(halves)} layers have only one of up and down, such as that of {halves[0]}")
    settings = _settings(source)
    return [_layer(source, *key, names, settings.get(key[0], {})) for key, names in parts.items()]


def _layer(
    source: SafeTensors, target: str, module: str, names: Mapping[str, str], settings: Mapping[str, Any]
) -> Layer:
    up, down = source.shape(names["up"]), source.shape(names["down"])
    mid = source.shape(names["mid"]) if "mid" in names else None
    rank = up[1] if len(up) > 1 else 0
    if not _one_rank(up, down, mid):
        middle = "" if mid is None else f", with {names['mid']} of shape {list(mid)} between them,"
        raise InputError(
            f"{source.file}: {names['up']} of shape {list(up)} and {names['down']} of shape {list(down)}{middle} are no up "
            "and down of one rank"
        )
    if "alpha" in names and math.prod(source.shape(names["alpha"])) != 1:
        raise InputError(f"{source.file}: {names['alpha']} is not one number")
    alpha = float(source.read(names["alpha"]).reshape(-1)[0]) if "alpha" in names else None
    try:
        strength = _strength(module, rank, settings) if alpha is None else alpha / rank
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{source.file}: its {METADATA} do not say how strong {names['down']} is: {error}") from error
    if not math.isfinite(strength):
        raise InputError(f"{source.file}: the alpha of {names['down']} is no finite number")
    return Layer(source, target, module, dict(names), strength)


def _one_rank(up: tuple[int, ...], down: tuple[int, ...], mid: tuple[int, ...] | None) -> bool:
    """Whether these shapes multiply, and to something: the forms are in the file's first lines."""
    if len(up) < 2 or len(down) < 2 or not all((*up, *down, *(mid or ()))) or math.prod(up) != up[0] * up[1]:
        return False
    if mid is None:
        return down[0] == up[1]
    return len(mid) == 4 and mid[:2] == (up[1], down[0]) and math.prod(down) == down[0] * down[1]


def _strength(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    """What PEFT's settings say, where the file has them: https://huggingface.co/docs/peft, `LoraConfig`."""
    alpha = settings.get("lora_alpha", rank)
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        name = flat(pattern.removeprefix("^"))
        if module == name or module.endswith(f"_{name}"):
            alpha = own
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _settings(source: SafeTensors) -> dict[str, dict[str, Any]]:
    """PEFT's settings by target."""
    try:
        given = json.loads(source.metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source.file}: its {METADATA} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"{source.file}: its {METADATA} are no settings by name")
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in given.items():
        component, _, name = key.partition(".")
        found[PREFIXES.get(f"{component}.", DENOISER)][name] = value
    return found
