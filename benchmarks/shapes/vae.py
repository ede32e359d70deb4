"""Stage 1: the autoencoder, trained on squared error with a small KL term until the held-out PSNR bar is met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from ingot.shapes import draw, split

from .common import CONFIG, train


def pictures(count: int, seed: int, held_out: bool = False) -> torch.Tensor:
    """Freshly drawn pictures, (count, 3, 64, 64) uint8."""
    rng = np.random.RandomState(seed)
    scenes = split()[1 if held_out else 0]
    return torch.from_numpy(np.stack([draw(scenes[i], rng) for i in rng.randint(0, len(scenes), count)])).permute(
        0, 3, 1, 2
    )


def to_model(batch: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as the VAE takes them: float32 in -1 to 1."""
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def psnr(vae: AutoencoderKL, batch: torch.Tensor) -> float:
    """PSNR in dB of decode(encode(batch)), over all pixels, peak 255."""
    errors = []
    for part in batch.split(50):
        decoded = vae.decode(vae.encode(to_model(part)).latent_dist.mode()).sample
        errors.append(((decoded.clamp(-1, 1) - to_model(part)) ** 2).mean().item() / 4)
    return float(-10 * np.log10(np.mean(errors)))


def train_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder with its measured `scaling_factor`; resumes from `folder`."""
    settings: dict[str, Any] = CONFIG["vae"]
    torch.manual_seed(settings["seed"])
    vae = AutoencoderKL(**settings["model"]).to(memory_format=torch.channels_last)
    held_out = pictures(300, seed=1, held_out=True)

    def loss_of(step: int) -> torch.Tensor:
        batch = to_model(pictures(settings["batch"], seed=1000 + step))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return torch.nn.functional.mse_loss(decoded, batch) + settings["kl_weight"] * kl

    train(vae, loss_of, folder, "vae", settings, lambda: f"held-out PSNR {psnr(vae, held_out):.2f} dB")
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_model(part)).latent_dist.mean for part in pictures(500, seed=2).split(50)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae.eval()
