"""The toolchains that quantize, a file each in this folder, named as the engine: what schemes they have."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ingot.exporters.targets import available
from ingot.runtimes.engines import check_types
from ingot.runtimes.errors import ExportError, InputError, unknown

from .scheme import SCHEMES, Scheme

# What every toolchain's `quantize` gets from the core; the rest of its keywords are options that a user may give.
COMMON = ("source", "folder", "scheme", "keep", "calls", "name", "progress")
_EXTRAS = {
    "onnx": "export",
    "openvino": "export,openvino,quantize",
    "coreml": "export,coreml",
    "torch": "export,quantize",
}


def toolchain(name: str) -> ModuleType:
    """The module that quantizes for an engine. Raises InputError listing the engines, ExportError when its packages are
    not installed."""
    if name not in available():
        raise unknown("engine", name, available())
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ingot"):
            raise
        raise ExportError(
            f"quantizing for {name} needs {error.name}, which is not installed: "
            f"pip install 'ingot[{_EXTRAS.get(name, 'export')}]'"
        ) from error


def scheme(name: str) -> Scheme:
    """A scheme by its name. Raises InputError listing those that there are."""
    if name not in SCHEMES:
        raise unknown("scheme", name, SCHEMES)
    return SCHEMES[name]


def require_scheme(engine: str, name: str) -> None:
    """Raise InputError for a scheme that an engine's toolchain has not, saying which it has and who has this one."""
    scheme(name)
    has = toolchain(engine).SCHEMES
    if name in has:
        return
    others = [other for other in available() if other != engine and name in _schemes(other)]
    where = f"; {name} is there for {', '.join(others)}" if others else ""
    raise InputError(f"{engine} has no scheme {name!r}; it has: {', '.join(has)}{where}")


def needs_calls(engine: str, name: str) -> bool:
    """Whether a scheme is calibrated here: a toolchain's UNCALIBRATED finds its ranges while the graph runs."""
    return scheme(name).calibrated and name not in getattr(toolchain(engine), "UNCALIBRATED", ())


def check_options(engine: str, options: Mapping[str, Any]) -> None:
    """Raise InputError for an option that a toolchain does not have, or a value of another type."""
    function = toolchain(engine).quantize
    known = [key for key in inspect.signature(function).parameters if key not in COMMON]
    for option in options:
        if option not in known:
            raise unknown(f"option for quantizing with {engine}", option, known)
    check_types(function, options, f"option of {engine}")


def _schemes(name: str) -> Mapping[str, str]:
    try:
        found: Mapping[str, str] = toolchain(name).SCHEMES
    except ExportError:
        return {}
    return found
