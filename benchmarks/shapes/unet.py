"""Stage 3: the denoiser, trained on the autoencoder's latents with velocity prediction (Salimans & Ho 2022).

Velocity, not noise: at 16x16 latents most of what a caption decides is decided at low signal-to-noise, where the
squared error of the noise weighs a wrong picture by alpha^2, that is hardly at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from ingot.shapes import draw, split

from .common import CONFIG, train
from .text import tokenize
from .vae import to_model

Sampler = Callable[[UNet2DConditionModel], str]


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, count: int, seed: int, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents (count, 4, 16, 16) of fresh training pictures, and the index of each one's scene; kept in `file`."""
    scenes = split()[0]
    rng = np.random.RandomState(seed)
    which = torch.from_numpy(rng.randint(0, len(scenes), count))
    if not file.exists():
        parts = []
        for chunk in which.split(100):
            batch = torch.from_numpy(np.stack([draw(scenes[i], rng) for i in chunk.tolist()])).permute(0, 3, 1, 2)
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encode(to_model(batch)).latent_dist.mean.float() * vae.config.scaling_factor)
        torch.save(torch.cat(parts), file)
    return torch.load(file, weights_only=True), which


@torch.no_grad()
def encode_captions(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> torch.Tensor:
    """Embeddings of every training caption, then of the empty one: (count + 1, 77, width)."""
    ids = tokenize(tokenizer, [*(scene.caption for scene in split()[0]), ""])
    return torch.cat([encoder(part).last_hidden_state for part in ids.split(500)])


def train_unet(
    folder: Path,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    scheduler: DDPMScheduler,
    evaluate: Sampler,
) -> UNet2DConditionModel:
    """The trained denoiser; resumes from `folder`."""
    settings: dict[str, Any] = CONFIG["unet"]
    torch.manual_seed(settings["seed"])
    unet = UNet2DConditionModel(**settings["model"])
    # plain matrix products under bf16 autocast: on a CPU the fused attention's backward pass took a quarter of a step
    unet.set_attn_processor(AttnProcessor())
    latents, which = encode_pictures(vae, settings["pictures"], settings["seed"], folder / "latents.pt")
    captions = encode_captions(tokenizer, encoder)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.RandomState(step)
        index = torch.from_numpy(rng.randint(0, len(latents), settings["batch"]))
        # stratified: one timestep from each of `batch` equal parts of the schedule, for a steadier gradient
        part = (np.arange(settings["batch"]) + rng.uniform(size=settings["batch"])) / settings["batch"]
        t = torch.from_numpy((part * scheduler.config.num_train_timesteps).astype(np.int64))
        dropped = torch.from_numpy(rng.uniform(size=settings["batch"]) < settings["caption_dropout"])
        text = captions[torch.where(dropped, len(captions) - 1, which[index])]
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(step))
        noisy = scheduler.add_noise(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            predicted = unet(noisy, t, text).sample
        return torch.nn.functional.mse_loss(predicted.float(), scheduler.get_velocity(clean, noise, t))

    train(unet, loss_of, folder, "unet", settings, lambda: evaluate(unet))
    unet.set_default_attn_processor()
    return unet.eval()
