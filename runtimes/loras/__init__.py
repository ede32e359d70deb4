"""LoRA on graphs that are compiled already: `scale * alpha / rank * up @ down` added to their named weights.

    pipe = ingot.load(bundle, loras=[("style.safetensors", 0.8)])
    pipe.set_loras([("style.safetensors", 0.3), ("colour.safetensors", 1.0)])
    pipe.set_loras([])

Always computed from the weights as they lie on disk, in float32, so that taking a LoRA off leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ..engines import Engine, Later
from ..engines._weights import Adaptable
from ..errors import EngineError, InputError

if TYPE_CHECKING:  # every pipeline imports this file, and few have LoRAs to read
    from .plan import Lora, Shapes

Loras = Iterable[tuple[str | Path, float]]
"""Files with their scales; they add up."""

__all__ = ["Loras", "apply_loras", "read_loras"]

FUSE = "`ingot export MODEL --lora FILE:SCALE` (ingot.export(loras=…)) writes it into a bundle for good"


def apply_loras(
    engines: Mapping[str, Engine],
    loras: Loras,
    *,
    before: Collection[str] = (),
    quantized: Mapping[str, str] = MappingProxyType({}),
) -> frozenset[str]:
    """Have these LoRAs, and no others, in the graphs' weights; the roles of the engines that were changed.

    `before` is what the last call returned; `quantized` are the schemes of the graphs, by role, that hold no float weights
    any more. Every change is made ready before the first takes effect; a run that is under way ends with the weights it
    began with. Raises InputError for a file or a scale that cannot be used, a LoRA for another base and a quantized graph,
    EngineError where an engine cannot change its weights.
    """
    from .plan import plan

    given = read_loras(loras)

    @cache
    def weights(role: str) -> Shapes:
        return _adaptable(role, engines[role], quantized, given).weights()

    changes = plan(given, engines, weights)
    ready = [
        _adaptable(role, engines[role], quantized, given).with_weights(changes.get(role, {}))
        for role in sorted({*changes, *before})
    ]
    for take_effect in ready:
        take_effect()
    return frozenset(changes)


def read_loras(loras: Loras) -> list[Lora]:
    """The LoRAs with their layers. Raises InputError for what is no list of (file, scale)."""
    from .file import read_lora
    from .plan import Lora

    if isinstance(loras, str | Path) or not isinstance(loras, Iterable):
        raise _not_a_list(loras)
    found = []
    for one in loras:
        if not isinstance(one, tuple | list) or len(one) != 2 or not isinstance(one[0], str | Path):
            raise _not_a_list(one)
        file, scale = one
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float | np.integer | np.floating)
            or not math.isfinite(scale)
        ):
            raise InputError(f"the scale of {file} must be a number, not {scale!r}; 1.0 is as it was trained")
        found.append(Lora(Path(file), float(scale), read_lora(file)))
    return found


def _adaptable(role: str, engine: Engine, quantized: Mapping[str, str], loras: list[Lora]) -> Adaptable:
    """The engine, where its weights can be changed."""
    files = ", ".join(str(lora.file) for lora in loras)
    if role in quantized:
        raise InputError(
            f"{files}: the {role} is quantized ({quantized[role]}), and what a LoRA changes are float weights: load a float "
            f"precision, or quantize a bundle with the LoRA in it; {FUSE}"
        )
    opened = engine.opened() if isinstance(engine, Later) else engine
    if not isinstance(opened, Adaptable):
        raise EngineError(
            f"{files}: the {role} runs on {type(opened).__name__}, whose compiled weights cannot be changed; {FUSE}. The graphs "
            "for onnx, openvino and torch take LoRAs when they are loaded"
        )
    return opened


def _not_a_list(given: object) -> InputError:
    return InputError(f'loras are a list of (file, scale), as in [("style.safetensors", 0.8)], not {given!r}')
