"""What the table knows of a pipeline class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """`build` makes the pipeline, writing tokenizers into a folder; `inputs` are what its call needs beside the table by
    parameter name; `torch_only` are components that cannot run attached in this pipeline, with the reason."""

    build: Callable[[Path], Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    torch_only: Mapping[str, str] = field(default_factory=dict)
