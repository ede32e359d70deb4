"""Any number of tokens for the denoiser, where prompts may be longer than the text encoder: an axis that recordings, whose
prompts all have its length, never see change."""

from __future__ import annotations

import dataclasses

import msgspec
import torch

from ingot.runtimes.errors import InputError
from ingot.runtimes.signature import Signature, TensorSpec

from .component import Call, Component
from .request import Request

INPUT, AXIS = "encoder_hidden_states", "tokens"
TARGETS = ("onnx", "openvino", "torch")  # those that were run so


def require_long_prompts(wanted: Request) -> None:
    """Raise InputError where long prompts are wanted of graphs that are fixed."""
    if not wanted.long_prompts:
        return
    others = [name for name in wanted.targets if name not in TARGETS]
    if others:
        raise InputError(f"long_prompts is for {', '.join(TARGETS)}, not {', '.join(others)}: export these without it")
    if wanted.static:
        raise InputError(
            "long_prompts leaves the number of tokens open, and static fixes every size: leave one of them out"
        )


def with_any_tokens(components: list[Component]) -> list[Component]:
    """The components, those that take text embeddings for any number of tokens. Raises InputError where none does."""
    changed = [_freed(component) if _takes_text(component) else component for component in components]
    if changed == components:
        raise InputError(f"long_prompts: no component of this model takes {INPUT} of a fixed number of tokens")
    return changed


def _takes_text(component: Component) -> bool:
    shapes = [spec.shape for spec in component.signature.inputs if spec.name == INPUT]
    return bool(shapes) and len(shapes[0]) == 3 and isinstance(shapes[0][1], int)


def _freed(component: Component) -> Component:
    """The component with its tokens' axis named, and a call with twice as many to trace and to judge by."""
    call = component.calls[-1]
    embeds = call.inputs[INPUT]
    inputs = {**call.inputs, INPUT: torch.cat([embeds, embeds.flip(1)], dim=1)}
    try:
        longer = Call(inputs, component.run(inputs))
    except (RuntimeError, ValueError) as error:  # other inputs count the tokens, too
        raise InputError(
            f"long_prompts: {component.role} cannot take another number of tokens ({error}): export it without"
        ) from error

    def named(spec: TensorSpec) -> TensorSpec:
        batch, _, width = spec.shape if spec.name == INPUT else (0, 0, 0)
        return msgspec.structs.replace(spec, shape=(batch, AXIS, width)) if spec.name == INPUT else spec

    signature = Signature(tuple(map(named, component.signature.inputs)), component.signature.outputs)
    return dataclasses.replace(component, calls=(*component.calls, longer), signature=signature, traces={})
