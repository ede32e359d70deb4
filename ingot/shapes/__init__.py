"""Shapes: the small text-to-image Stable Diffusion that ships with Ingot, its pictures, and its checker."""

from __future__ import annotations

from pathlib import Path

from .captions import ATTRIBUTES, COLOURS, PLACES, RADII, SHAPES, Scene, all_scenes, parse, split
from .check import measure, score
from .draw import SIZE, draw

MODEL_DIR = Path(__file__).parent / "model"
"""The checkpoint, a diffusers `StableDiffusionPipeline` folder."""

__all__ = [
    "ATTRIBUTES", "COLOURS", "MODEL_DIR", "PLACES", "RADII", "SHAPES", "SIZE",
    "Scene", "all_scenes", "draw", "measure", "parse", "score", "split",
]  # fmt: skip
