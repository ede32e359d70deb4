"""Targets: a file each, whose name is the target's. `export(component, folder, ...)` is what each of them answers."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ingot.runtimes.errors import unknown


def available() -> list[str]:
    """The targets that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def target(name: str) -> ModuleType:
    """The module of a target by its name. Raises InputError listing the names that exist."""
    if name not in available():
        raise unknown("target", name, available())
    return importlib.import_module(f".{name}", __name__)
