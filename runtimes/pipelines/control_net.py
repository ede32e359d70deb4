"""ControlNet: copies of a UNet's way down that read a picture, and add what they find to its skip connections.

    r_i = sum_n  s_n w_i net_n(x_t, t, c, picture_n)_i,    skip_i <- skip_i + r_i

The sum is over the nets that act at a step, s_n is a net's scale, and w_i is 1; in guess mode w_i = 10^(i / (N - 1) - 1) for
residual i of N, the middle one last, and the unguided half of the batch goes without. A net that answers means over the picture
(`global_pool_conditions`) guesses always, with w_i = 1.

Source: Zhang, Rao and Agrawala, "Adding Conditional Control to Text-to-Image Diffusion Models", 2023 (arXiv 2302.05543),
section 3.2; guess mode is of the authors' programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines import Arrays, Engine, run_in_batches
from ..errors import InputError
from ..images import to_conditions
from ..signature import TensorSpec
from .base import Parts
from .call import Call
from .common import Array, timestep_input
from .controls import Batch, of_each, repeated

NETS = ("controlnet", *(f"controlnet_{number}" for number in range(2, 9)))
DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"  # the UNet's inputs
ANSWERS = {"down_block_res_samples": DOWN, "mid_block_res_sample": MIDDLE}  # a net's outputs, by what they become
NESTED = (
    "added_cond_kwargs."  # before the names of SDXL's conditions in the graphs of the second net and those behind it
)


@dataclass(frozen=True)
class Net:
    """One of a call's nets: its picture (batch, channels, height, width) in 0..1, its scale, and the shares of the steps
    where it starts and ends."""

    engine: Engine
    picture: Array
    scale: float
    start: float
    end: float
    pooled: bool = False

    def acts(self, step: int, steps: int) -> bool:
        """Whether it adds anything at a step of so many: diffusers' rule for its interval."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end

    def residuals(self, given: Arrays, guess: bool) -> Arrays:
        """What it adds to a UNet that is given this, by the UNet's names."""
        out = run_in_batches(
            self.engine, {spec.name: self._input(spec, given) for spec in self.engine.signature.inputs}
        )
        parts = [
            (root, dot + number, array) for name, array in out.items() for root, dot, number in [name.partition(".")]
        ]
        found = {ANSWERS[root] + number: array for root, number, array in parts}
        if not guess or self.pooled:
            return found
        weights = np.logspace(-1, 0, len(found), dtype=np.float32)  # the middle one is the last of a net's answers
        return {name: array * weight for (name, array), weight in zip(found.items(), weights, strict=True)}

    def _input(self, spec: TensorSpec, given: Arrays) -> Array:
        """One input of the net's graph; the UNet's own, but for the picture and the scale."""
        rows = len(given["sample"])
        if spec.name == "controlnet_cond":
            return np.concatenate([self.picture] * (rows // len(self.picture)))
        if spec.name == "conditioning_scale":
            return np.asarray(self.scale, spec.dtype)
        if spec.name == "timestep":
            return timestep_input(self.engine, float(given["timestep"].flat[0]), rows)
        array = given[spec.name.removeprefix(NESTED)]
        # a UNet made for inpainting takes further channels, which are not the net's
        return array[:, : spec.shape[1]] if spec.name == "sample" and isinstance(spec.shape[1], int) else array


@dataclass(frozen=True)
class ControlNets:
    """The nets of one call: a `Control`."""

    nets: tuple[Net, ...]
    guess: bool

    def inputs(self, step: int, steps: int, given: Arrays, rows: int) -> Arrays:
        """The residuals of all nets that act at a step; nothing where none does."""
        half = self.guess and rows > 1
        asked = _guided(given, rows) if half else given
        total: Arrays = {}
        for net in self.nets:
            if net.acts(step, steps):
                found = net.residuals(asked, self.guess)
                total = {name: total[name] + array for name, array in found.items()} if total else found
        return {name: _behind_zeros(array, rows) for name, array in total.items()} if half else total


def control_nets(call: Call, parts: Parts, batch: Batch) -> ControlNets:
    """The nets of a call with a control picture. Raises InputError for pictures, scales and intervals that do not fit them."""
    roles = [role for role in NETS if role in parts.engines]
    count = len(roles)
    scales = of_each("controlnet_conditioning_scale", call.controlnet_conditioning_scale, 1.0, count)
    starts = of_each("control_guidance_start", call.control_guidance_start, 0.0, count)
    ends = of_each("control_guidance_end", call.control_guidance_end, 1.0, count)
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start < end <= 1:
            raise InputError(
                f"control_guidance_start={start} and control_guidance_end={end} must be shares of the steps, from 0 to 1, the first "
                "below the second"
            )
    configs = [parts.configs[role] for role in roles]
    nets = []
    for role, config, pictures, scale, start, end in zip(
        roles, configs, of_nets(call.control_image, count), scales, starts, ends, strict=True
    ):
        read = to_conditions(pictures, batch.size, channels=config.get("conditioning_channels", 3))
        pooled = bool(config.get("global_pool_conditions"))
        nets.append(Net(parts.engines[role], repeated(read, batch), scale, start, end, pooled))
    return ControlNets(tuple(nets), bool(call.guess_mode) or nets[0].pooled)


def of_nets(images: Any, count: int, *, prompts_first: bool = True) -> list[Any]:
    """The pictures of each of so many nets. Raises InputError.

    For several nets `images` has one for each, or lists: of one for each net, a list for each prompt, as diffusers has it for
    ControlNets; not `prompts_first`, of one for each prompt, a list for each net, as it has it for adapters.
    """
    if count == 1:
        return [images]
    given = list(images) if isinstance(images, list | tuple) else [images]
    nested = [one for one in given if isinstance(one, list | tuple)]
    if prompts_first and nested and len(nested) == len(given):
        if any(len(one) != count for one in nested):
            raise InputError(
                f"control_image has lists of {sorted({len(one) for one in nested})} pictures for {count} nets; each wants {count}"
            )
        return [list(pictures) for pictures in zip(*nested, strict=True)]
    if len(given) != count:
        raise InputError(f"control_image has {len(given)} pictures for {count} nets; give a list of one for each")
    return given


def _guided(given: Arrays, rows: int) -> Arrays:
    """The guided rows of what is given, the last; what has no rows as it is."""
    total = len(given["sample"])
    first = total // rows * (rows - 1)
    return {name: array[first:] if np.shape(array)[:1] == (total,) else array for name, array in given.items()}


def _behind_zeros(array: Array, rows: int) -> Array:
    return np.concatenate([np.zeros_like(array)] * (rows - 1) + [array])
