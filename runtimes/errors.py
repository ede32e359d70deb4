"""What Ingot raises: one class per kind of trouble, each message saying what came and what would do."""

from __future__ import annotations

from collections.abc import Iterable


class IngotError(Exception):
    """Base of every error that Ingot raises on purpose."""


class InputError(IngotError, ValueError):
    """An argument that cannot be used: wrong type, size, name or combination."""


class BundleError(IngotError):
    """A bundle that is missing something, was changed, or was written by an unknown version."""


class EngineError(IngotError, RuntimeError):
    """An engine or provider that is not here, or that refused a graph."""


class ExportError(IngotError, RuntimeError):
    """A checkpoint that could not be cast."""


class ParityError(ExportError):
    """A graph that does not compute what the model computes, within its precision's limit."""


def unknown(kind: str, name: object, available: Iterable[str]) -> InputError:
    """The error for a name that no registry holds: `unknown target 'onx'; available: coreml, onnx`."""
    return InputError(f"unknown {kind} {name!r}; available: {', '.join(sorted(available))}")
