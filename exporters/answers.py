"""A graph's outputs as what the module itself would answer: its output class, a tuple, or a bare tensor."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from typing import Any

from diffusers.models.autoencoders import vae as autoencoders
from diffusers.utils import BaseOutput
from torch import Tensor

from ingot.runtimes.signature import Signature

from .component import NAMELESS
from .onnx_names import OUTPUTS
from .recording import Place

POSTERIOR = "parameters"
"""The one field of a posterior that a graph answers: mean and log-variance."""


class Answer:
    """How the answer of one method is put together from a graph's outputs."""

    def __init__(self, place: Place, original: Any, signature: Signature) -> None:
        inputs = {spec.name for spec in signature.inputs}
        names = [spec.name for spec in signature.outputs]
        candidates = {name: _fields(place.role, name, inputs) for name in names}
        self._class = _output_class(place.module, original, list(candidates.values()))
        known = None if self._class is None else _field_names(self._class)
        self._paths = {name: _first_known(found, known) for name, found in candidates.items()}
        self._source = place.module

    def __call__(self, tensors: Mapping[str, Tensor], *, fields: Container[str], return_dict: bool) -> Any:
        """The answer without `fields`; a tuple where the caller wants no class."""
        nest: dict[str, Any] = {}
        for name, tensor in tensors.items():
            path = self._paths[name]
            if path is not None and path.partition(".")[0] not in fields:
                _insert(nest, path.split("."), tensor)
        if list(nest) == [NAMELESS]:
            value = nest[NAMELESS]
            return value if isinstance(value, Tensor) else list(_sequences(value))
        values = {name: self._value(name, value) for name, value in nest.items()}
        answer = (self._class or _class_of(tuple(values)))(**values)
        return answer if return_dict else answer.to_tuple()

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, dict) and list(value) == [POSTERIOR]:
            return _posterior(self._source, self._class, name)(value[POSTERIOR])
        return _sequences(value)


def _fields(role: str, name: str, inputs: Container[str]) -> list[str]:
    """What a graph's output may be in the model's own answer: the names on disk are changed by `onnx_names`."""
    renamed = [field for field, written in OUTPUTS.get(role, {}).items() if written in (name, name[len("out_") :])]
    plain = [name[len("out_") :]] if name.startswith("out_") and name[len("out_") :] in inputs else [name]
    return [*renamed, *plain]


def _first_known(candidates: list[str], known: Container[str] | None) -> str | None:
    """None for what the class has no field for: deep features, which only our own loops take."""
    if known is None:
        return candidates[0]
    return next((path for path in candidates if path.partition(".")[0] in known), None)


def _output_class(module: Any, original: Any, candidates: list[list[str]]) -> Any:
    """The class of a method's answer: as annotated, else the one class of answers in the module's file whose fields
    these are; None where there is none."""
    heads = [{path.partition(".")[0] for path in found} for found in candidates]
    if any(NAMELESS in found for found in heads):
        return None
    for kind in (*_annotated(original), *_in_the_file_of(module)):
        if all(found & _field_names(kind) for found in heads):
            return kind
    # a graph may answer more than the class has
    return next((kind for kind in _annotated(original) if any(found & _field_names(kind) for found in heads)), None)


def _annotated(function: Any) -> Iterator[Any]:
    function = inspect.unwrap(function)
    try:
        hint = typing.get_type_hints(function).get("return")
    except (NameError, TypeError):  # names that only type checkers see
        return
    for kind in (hint, *typing.get_args(hint)):
        if _is_output(kind):
            yield kind


def _in_the_file_of(module: Any) -> Iterator[Any]:
    for kind in type(module).__mro__:
        names = vars(sys.modules[kind.__module__]) if kind.__module__.startswith(("diffusers", "transformers")) else {}
        yield from (value for value in list(names.values()) if _is_output(value))


def _is_output(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, OrderedDict) and dataclasses.is_dataclass(value)


def _field_names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


_made: dict[tuple[str, ...], Any] = {}


def _class_of(fields: tuple[str, ...]) -> Any:
    """A class of answers with these fields, for a model whose own is not to be found."""
    if fields not in _made:
        _made[fields] = dataclasses.make_dataclass("_".join(("Answer", *fields)), fields, bases=(BaseOutput,))
    return _made[fields]


def _posterior(module: Any, kind: Any, name: str) -> Any:
    """The distribution class that a field is annotated with, by name: diffusers leaves the import out."""
    hint = next((field.type for field in dataclasses.fields(kind) if field.name == name), "") if kind else ""
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", "")
    found = getattr(sys.modules[type(module).__module__], text, None) or getattr(autoencoders, text, None)
    return found or autoencoders.DiagonalGaussianDistribution


def _insert(nest: dict[str, Any], path: list[str], tensor: Tensor) -> None:
    for part in path[:-1]:
        nest = nest.setdefault(part, {})
    nest[path[-1]] = tensor


def _sequences(value: Any) -> Any:
    """Tuples in the place of what is keyed by numbers."""
    if not isinstance(value, dict):
        return value
    items = {key: _sequences(item) for key, item in value.items()}
    return tuple(items[key] for key in sorted(items, key=int)) if all(map(str.isdigit, items)) else items
