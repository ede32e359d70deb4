"""An exportable piece of a pipeline: a function of flat tensors, and the calls that it was seen to get."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ingot.runtimes.signature import Signature, TensorSpec

from .axes import Axes, name_shapes
from .rewrites import applied

# What an answer without fields is called: a bare tensor, or a sequence of them.
NAMELESS = "output"


@dataclass(frozen=True)
class Call:
    """One recorded call: the tensors that went in and those that came out, by the names that the graph has for them."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Slot:
    """The place in a call's arguments where the tensor of this name goes."""

    name: str


class FlatModule(nn.Module):
    """A module's method as a function of positional tensors: the constants folded in, the outputs a flat tuple.

    `method` is its name, or a function whose first argument is the module. `input_names` say which tensor stands where.
    The wrapped module is `source`, so a parameter's name here is its own name behind `source.`.
    """

    def __init__(
        self,
        source: nn.Module,
        method: str | Callable[..., Any],
        template: Mapping[str, Any],
        input_names: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.source = source
        self.method = method
        self.template = dict(template)
        self.input_names = input_names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the method with each tensor in its place."""
        return tuple(self.named_outputs(*tensors).values())

    def named_outputs(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The outputs by the model's own field names, nested ones joined by dots."""
        given = dict(zip(self.input_names, tensors, strict=True))
        method = self.method
        function = getattr(self.source, method) if isinstance(method, str) else partial(method, self.source)
        return dict(answer_leaves(function(**{name: _fill(value, given) for name, value in self.template.items()})))


def constants(module: FlatModule) -> dict[str, Any]:
    """What a flat module folds in, by dotted path."""
    return {path: value for path, value in leaves(module.template) if not isinstance(value, Slot)}


@dataclass
class Component:
    """A piece of a pipeline that becomes one graph.

    `role` is the folder's name (`unet`, `vae_decoder`, `text_encoder_2`), `source` the diffusers or transformers module
    with its config and parameter names, `module` the function to trace, `calls` what the real pipeline asked of it and
    what it answered under its `rewrites`, by which every graph of it is traced.
    """

    role: str
    source: nn.Module
    module: FlatModule
    calls: tuple[Call, ...]
    signature: Signature
    traces: dict[tuple[str, bool, tuple[str, ...]], Any] = field(default_factory=dict, repr=False)
    rewrites: tuple[str, ...] = ()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rewritten torch module's answer, by the graph's names. Raises KeyError for a missing input."""
        with torch.no_grad(), applied(self.rewrites, self.source):
            outputs: tuple[Tensor, ...] = self.module(*(inputs[spec.name] for spec in self.signature.inputs))
        return dict(zip((spec.name for spec in self.signature.outputs), outputs, strict=True))


def signature_of(small: Call, large: Call, axes: tuple[Axes, Axes]) -> Signature:
    """What calls of two recordings have in common: dimensions that differ are named by the recordings' sizes."""
    pairs = {f"in {n}": (tuple(t.shape), tuple(large.inputs[n].shape)) for n, t in small.inputs.items()}
    pairs |= {f"out {n}": (tuple(t.shape), tuple(large.outputs[n].shape)) for n, t in small.outputs.items()}
    shapes = name_shapes(pairs, axes)
    return Signature(
        tuple(TensorSpec(n, dtype_name(t), shapes[f"in {n}"]) for n, t in small.inputs.items()),
        tuple(TensorSpec(n, dtype_name(t), shapes[f"out {n}"]) for n, t in small.outputs.items()),
    )


def dtype_name(tensor: Tensor) -> str:
    """NumPy's name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nest of mappings and sequences, with its dotted path."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def answer_leaves(value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a method's answer: by its fields, or as `output`, `output.0`, … where it has none."""
    yield from tensor_leaves(value, "" if isinstance(value, Mapping) else NAMELESS)


def tensor_leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nest of mappings, sequences and diffusers' posteriors, with its dotted path."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensor_leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensor_leaves(item, f"{path}.{index}" if path else str(index))
    elif isinstance(getattr(value, "parameters", None), Tensor):
        # DiagonalGaussianDistribution: mean and log-variance, so that the caller can draw with its own generator.
        yield f"{path}.parameters", value.parameters


def _fill(template: Any, given: Mapping[str, Tensor]) -> Any:
    if isinstance(template, Slot):
        return given[template.name]
    if isinstance(template, dict):
        return {key: _fill(item, given) for key, item in template.items()}
    if isinstance(template, (list, tuple)):
        return type(template)(_fill(item, given) for item in template)
    return template
