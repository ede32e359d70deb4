"""Rewrites: changes to a model's modules for the time of a trace. A file each, whose name is the rewrite's.

    with applied(("fused_qkv", "token_merging=0.5"), unet):
        ...  # the UNet computes so here, and as before afterwards

What a file answers: `applied(module)`, a context manager that changes the module and restores it; `applies(module)`,
whether it finds anything to change; `EXACT`, whether the module computes the same afterwards. One that takes a value has
`value(text)`, which reads it (None: its default) and raises InputError, and `applied(module, value)`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from ingot.runtimes.errors import InputError, unknown

# Each computes attention itself, so that of two the first would be lost.
EXCLUSIVE = ("fused_qkv", "split_einsum", "split_einsum_v2")
# What cuts attention into slices has nothing to cut where no fused attention is called.
NOT_SLICED = ("split_einsum", "split_einsum_v2")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite as it was asked for: its name, and its value where it takes one."""

    name: str
    value: Any = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"

    @property
    def file(self) -> ModuleType:
        """The module that does it."""
        return importlib.import_module(f".{self.name}", __name__)


def available() -> list[str]:
    """The rewrites that exist."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def parse(text: str) -> Rewrite:
    """`name` or `name=value` as a rewrite with its value. Raises InputError saying which names and values there are."""
    if not isinstance(text, str):
        raise InputError(f"a rewrite is 'name' or 'name=value', not {text!r}; available: {', '.join(available())}")
    name, equals, given = (part.strip() for part in text.partition("="))
    if name not in available():
        raise unknown("rewrite", name, available())
    rewrite = Rewrite(name)
    if hasattr(rewrite.file, "value"):
        return Rewrite(name, rewrite.file.value(given if equals else None))
    if equals:
        raise InputError(f"the rewrite {name} takes no value, and {text!r} gives it one")
    return rewrite


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """Rewrites in the order given, each with its value. Raises InputError for what cannot be, alone or together."""
    if isinstance(names, str):
        names = (names,)
    found = [parse(name) for name in names]
    roots = [rewrite.name for rewrite in found]
    for name in roots:
        if roots.count(name) > 1:
            raise InputError(f"the rewrite {name} is given {roots.count(name)} times; once is enough")
    computing = [name for name in roots if name in EXCLUSIVE]
    if len(computing) > 1:
        raise InputError(
            f"{' and '.join(computing)} each compute attention by themselves: leave one out{_core_ml(roots)}"
        )
    if "sliced_attention" in roots and set(roots) & set(NOT_SLICED):
        split = next(name for name in roots if name in NOT_SLICED)
        raise InputError(f"{split} leaves sliced_attention nothing to slice: leave one out{_core_ml(roots)}")
    return tuple(map(str, found))


def _core_ml(names: Sequence[str]) -> str:
    """Who asked for a split, where it was not the user: Core ML's target does by itself."""
    split = [name for name in names if name in NOT_SLICED]
    return "; without the split: --set coreml.attention=original" if split else ""


def exact(names: Sequence[str]) -> bool:
    """Whether a model computes the same with these rewrites, rounding apart."""
    return all(parse(name).file.EXACT for name in names)


def those_that_apply(names: Sequence[str], module: nn.Module) -> tuple[str, ...]:
    """The rewrites that find something to change in this module."""
    return tuple(name for name in names if parse(name).file.applies(module))


@contextmanager
def applied(names: Sequence[str], *modules: nn.Module) -> Iterator[None]:
    """Apply rewrites, `name` or `name=value`, in order to every module. Raises InputError for names and values that do not
    exist, for rewrites that exclude each other, and for a module that one of them cannot change."""
    rewrites = [parse(name) for name in canonical(names)]
    with ExitStack() as stack:
        for rewrite in rewrites:
            for module in modules:
                arguments = () if rewrite.value is None else (rewrite.value,)
                stack.enter_context(rewrite.file.applied(module, *arguments))
        yield
