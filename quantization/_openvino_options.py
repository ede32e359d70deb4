"""What may be asked of NNCF, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from ingot.runtimes.errors import InputError, unknown
from ingot.runtimes.signature import Signature

Call = Mapping[str, NDArray[Any]]
Mode = Literal["asym", "sym"]
Preset = Literal["performance", "mixed"]
BiasCorrection = Literal["none", "fast", "exact"]
FloatActivations = Literal["conv", "linear"]

MODES: tuple[str, ...] = ("asym", "sym")
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "preset": ("performance", "mixed"),
    "bias_correction": ("none", "fast", "exact"),
    "float_activations": ("conv", "linear"),
}


@dataclass(frozen=True)
class Options:
    """The keywords of `quantize` by their names, see there."""

    mode: Mode
    group_size: int
    ratio: float
    dynamic_group_size: int
    preset: Preset
    smooth_quant_alpha: float | None
    bias_correction: BiasCorrection
    half_range: bool
    float_activations: FloatActivations

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if self.group_size != -1 and self.group_size < 2:
            raise InputError(f"group_size={self.group_size}: at least 2 weights to a scale, or -1 for a channel")
        if not 0 < self.ratio <= 1:
            raise InputError(f"ratio={self.ratio}: a share above 0 and at most 1 is needed")
        if self.dynamic_group_size < 1:
            raise InputError(f"dynamic_group_size={self.dynamic_group_size}: at least 1 activation is needed")
        alpha = self.smooth_quant_alpha
        if alpha is not None and not 0 <= alpha <= 1:
            raise InputError(f"smooth_quant_alpha={alpha}: 0 to 1 is needed, or None for no smoothing")


def usable(scheme: str, calls: Sequence[Call], signature: Signature) -> list[dict[str, NDArray[Any]]]:
    """The recorded inputs that the graph takes. Raises InputError when there are none, or some lack an input."""
    if not calls:
        raise InputError(f"{scheme} needs recorded inputs: name prompts to calibrate on")
    names = [spec.name for spec in signature.inputs]
    for number, call in enumerate(calls):
        missing = sorted(set(names) - set(call))
        if missing:
            raise InputError(f"recorded call {number} lacks {', '.join(missing)}; the graph takes {', '.join(names)}")
    fitting = [{name: call[name] for name in names} for call in calls if signature.admits(call)]
    if not fitting:
        shapes = {spec.name: list(spec.shape) for spec in signature.inputs}
        raise InputError(f"none of {len(calls)} recorded calls has the sizes that the graph fixes: {shapes}")
    return fitting
