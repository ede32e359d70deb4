"""Checkpoints with random weights: `python -m ingot.benchmarks.random_checkpoint FOLDER [--config tiny]`.

Sizes, seconds and memory do not depend on what the weights are; what pictures look like does. A checkpoint of Stable
Diffusion 1.5's size has 860 M parameters in the UNet, 84 M in the VAE, 123 M in the text encoder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SD15, TINY, TINY_VAE = "stable-diffusion-1.5", "tiny", "tiny-vae"


@dataclass(frozen=True)
class Config:
    """What diffusers' and transformers' classes are made with."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]


CONFIGS = {
    # as stable-diffusion-v1-5 publishes them
    SD15: Config(
        unet={
            "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768,
            "attention_head_dim": 8, "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        },
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512, "scaling_factor": 0.18215},
        text={"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "projection_dim": 768},
    ),
    # the same in little, for tests: 8 pixels to a latent, too
    TINY: Config(
        unet={
            "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 2,
            "norm_num_groups": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        vae={"block_out_channels": (16,) * 4, "layers_per_block": 1, "sample_size": 64, "norm_num_groups": 8},
        text={"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "projection_dim": 32},
    ),
}  # fmt: skip


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(prog="ingot.benchmarks.random_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", choices=[*CONFIGS, TINY_VAE], default=SD15, help=f"(default: {SD15})")
    options = parser.parse_args()
    save(options.folder, options.config)


def saved(folder: Path, config: str = SD15) -> Path:
    """The folder, its checkpoint written in a process of its own unless it is there: the caller's memory stays as it was."""
    if not folder.exists():
        module = "ingot.benchmarks.random_checkpoint"
        subprocess.run([sys.executable, "-m", module, str(folder), "--config", config], check=True)
    return folder


def save(folder: Path, config: str = SD15) -> None:
    """Write a pipeline, or for `tiny-vae` an autoencoder alone, with the same weights each time; whole or not at all."""
    import torch

    from ingot.exporters.atomic import atomic_folder

    torch.manual_seed(0)
    model = _tiny_vae() if config == TINY_VAE else _pipeline(CONFIGS[config])
    with atomic_folder(folder.absolute()) as part:
        model.save_pretrained(part)


def _tiny_vae() -> Any:
    """With the architecture of TAESD, which is the class's own: 8 pixels to a latent."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny()


def _pipeline(config: Config) -> Any:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ingot.shapes import MODEL_DIR

    unet = UNet2DConditionModel(**config.unet)
    vae = AutoencoderKL(
        latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **config.vae
    )  # fmt: skip
    # Shapes' tokenizer stands in for CLIP's, whose vocabulary is not at hand offline; no size depends on it
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextModel(CLIPTextConfig(**config.text, **special))
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
