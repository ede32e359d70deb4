"""Rewrites: changes to a model's modules for the time of a trace. A file each, whose name is the rewrite's.

`applied(module)` is what each of them answers: a context manager that changes the module and restores it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from ingot.runtimes.errors import unknown


def available() -> list[str]:
    """The rewrites that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@contextmanager
def applied(names: Sequence[str], *modules: nn.Module) -> Iterator[None]:
    """Apply rewrites, in order, to every module. Raises InputError listing the names that exist."""
    for name in names:
        if name not in available():
            raise unknown("rewrite", name, available())
    with ExitStack() as stack:
        for name in names:
            for module in modules:
                stack.enter_context(importlib.import_module(f".{name}", __name__).applied(module))
        yield
