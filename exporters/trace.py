"""A component as a `torch.export` program, traced once for every target that wants it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ingot.runtimes.errors import ExportError, unknown
from ingot.runtimes.signature import Signature, TensorSpec

from .component import Call, Component, FlatModule
from .repairs import repair
from .rewrites import applied

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Sinusoidal embeddings of a timestep near 1000 keep 3 digits in half precision; diffusers computes them in float32.
STAYS_FLOAT32 = ("timestep",)
# NumPy has no bfloat16: such a graph takes and gives float32 and casts inside.
INSIDE_ONLY = ("bfloat16",)


def precision(component: Component, dtype: str) -> str:
    """The dtype that a graph of this component gets when `dtype` is asked for.

    SDXL's VAE overflows in float16, says so with `force_upcast`, and stays in float32.
    """
    if dtype not in DTYPES:
        raise unknown("precision", dtype, DTYPES)
    config = component.source.config
    # True is what diffusers' class says where a checkpoint says nothing: SD 1.5's VAE is fine in float16
    unsaid = "force_upcast" in getattr(config, "_use_default_values", ())
    upcast = getattr(config, "force_upcast", False) and not unsaid
    return "float32" if upcast and dtype == "float16" else dtype


def graph_signature(component: Component, dtype: str = "float32", *, static: bool = False) -> Signature:
    """What the graph takes and gives at a precision: floats in that dtype (float32 for bfloat16), and numbers for names
    where it is static."""
    target = precision(component, dtype)
    target = "float32" if target in INSIDE_ONLY else target
    call = trace_call(component, static=static)

    def adapt(spec: TensorSpec, tensor: Tensor) -> TensorSpec:
        cast = spec.dtype == "float32" and spec.name not in STAYS_FLOAT32
        return TensorSpec(spec.name, target if cast else spec.dtype, tuple(tensor.shape) if static else spec.shape)

    return Signature(
        tuple(adapt(spec, call.inputs[spec.name]) for spec in component.signature.inputs),
        tuple(adapt(spec, call.outputs[spec.name]) for spec in component.signature.outputs),
    )


def trace_call(component: Component, *, static: bool = False) -> Call:
    """The recorded call to trace with: the first one for a static graph, else the one with the largest free dimensions.

    `torch.export` takes a dimension of 1 for a constant, whatever it is told.
    """
    if static:
        return component.calls[0]

    def smallest(call: Call) -> int:
        free = (
            size
            for spec in component.signature.inputs
            for size, dim in zip(call.inputs[spec.name].shape, spec.shape, strict=True)
            if isinstance(dim, str)
        )
        return min(free, default=0)

    return max(component.calls, key=smallest)


def trace(
    component: Component, dtype: str = "float32", *, static: bool = False, rewrites: Sequence[str] = ()
) -> ExportedProgram:
    """Trace the component with its rewrites applied, then the target's own; a second call with the same arguments returns
    the same program.

    Raises ExportError when the model fixes a dimension that the recordings changed, InputError for rewrites that exclude
    each other.
    """
    key = precision(component, dtype), static, (*component.rewrites, *rewrites)
    if key not in component.traces:
        component.traces[key] = _traced(component, *key)
    program: ExportedProgram = component.traces[key]
    return program


def _traced(component: Component, dtype: str, static: bool, rewrites: tuple[str, ...]) -> ExportedProgram:
    signature = graph_signature(component, dtype, static=static)
    call = trace_call(component, static=static)
    inputs = tuple(call.inputs[spec.name].to(getattr(torch, spec.dtype)) for spec in signature.inputs)
    shapes = [{i: Dim.DYNAMIC for i, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in signature.inputs]
    module = in_precision(component.module, dtype)
    # the two are one in float32, and rewriting it twice would restore the rewritten form
    sources = {id(source): source for source in (component.source, module.source)}.values()
    with torch.no_grad(), _any_size(*sources), applied(rewrites, *sources), uncached():
        try:
            program = torch.export.export(module, inputs, dynamic_shapes={"tensors": tuple(shapes)}, strict=False)
        except Exception as error:
            raise ExportError(f"{component.role} cannot be traced: {error}") from error
    repair(program)
    return program


def in_precision(module: FlatModule, dtype: str) -> FlatModule:
    """The module itself in float32, else a copy of it in `dtype` that never holds a second float32 set of weights."""
    if dtype == "float32":
        return module
    target = DTYPES[dtype]
    module = _Cast(module, target) if dtype in INSIDE_ONLY else module
    # deepcopy takes what its memo holds for an object in place of a copy.
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to(target), requires_grad=False)
    return copy.deepcopy(module, memo).to(target)


class _Cast(FlatModule):
    """The module between casts: float32 outside, another dtype inside, timesteps left alone."""

    def __init__(self, module: FlatModule, dtype: torch.dtype) -> None:
        super().__init__(module.source, module.method, module.template, module.input_names)
        self.dtype = dtype

    def named_outputs(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The outputs of the module in its own dtype, as float32."""
        cast = (
            t.to(self.dtype) if t.is_floating_point() and name not in STAYS_FLOAT32 else t
            for name, t in zip(self.input_names, tensors, strict=True)
        )
        found = super().named_outputs(*cast)
        return {name: t.float() if t.is_floating_point() else t for name, t in found.items()}


@contextmanager
def uncached() -> Iterator[None]:
    """Without torch's cache of what operators answer to tensors without values: with sizes that may vary, an answer costs
    more to take out of it than to find out again (torch 2.13, Shapes' UNet: 10.9 s of the processor in place of 14.2)."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@contextmanager
def _any_size(*modules: nn.Module) -> Iterator[None]:
    """Trace diffusers' UNets so that they take every latent size.

    Their forward doubles on the way up where the size divides by 2**num_upsamplers, and otherwise fits each skip
    connection's size. The second computes the first where both apply, so it is the one to trace: more upsamplers
    than any size has factors of two.
    """
    changed = [(module, module.num_upsamplers) for module in modules if hasattr(module, "num_upsamplers")]
    for module, _ in changed:
        vars(module)["num_upsamplers"] = 40
    try:
        yield
    finally:
        for module, number in changed:
            vars(module)["num_upsamplers"] = number
