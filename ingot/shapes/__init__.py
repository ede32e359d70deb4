"""Shapes: the small text-to-image Stable Diffusion that ships with Ingot, its pictures, and its checker."""

from __future__ import annotations

from pathlib import Path

from .captions import ATTRIBUTES, COLOURS, NEW_SHAPES, PLACES, RADII, SHAPES, Scene, all_scenes, parse, split
from .check import measure, score
from .draw import SIZE, draw

MODEL_DIR = Path(__file__).parent / "model"
"""The checkpoint, a diffusers `StableDiffusionPipeline` folder."""
LORA_DIR = Path(__file__).parent / "loras"
"""LoRAs for it, in diffusers' own format: `heart.safetensors` is a shape that it was not trained on."""

__all__ = [
    "ATTRIBUTES", "COLOURS", "LORA_DIR", "MODEL_DIR", "NEW_SHAPES", "PLACES", "RADII", "SHAPES", "SIZE",
    "Scene", "all_scenes", "draw", "measure", "parse", "score", "split",
]  # fmt: skip
