"""Time and memory of a full-size export: `python -m ingot.benchmarks.full_size WORK_FOLDER [--to openvino] [OPTIONS OF ingot export]`.

Makes a Stable Diffusion 1.5 checkpoint with random weights (860 M parameters in the UNet, 84 M in the VAE, 123 M in the text
encoder), casts it with the command line in a process of its own, and prints seconds and the process's peak resident memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ingot.shapes import MODEL_DIR


def main() -> None:
    """Make the checkpoint where there is none yet, cast it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="needs 9 GB")
    parser.add_argument("--to", default="onnx", help="targets, as for ingot export; so is whatever follows")
    arguments, rest = parser.parse_known_args()
    checkpoint, bundle = arguments.work / "checkpoint", arguments.work / "bundle"
    if not checkpoint.exists():
        # in a process of its own, so that its memory is not counted
        subprocess.run(
            [sys.executable, "-c", f"from ingot.benchmarks.full_size import save; save({str(checkpoint)!r})"],
            check=True,
        )
    shutil.rmtree(bundle, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    began = time.monotonic()
    options = ["--to", arguments.to, *rest]
    command = [sys.executable, "-m", "ingot.cli", "export", str(checkpoint), "-o", str(bundle), *options]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    print(f"\n| Stable Diffusion 1.5, random weights | {' '.join(options)} |\n|---|---|")
    print(
        f"| export, s | {seconds:.0f} |\n| peak resident memory, GiB | {peak / 2**30:.2f} |\n| bundle, GB | {size / 1e9:.2f} |"
    )


def save(folder: str) -> None:
    """The checkpoint, with the architecture that stable-diffusion-v1-5 publishes in its configs."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    # Shapes' tokenizer stands in for CLIP's, whose vocabulary is not at hand offline; no size depends on it
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


if __name__ == "__main__":
    main()
