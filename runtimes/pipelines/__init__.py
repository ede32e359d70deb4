"""Pipelines: tokenise, encode, loop, decode. A file per family; this table maps diffusers' class names to them."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import unknown

FAMILIES = {
    "ConsistencyModelPipeline": "unconditional",
    "DDIMPipeline": "unconditional",
    "DDPMPipeline": "unconditional",
    "DiTPipeline": "dit",
    "FluxImg2ImgPipeline": "flux",
    "FluxPipeline": "flux",
    "KandinskyV22Pipeline": "kandinsky",
    "KandinskyV22PriorPipeline": "kandinsky_prior",
    "LatentConsistencyModelImg2ImgPipeline": "latent_consistency",
    "LatentConsistencyModelPipeline": "latent_consistency",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "StableDiffusion3Img2ImgPipeline": "stable_diffusion_3",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "StableDiffusionAdapterPipeline": "stable_diffusion",
    "StableDiffusionControlNetImg2ImgPipeline": "stable_diffusion",
    "StableDiffusionControlNetInpaintPipeline": "stable_diffusion",
    "StableDiffusionControlNetPipeline": "stable_diffusion",
    "StableDiffusionDepth2ImgPipeline": "depth_to_image",
    "StableDiffusionImageVariationPipeline": "image_variation",
    "StableDiffusionImg2ImgPipeline": "stable_diffusion",
    "StableDiffusionInpaintPipeline": "stable_diffusion",
    "StableDiffusionInstructPix2PixPipeline": "instruct_pix2pix",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionUpscalePipeline": "upscale",
    "StableDiffusionXLAdapterPipeline": "stable_diffusion_xl",
    "StableDiffusionXLControlNetImg2ImgPipeline": "stable_diffusion_xl",
    "StableDiffusionXLControlNetInpaintPipeline": "stable_diffusion_xl",
    "StableDiffusionXLControlNetPipeline": "stable_diffusion_xl",
    "StableDiffusionXLImg2ImgPipeline": "stable_diffusion_xl",
    "StableDiffusionXLInpaintPipeline": "stable_diffusion_xl",
    "StableDiffusionXLInstructPix2PixPipeline": "instruct_pix2pix_xl",
    "StableDiffusionXLPipeline": "stable_diffusion_xl",
}


def pipeline_class(class_name: str) -> Any:
    """The pipeline that reproduces diffusers' class of this name. Raises InputError naming those that there are."""
    if class_name not in FAMILIES:
        raise unknown("torch-free pipeline", class_name, FAMILIES)
    return importlib.import_module(f"{__name__}.{FAMILIES[class_name]}").PIPELINE
