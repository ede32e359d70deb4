"""Recorded calls as functions of flat tensors: which arguments vary, which are constants to fold in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingot.runtimes.errors import ExportError

from .component import FlatModule, Slot
from .recording import RawCall, Recorded

# Schedulers hand over integers or floats, as they space their steps (linspace gives 946.42): a graph must take both.
AS_FLOAT = ("timestep",)
# Set for the graph whatever the pipeline said, where the method has them.
ALWAYS = {"return_dict": True}
# A source of chance has no place in a graph: what a posterior draws, the runtime draws.
NEVER = ("generator",)


@dataclass(frozen=True)
class FlatCall:
    """A call's tensors by dotted path, and what the pipeline got back."""

    inputs: dict[str, Tensor]
    outputs: list[Tensor]


def flatten(first: Recorded, second: Recorded) -> tuple[FlatModule, tuple[list[FlatCall], list[FlatCall]]]:
    """The module as a function of the tensors that both recordings have, and the recordings' calls in its terms.

    Raises ExportError when the recordings disagree on which arguments are tensors, or on a constant that no tensor can
    stand for.
    """
    forced = _forced(first)
    leaves = [[dict(_leaves(_arguments(call, forced))) for call in run.calls] for run in (first, second)]
    names = _variable(leaves[0] + leaves[1])
    paths = set(leaves[0][0])
    runs = tuple(
        [_flat_call(leaf, names, call) for leaf, call in zip(*pair, strict=True) if set(leaf) == paths]
        for pair in zip(leaves, (first.calls, second.calls), strict=True)
    )
    if not runs[1]:
        raise ExportError(f"{type(first.source).__name__} was called with other arguments in the second recording")
    template = _template(_arguments(first.calls[0], forced), names)
    return FlatModule(first.source, first.method, template, tuple(names)), (runs[0], runs[1])


def _forced(recorded: Recorded) -> dict[str, Any]:
    parameters = inspect.signature(getattr(recorded.source, recorded.method)).parameters
    forced = {name: value for name, value in ALWAYS.items() if name in parameters}
    # A pooled output marks a CLIP text encoder, whose earlier hidden states clip-skip and SDXL take. Of a T5 only the
    # last is ever used, and its 24 others are large.
    if {"pooler_output", "text_embeds"} & {name for name, _ in recorded.calls[0].outputs}:
        forced["output_hidden_states"] = True
    return forced


def _arguments(call: RawCall, forced: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (call.arguments | forced).items() if name not in NEVER}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _variable(calls: list[dict[str, Any]]) -> list[str]:
    """The paths that become inputs: tensors, and numbers that were not always the same."""
    names: list[str] = []
    for path, value in calls[0].items():
        others = [call[path] for call in calls if path in call]
        if isinstance(value, Tensor) or (_is_number(value) and any(other != value for other in others)):
            names.append(path)
        elif any(type(other) is not type(value) or other != value for other in others):
            raise ExportError(f"argument {path!r} changed between calls, from {value!r}, and is no number")
    return names


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat_call(leaves: dict[str, Any], names: list[str], call: RawCall) -> FlatCall:
    return FlatCall({name: _as_tensor(name, leaves[name]) for name in names}, [tensor for _, tensor in call.outputs])


def _as_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(float(value))
    return value.float() if name in AS_FLOAT else value


def _template(value: Any, names: list[str], path: str = "") -> Any:
    if path in names:
        return Slot(path)
    if isinstance(value, dict):
        return {key: _template(item, names, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_template(item, names, f"{path}.{index}" if path else str(index)) for index, item in enumerate(value)]
    return value
