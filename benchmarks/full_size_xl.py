"""A Stable Diffusion XL with random weights: `python -m ingot.benchmarks.full_size_xl FOLDER [--config sdxl|tiny]`.

3.5 billion parameters with the architecture that stable-diffusion-xl-base-1.0 publishes in its configs, made from a fixed seed
without network; 14 GB of disk and of memory. `tiny` has the same parts with a few layers each.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ingot.exporters.atomic import atomic_folder
from ingot.shapes import MODEL_DIR

from .verify_cuda import SDXL

SEED = 0
# (width, inner width, layers, heads, activation) of the two text encoders
TEXTS = {
    "sdxl": ((768, 3072, 12, 12, "quick_gelu"), (1280, 5120, 32, 20, "gelu")),
    "tiny": ((32, 64, 2, 2, "quick_gelu"), (32, 64, 2, 2, "gelu")),
}
TINY: dict[str, Any] = {
    "channels": (32, 64), "layers": 1, "heads": (2, 4), "depths": (1, 1), "time": 8, "vae": (32, 64), "latents": 16,
}  # fmt: skip
SIZES = {"sdxl": SDXL, "tiny": TINY}


def main() -> None:
    """Make the checkpoint where there is none yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint's, in diffusers' layout")
    parser.add_argument("--config", choices=sorted(SIZES), default="sdxl")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        save(arguments.folder, arguments.config)


def save(folder: str | Path, config: str = "sdxl") -> None:
    """The checkpoint, which appears whole or not at all. Raises InputError where the folder exists."""
    with atomic_folder(Path(folder)) as partial:
        pipeline(config).save_pretrained(partial)


def pipeline(config: str) -> StableDiffusionXLPipeline:
    """The pipeline in float32, with the same weights each time."""
    sizes, texts = SIZES[config], TEXTS[config]
    torch.manual_seed(SEED)
    # Shapes' tokenizer stands in for CLIP's, whose vocabulary is not at hand offline; no size depends on it
    words = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    return StableDiffusionXLPipeline(
        unet=_unet(sizes, texts), vae=_vae(sizes), tokenizer=words, tokenizer_2=words,
        text_encoder=CLIPTextModel(_text(texts[0], words)), text_encoder_2=CLIPTextModelWithProjection(_text(texts[1], words)),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ), add_watermarker=False,
    )  # fmt: skip


def _unet(sizes: dict[str, Any], texts: tuple[tuple[Any, ...], ...]) -> UNet2DConditionModel:
    depth = len(sizes["channels"])
    return UNet2DConditionModel(
        sample_size=sizes["latents"], block_out_channels=sizes["channels"], layers_per_block=sizes["layers"],
        attention_head_dim=sizes["heads"], transformer_layers_per_block=sizes["depths"], use_linear_projection=True,
        cross_attention_dim=texts[0][0] + texts[1][0], addition_embed_type="text_time", addition_time_embed_dim=sizes["time"],
        projection_class_embeddings_input_dim=6 * sizes["time"] + texts[1][0],
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (depth - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (depth - 1), "UpBlock2D"),
    )  # fmt: skip


def _vae(sizes: dict[str, Any]) -> AutoencoderKL:
    depth = len(sizes["vae"])
    return AutoencoderKL(
        block_out_channels=sizes["vae"], layers_per_block=sizes["layers"], latent_channels=4, scaling_factor=0.13025,
        sample_size=sizes["latents"] * 2 ** (depth - 1), force_upcast=True,
        down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
    )  # fmt: skip


def _text(sizes: tuple[Any, ...], words: CLIPTokenizer) -> CLIPTextConfig:
    width, inner, layers, heads, activation = sizes
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        projection_dim=width, hidden_act=activation, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip


if __name__ == "__main__":
    main()
