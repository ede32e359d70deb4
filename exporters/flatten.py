"""Recorded calls as functions of flat tensors: which arguments vary, which are constants to fold in."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingot.runtimes.errors import ExportError

from .component import FlatModule, Slot, leaves
from .recording import RawCall, Recorded

# Schedulers hand over integers or floats, as they space their steps (linspace gives 946.42): a graph must take both.
AS_FLOAT = ("timestep",)
# Set for the graph whatever the pipeline said, where the method has them.
ALWAYS = {"return_dict": True}
# What a graph can fold in.
PLAIN = (bool, int, float, str, torch.dtype, torch.device)
# A source of chance has no place in a graph: what a posterior draws, the runtime draws.
NEVER = ("generator",)


@dataclass(frozen=True)
class FlatCall:
    """A call's tensors by dotted path, and what the pipeline got back."""

    inputs: dict[str, Tensor]
    outputs: list[Tensor]


def flatten(first: Recorded, second: Recorded) -> tuple[FlatModule, tuple[list[FlatCall], list[FlatCall]]]:
    """The module as a function of the tensors that both recordings have, and the recordings' calls in its terms.

    A graph folds in what the first call was given beside tensors and numbers. Where the second recording never gives the
    same (a size as a whole number, another number of tensors), the first one's calls stand for both: the graph is fixed
    to their sizes. Raises ExportError for an argument that is neither tensor nor plain value.
    """
    forced = _forced(first)
    given = [[dict(leaves(_arguments(call, forced))) for call in run.calls] for run in (first, second)]
    names = _variable(given)
    constants = {path: value for path, value in given[0][0].items() if path not in names}
    runs = tuple(
        [_flat_call(leaf, names, call) for leaf, call in zip(*pair, strict=True) if _alike(leaf, names, constants)]
        for pair in zip(given, (first.calls, second.calls), strict=True)
    )
    template = _template(_arguments(first.calls[0], forced), names)
    return FlatModule(first.source, first.method, template, tuple(names)), (runs[0], runs[1] or runs[0])


def _alike(leaves: dict[str, Any], names: list[str], constants: dict[str, Any]) -> bool:
    """Whether a call has the same arguments, and those that are folded in with the same values."""
    return (
        set(leaves) == {*names, *constants}
        and all(isinstance(leaves[path], Tensor) or _is_number(leaves[path]) for path in names)
        and all(same(leaves[path], value) for path, value in constants.items())
    )


def same(a: Any, b: Any) -> bool:
    """Whether two constants of a call are one."""
    return type(a) is type(b) and bool(a == b)


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


def _variable(runs: list[list[dict[str, Any]]]) -> list[str]:
    """The paths that become inputs: tensors, and numbers that were not always the same.

    A whole number that only another recording changes is a size (of frames, rows, a picture): Python code counts with
    it, so that no tensor can stand for it, but for a timestep.
    """
    names: list[str] = []
    for path, value in runs[0][0].items():
        if isinstance(value, Tensor) or (_is_number(value) and _varies(path, runs)):
            names.append(path)
        elif not (value is None or isinstance(value, PLAIN)):
            raise ExportError(f"argument {path!r} is a {type(value).__name__}, which no graph takes")
    return names


def _varies(path: str, runs: list[list[dict[str, Any]]]) -> bool:
    values = [[call[path] for call in run if path in call] for run in runs]
    together = [value for run in values for value in run]
    if not all(map(_is_number, together)) or all(value == together[0] for value in together):
        return False
    whole = path not in AS_FLOAT and all(isinstance(value, int) for value in together)
    return not whole or any(value != run[0] for run in values for value in run)


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
