"""From a diffusers pipeline to its exportable components, by watching it run.

    components = capture(pipe)
    [c.role for c in components]  # ['text_encoder', 'unet', 'vae_decoder', 'vae_encoder']

The pipeline runs twice, with another batch, height and width the second time. Arguments that were tensors become
inputs under their own names; everything else is folded in; dimensions that differed become names; what went in and came
out stays with the component, to hold every graph against.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ingot.runtimes.errors import ExportError, InputError

from .axes import Axes, distinguishable
from .component import Call, Component, FlatModule, signature_of
from .deepcache import ROLE, require_branch, split
from .dummies import Sizes
from .flatten import FlatCall, flatten
from .ip_adapter import with_scale_input
from .onnx_names import input_name, output_name
from .recording import Recorded, record
from .rewrites import applied, canonical, those_that_apply

# Where pipelines keep how many pixels make a latent, the first that is there, and what they call their denoisers.
FACTORS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_scale_factor",
    "vae_spatial_compression_ratio",
    "movq_scale_factor",
)
DENOISERS = ("unet", "transformer")
# How diffusers refuses a size (Stable Diffusion wants multiples of 8 even where the VAE's factor is 4), torch one that the
# model's layers make nothing of, and Hunyuan-DiT one of which no whole token is left.
REFUSALS = (ValueError, RuntimeError, ZeroDivisionError)


def capture(
    pipe: Any,
    *,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    inputs: Mapping[str, Any] | None = None,
    rewrites: Sequence[str] = (),
    deep_cache: int | None = None,
    refused: dict[str, str] | None = None,
) -> list[Component]:
    """Run `pipe` twice and return its components in the order of their use.

    `size` is (height, width) in pixels and with `batch` the size of the first recording, which a static export keeps;
    None is the smallest that exercises every level of the model. `inputs` adds to or replaces what the pipeline's call
    is given. The pipeline runs with `rewrites` applied, which the components keep, so that graphs are held against what
    the rewritten model answers. `deep_cache` is a branch of the UNet at which it becomes two components (see deepcache).
    The pipeline's modules are put into evaluation mode and float32, in place. Raises ExportError when the pipeline refuses
    every size, or needs an argument that nothing here has an example for; InputError for a rewrite that changes nothing in
    it, or a branch that it does not have; ExportError too for a component that cannot become a function of tensors, unless
    there is a dictionary `refused`, which gets the reason by its role.
    """
    modules = [module.eval().float() for module in pipe.components.values() if isinstance(module, nn.Module)]
    rewrites = _effective(rewrites, modules, type(pipe).__name__)
    if deep_cache is not None:
        require_branch(getattr(pipe, ROLE, None), deep_cache)
    with torch.no_grad(), applied(rewrites, *modules):
        recordings, (first, second) = record_twice(pipe, size, batch, inputs)
        axes = first.axes(), second.axes()
        components = []
        for role, recorded in recordings[0].items():
            try:
                component = _component(role, recorded, recordings[1].get(role, recorded), axes, rewrites)
                components.append(with_scale_input(component, axes))
            except ExportError as error:
                if refused is None:
                    raise
                refused[role] = str(error)
        return components if deep_cache is None else split(components, deep_cache, axes)


def _effective(rewrites: Sequence[str], modules: Sequence[nn.Module], pipeline: str) -> tuple[str, ...]:
    """The rewrites with their values. Raises InputError for one that nothing here gives anything to change."""
    names = canonical(rewrites)
    used = {name for module in modules for name in those_that_apply(names, module)}
    if useless := [name for name in names if name not in used]:
        raise InputError(f"{', '.join(useless)} finds nothing to change in this {pipeline}: leave it out")
    return names


def record_twice(
    pipe: Any, size: tuple[int, int] | None = None, batch: int = 1, inputs: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Recorded]], tuple[Sizes, Sizes]]:
    """What two runs of the pipeline asked of its components, and the sizes of the runs."""
    for first, second in sizes_to_try(pipe, size, batch):
        try:
            return [record(pipe, sizes, inputs or {}) for sizes in (first, second)], (first, second)
        except ExportError:
            raise
        except REFUSALS as error:
            refusal = error
        except (TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
            raise ExportError(f"{type(pipe).__name__} failed while it was recorded: {error}") from error
    raise ExportError(f"{type(pipe).__name__} cannot be run to record it: {refusal}") from refusal


def sizes_to_try(pipe: Any, size: tuple[int, int] | None = None, batch: int = 1) -> Iterator[tuple[Sizes, Sizes]]:
    """Sizes of two recordings, the smallest first, larger ones where a pipeline refuses them."""
    unit = _unit(pipe)
    for attempt in range(5):
        yield _sizes(size, batch, unit << attempt)


def _unit(pipe: Any) -> int:
    """Pixels to a side of the denoiser's smallest feature: the autoencoder's factor, the UNet's halvings, the patch."""
    unit = factor(pipe)
    for name in DENOISERS:
        config = getattr(getattr(pipe, name, None), "config", None)
        if config is not None:
            unit *= _halvings(config) * _largest(config.get("patch_size") or 1)
    processor = getattr(getattr(pipe, "image_processor", None), "config", {})  # FLUX packs two latents into one
    return math.lcm(unit, int(processor.get("vae_scale_factor") or 1))


def factor(pipe: Any) -> int:
    """Pixels to a side of one latent; 1 for a model of pixels."""
    return next((int(getattr(pipe, name)) for name in FACTORS if getattr(pipe, name, None)), 1)


def _halvings(config: Mapping[str, Any]) -> int:
    blocks = config.get("block_out_channels", (0,))
    return int(2 ** (len(blocks) - 1)) if isinstance(blocks, (list, tuple)) else 1


def _largest(value: Any) -> int:
    return int(max(value)) if isinstance(value, (list, tuple)) else int(value)


def _sizes(size: tuple[int, int] | None, batch: int, unit: int) -> tuple[Sizes, Sizes]:
    """Two recordings that tell the axes apart.

    The first may be as small as the model goes, down to one feature to a side. The second, which is traced, may not:
    tracing takes a 1 for a constant.
    """
    first = Sizes(batch, *(size or (unit, 4 * unit)))
    if batch < 1 or min(first.height, first.width) < 1:
        raise InputError(f"batch and size must be positive, not {batch} and {first.height}x{first.width}")
    for count, height, width in itertools.product((2, 3, 4), (3, 2, 4, 5), (2, 3, 4, 5)):
        second = Sizes(count, height * unit, width * unit, index=1)
        if distinguishable(first.axes(), second.axes()):
            return first, second
    raise AssertionError(f"no second size for {first}")


def _component(
    role: str, first: Recorded, second: Recorded, axes: tuple[Axes, Axes], rewrites: Sequence[str]
) -> Component:
    module, runs = flatten(first, second)
    names = _output_names(role, module, runs[0][0])
    done = [[_named(role, module, call, names) for call in run] for run in runs]
    signature = signature_of(done[0][0], done[1][0], axes)
    own = those_that_apply(rewrites, first.source)
    calls = done[0] if runs[0] is runs[1] else [*done[0], *done[1]]
    return Component(role, first.source, module, tuple(calls), signature, rewrites=own)


def _output_names(role: str, module: FlatModule, call: FlatCall) -> list[str] | None:
    """The fields of what one call answered, in its order; None where the graph answers more than the pipeline asked.

    Found by calling the module again, which shows that the flat module does what the pipeline's call did.
    """
    outputs = module.named_outputs(*call.inputs.values())
    for recorded in call.outputs:
        if not any(_close(recorded, tensor) for tensor in outputs.values()):
            raise ExportError(f"{role}: called with its recorded tensors, the model does not answer what it answered")
    in_order = len(outputs) == len(call.outputs) and all(map(_close, call.outputs, outputs.values()))
    return list(outputs) if in_order else None


def _named(role: str, module: FlatModule, call: FlatCall, names: list[str] | None) -> Call:
    """The call under the graph's names; answered anew only where the recorded answer is not all of it."""
    answered = dict(zip(names, call.outputs, strict=True)) if names else module.named_outputs(*call.inputs.values())
    inputs = {input_name(role, name): tensor for name, tensor in call.inputs.items()}
    return Call(inputs, {output_name(role, name, inputs): tensor for name, tensor in answered.items()})


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
