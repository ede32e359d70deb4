"""Tiny pipelines of diffusers' classes, by which `ingot.benchmarks.attach_table` shows what runs attached."""

from __future__ import annotations

from . import diffusion_transformers, kandinsky, moving, stable
from .row import Row

ROWS: dict[str, Row] = {**stable.ROWS, **diffusion_transformers.ROWS, **kandinsky.ROWS, **moving.ROWS}
"""Every class of the table, in its order."""
