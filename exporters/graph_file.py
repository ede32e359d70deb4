"""What a target answers: a graph on disk, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingot.runtimes.signature import Signature

Progress = Callable[[str, float], None]
"""Told a stage by name and how much of it is done, 0 to 1."""


@dataclass(frozen=True)
class GraphFile:
    """A graph on disk.

    `path` is the file to open, for a package that is a folder the file at its head; `extra_files` are all others that
    belong to it. `dtype` is its precision, `signature` what was written: the graph's own dtypes, numbers for names where
    it is static. `stored` is what its engine must know to open it, plain enough for JSON. `form` is "" for the graph that
    every reader takes, else whom it is written for; `forms` are such graphs of the same component and engine.
    """

    role: str
    path: Path
    extra_files: tuple[Path, ...]
    dtype: str
    static: bool
    signature: Signature
    node_count: int | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    form: str = ""
    forms: tuple[GraphFile, ...] = ()
