"""Modules that are imported when something of them is first used, not where they are named.

Pillow and tokenizers take as long to import as a small bundle's graphs take to open. Opening leaves Python to other threads,
so `ingot.load` imports them meanwhile; whoever does not load a bundle imports them when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any


class Late:
    """Stands for the module of this name.

    >>> Late("fractions").Fraction(1, 2)
    Fraction(1, 2)
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
