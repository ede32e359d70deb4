"""Targets: a file each, whose name is the target's and its engine's. `export(component, folder, ...)` is what each of
them answers, in one of its `DTYPES`; keyword arguments of its own are its options."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ingot.runtimes.engines import check_types
from ingot.runtimes.errors import ExportError, InputError, unknown

# What every target's export gets from the core, and the file's name, which other targets choose; the rest of its keywords
# are options that a user may give.
COMMON = ("component", "folder", "dtype", "static", "progress", "name")


def available() -> list[str]:
    """The targets that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def target(name: str) -> ModuleType:
    """The module of a target by its name. Raises InputError listing the names that exist, ExportError when its toolchain
    is not installed."""
    if name not in available():
        raise unknown("target", name, available())
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ingot"):
            raise
        raise ExportError(
            f"the target {name} needs {error.name}, which is not installed: pip install 'ingot[export,{name}]'"
        ) from error


def dtype_for(name: str, dtype: str | None) -> str:
    """The precision that a target writes when `dtype` is asked for: its own first one for None.

    Raises InputError naming those that it has.
    """
    dtypes: tuple[str, ...] = target(name).DTYPES
    if dtype is not None and dtype not in dtypes:
        raise unknown(f"dtype for the target {name}", dtype, dtypes)
    return dtype or dtypes[0]


def check_options(options: Mapping[str, Mapping[str, Any]], targets: list[str]) -> None:
    """Raise InputError for options of a target that is not asked for, or that it does not have."""
    for name, given in options.items():
        if name not in available():
            raise unknown("target", name, available())
        if name not in targets:
            raise InputError(f"options are given for {name}, which is not among the targets {', '.join(targets)}")
        known = [key for key in inspect.signature(target(name).export).parameters if key not in COMMON]
        for option in given:
            if option not in known:
                raise unknown(f"option for the target {name}", option, known)
        check_types(target(name).export, given, f"option of the target {name}")
