"""T2I-Adapter: a small network reads a picture once, and its features are added to the UNet's way down at every step.

    f_k = sum_n s_n adapter_n(picture_n)_k,    hidden_k <- hidden_k + f_k   at each level k of the way down

Source: Mou et al., "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models",
2023 (arXiv 2302.08453), section 3.3 and equation 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engines import Arrays, Engine, run_in_batches
from ..errors import InputError
from ..images import to_conditions
from .base import Parts
from .call import Call
from .common import Array, check_number, check_size
from .control_net import of_nets
from .controls import Batch, of_each, require_for_prompts

ADAPTERS = ("adapter", *(f"adapter_{number}" for number in range(2, 9)))
FEATURES = "down_intrablock_additional_residuals"  # the UNet's inputs, a number each


@dataclass
class T2IAdapters:
    """The adapters of one call: a `Control`. Each reads its pictures (images, channels, height, width) in 0..1 when it is
    first asked; they hold for the first `share` of so many evaluations, of all where `counted` is None."""

    engines: tuple[Engine, ...]
    pictures: tuple[Array, ...]
    scales: tuple[float, ...]
    share: float
    batch: int
    counted: int | None = None
    _features: list[Array] = field(default_factory=list)
    _rows: dict[int, Arrays] = field(default_factory=dict)

    def inputs(self, step: int, steps: int, given: Arrays, rows: int) -> Arrays:  # noqa: ARG002  # see `Control`
        """The features, for every row of guidance; nothing once their share of the steps is over."""
        if step >= int((self.counted or steps) * self.share) or not any(self.scales):
            return {}
        if rows not in self._rows:
            self._features = self._features or self._read()
            # diffusers repeats the pictures' features as a whole, not each for the pictures of its prompt
            self._rows[rows] = {
                f"{FEATURES}.{number}": np.concatenate([array] * (rows * self.batch // len(array)))
                for number, array in enumerate(self._features)
            }
        return self._rows[rows]

    def _read(self) -> list[Array]:
        total: list[Array] = []
        for engine, pictures, scale in zip(self.engines, self.pictures, self.scales, strict=True):
            found = run_in_batches(engine, {engine.signature.inputs[0].name: pictures})
            scaled = [array * np.float32(scale) for array in found.values()]
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
        return total


def t2i_adapters(call: Call, parts: Parts, batch: Batch) -> T2IAdapters:
    """The adapters of a call with a control picture. Raises InputError for pictures, sizes and scales that do not fit them."""
    roles = [role for role in ADAPTERS if role in parts.engines]
    for name, side in zip(("height", "width"), batch.size, strict=True):
        check_size(name, side, multiple_of(parts))
    share = check_number(
        "adapter_conditioning_factor",
        1.0 if call.adapter_conditioning_factor is None else call.adapter_conditioning_factor,
    )
    if not 0 <= share <= 1:
        raise InputError(f"adapter_conditioning_factor must be a share of the steps, from 0 to 1, not {share}")
    scales = of_each("adapter_conditioning_scale", call.adapter_conditioning_scale, 1.0, len(roles))
    read = []
    for role, pictures in zip(roles, of_nets(call.control_image, len(roles), prompts_first=False), strict=True):
        read.append(to_conditions(pictures, batch.size, channels=parts.configs[role]["in_channels"]))
        require_for_prompts(read[-1], batch)
    engines = tuple(parts.engines[role] for role in roles)
    return T2IAdapters(engines, tuple(read), tuple(scales), share, batch.prompts * batch.per_prompt, _counted(call))


def _counted(call: Call) -> int | None:
    """Of how many evaluations the adapters' share is, where not of all.

    In Stable Diffusion XL diffusers (0.42) takes it of the steps that were asked for, but counts evaluations, of which a
    scheduler of second order makes two a step: there the second half goes without. Given timesteps, and those of a run that
    begins late or ends early, count as they are.
    """
    from .stable_diffusion_xl_conditions import XLCall  # for these bundles alone

    if not isinstance(call, XLCall) or call.custom or call.strength is not None or call.denoising_start is not None:
        return None
    if call.denoising_end not in (None, 1):
        return None
    return call.num_inference_steps


def multiple_of(parts: Parts) -> int:
    """What a picture's sides must be a multiple of for the first adapter, which takes squares of pixels apart."""
    config: Any = parts.configs["adapter"]
    return int(config["downscale_factor"])
