"""Pipelines: tokenise, encode, loop, decode. A file per family; this table maps diffusers' class names to them."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import unknown

FAMILIES = {
    "StableDiffusionImg2ImgPipeline": "stable_diffusion",
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionPipeline": "stable_diffusion",
}


def pipeline_class(class_name: str) -> Any:
    """The pipeline that reproduces diffusers' class of this name. Raises InputError naming those that there are."""
    if class_name not in FAMILIES:
        raise unknown("torch-free pipeline", class_name, FAMILIES)
    return importlib.import_module(f"{__name__}.{FAMILIES[class_name]}").PIPELINE
