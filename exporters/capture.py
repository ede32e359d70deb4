"""From a diffusers pipeline to its exportable components, by watching it run.

    components = capture(pipe)
    [c.role for c in components]  # ['text_encoder', 'unet', 'vae_decoder', 'vae_encoder']

The pipeline runs twice, with another batch, height and width the second time. Arguments that were tensors become
inputs under their own names; everything else is folded in; dimensions that differed become names; what went in and came
out stays with the component, to hold every graph against.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

from .axes import Axes, distinguishable, name_shapes
from .component import Call, Component, FlatModule
from .dummies import Sizes
from .flatten import FlatCall, flatten
from .onnx_names import input_name, output_name
from .recording import Recorded, record


def capture(
    pipe: Any, *, size: tuple[int, int] | None = None, batch: int = 1, inputs: Mapping[str, Any] | None = None
) -> list[Component]:
    """Run `pipe` twice and return its components in the order of their use.

    `size` is (height, width) in pixels and with `batch` the size of the first recording, which a static export keeps;
    None is the smallest that exercises every level of the model. `inputs` adds to or replaces what the pipeline's call
    is given. The pipeline's modules are put into evaluation mode and float32, in place. Raises ExportError when the
    pipeline refuses every size, or needs an argument that nothing here has an example for.
    """
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.eval().float()
    recordings, axes = _record_twice(pipe, size, batch, dict(inputs or {}))
    with torch.no_grad():
        return [
            _component(role, first, recordings[1][role], axes)
            for role, first in recordings[0].items()
            if role in recordings[1]
        ]


def _record_twice(
    pipe: Any, size: tuple[int, int] | None, batch: int, inputs: dict[str, Any]
) -> tuple[list[dict[str, Recorded]], tuple[Axes, Axes]]:
    unit = _unit(pipe)
    for attempt in range(4):
        first, second = _sizes(size, batch, unit << attempt)
        try:
            runs = [record(pipe, sizes, inputs) for sizes in (first, second)]
        except ValueError as error:
            # How diffusers refuses a size (Stable Diffusion wants multiples of 8 even where the VAE's factor is 4).
            refusal = error
        except (RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ExportError(f"{type(pipe).__name__} failed while it was recorded: {error}") from error
        else:
            return runs, (first.axes(), second.axes())
    raise ExportError(f"{type(pipe).__name__} cannot be run to record it: {refusal}") from refusal


def _unit(pipe: Any) -> int:
    """Pixels to a side of the denoiser's smallest feature: the VAE's factor, the UNet's halvings, the patch."""
    unit = int(getattr(pipe, "vae_scale_factor", None) or 1)
    for name in ("unet", "transformer"):
        config = getattr(getattr(pipe, name, None), "config", None)
        if config is not None:
            unit *= 2 ** (len(config.get("block_out_channels", (0,))) - 1) * (config.get("patch_size") or 1)
    return unit


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


def _component(role: str, first: Recorded, second: Recorded, axes: tuple[Axes, Axes]) -> Component:
    module, runs = flatten(first, second)
    names = _output_names(role, module, runs[0][0])
    done = [[_named(role, module, call, names) for call in run] for run in runs]
    small, large = done[0][0], done[1][0]
    pairs = {f"in {n}": (tuple(t.shape), tuple(large.inputs[n].shape)) for n, t in small.inputs.items()}
    pairs |= {f"out {n}": (tuple(t.shape), tuple(large.outputs[n].shape)) for n, t in small.outputs.items()}
    shapes = name_shapes(pairs, axes)
    signature = Signature(
        tuple(TensorSpec(n, dtype_name(t), shapes[f"in {n}"]) for n, t in small.inputs.items()),
        tuple(TensorSpec(n, dtype_name(t), shapes[f"out {n}"]) for n, t in small.outputs.items()),
    )
    return Component(role, first.source, module, tuple(itertools.chain(*done)), signature)


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


def dtype_name(tensor: Tensor) -> str:
    """NumPy's name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")
