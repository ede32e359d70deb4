"""Teach Shapes a shape by a LoRA: `python -m ingot.benchmarks.shapes.train_lora WORK_FOLDER [--save FILE]`.

Low-rank changes of the UNet's attention and of the text encoder's layers (Hu et al. 2021), the checkpoint itself frozen.
Captions with the new word make up most of a batch, the others are old ones, so that what the model could it still can.
Saves as it goes and resumes; the file has diffusers' own names, in float16. With --measure FILE the shares of right pictures
are printed for that file, with and without it, through diffusers' `load_lora_weights`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ingot.shapes import COLOURS, MODEL_DIR, NEW_SHAPES, PLACES, RADII, SHAPES, Scene, draw, score, split

from .common import train
from .quality import BATCH, GUIDANCE, STEPS
from .text import tokenize
from .vae import to_model

WORD = "heart"
SETTINGS: dict[str, Any] = {
    "seed": 3, "rank": 8, "batch": 8, "steps": 400, "rate": 2e-3, "warm_up": 20, "weight_decay": 1e-4, "ema": 0.97,
    "save_every": 100, "caption_dropout": 0.1, "pictures": 3000, "old": 0.3, "first": 200,
}  # fmt: skip
HELD_OUT = 150
TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
# where the names of a published text encoder begin; transformers 5 leaves it out
PREFIXES = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}


def main() -> None:
    """Train what is not trained yet, save it, and print what it does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="where unfinished training lives")
    parser.add_argument("--save", type=Path, help="where the finished file goes")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="do not train: measure this file")
    parser.add_argument("--count", type=int, default=HELD_OUT, help="pictures for each figure")
    arguments = parser.parse_args()
    if arguments.measure:
        measured(arguments.measure, arguments.count)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    adapters = train_lora(arguments.work)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        save_file(adapters.named(), arguments.save)
        print(f"saved to {arguments.save}: {arguments.save.stat().st_size / 1000:.0f} kB")


def new_scenes() -> tuple[list[Scene], list[Scene]]:
    """(training scenes, held-out scenes) with the new word."""
    scenes = [
        Scene(colour, WORD, size, place, background)
        for colour in COLOURS
        for size in RADII
        for place in PLACES
        for background in COLOURS
        if colour != background
    ]
    order = np.random.RandomState(SETTINGS["seed"]).permutation(len(scenes))
    return [scenes[i] for i in order[HELD_OUT:]], [scenes[i] for i in order[:HELD_OUT]]


class Adapters(nn.Module):
    """A product of two thin matrices beside each linear layer, added to its output while `scale` is not 0."""

    def __init__(self, pipe: StableDiffusionPipeline, rank: int) -> None:
        super().__init__()
        self.scale = 1.0
        self.names: list[str] = []
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for part, endings in TARGETS.items():
            for name, layer in getattr(pipe, part).named_modules():
                if name.endswith(endings) and isinstance(layer, nn.Linear):
                    self._add(f"{PREFIXES[part]}{name.removeprefix('text_model.')}", layer, rank)

    def _add(self, name: str, layer: nn.Linear, rank: int) -> None:
        down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(down.weight, std=1 / rank)
        nn.init.zeros_(up.weight)
        self.names.append(name)
        self.down.append(down)
        self.up.append(up)
        layer.register_forward_hook(lambda _, given, out: out + self.scale * up(down(given[0])) if self.scale else out)

    def named(self) -> dict[str, Tensor]:
        """The matrices by diffusers' names."""
        found = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            for letter, half in (("A", down), ("B", up)):
                assert isinstance(half, nn.Linear)
                found[f"{name}.lora_{letter}.weight"] = half.weight.detach().to(torch.float16).contiguous()
        return found


@torch.no_grad()
def pictures(pipe: StableDiffusionPipeline, folder: Path) -> tuple[Tensor, list[Scene]]:
    """Scaled latents (count, 4, 16, 16) of freshly drawn pictures, and their scenes; kept in the folder."""
    rng = np.random.RandomState(SETTINGS["seed"])
    new, old = new_scenes()[0], split()[0]
    shares = rng.uniform(size=SETTINGS["pictures"]) < SETTINGS["old"]
    scenes = [old[rng.randint(len(old))] if is_old else new[rng.randint(len(new))] for is_old in shares]
    file = folder / "latents.pt"
    if not file.exists():
        drawn = torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).permute(0, 3, 1, 2)
        parts = [pipe.vae.encode(to_model(part)).latent_dist.mean for part in drawn.split(50)]
        torch.save(torch.cat(parts) * pipe.vae.config.scaling_factor, file)
    return torch.load(file, weights_only=True), scenes


def train_lora(folder: Path) -> Adapters:
    """The trained matrices; resumes from `folder`."""
    pipe = _pipeline()
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False).eval()
    pipe.unet.set_attn_processor(AttnProcessor())
    torch.manual_seed(SETTINGS["seed"])
    adapters = Adapters(pipe, SETTINGS["rank"])
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    latents, scenes = pictures(pipe, folder)
    ids = tokenize(pipe.tokenizer, [*(scene.caption for scene in scenes), ""])

    def loss_of(step: int) -> Tensor:
        rng = np.random.RandomState(step)
        batch = SETTINGS["batch"]
        index = torch.from_numpy(rng.randint(0, len(latents), batch))
        # stratified: one timestep from each of `batch` equal parts of the schedule, but for its beginning, where what a
        # caption says has been drawn
        part = (np.arange(batch) + rng.uniform(size=batch)) / batch
        first, last = SETTINGS["first"], scheduler.config.num_train_timesteps
        t = torch.from_numpy((first + part * (last - first)).astype(np.int64))
        dropped = torch.from_numpy(rng.uniform(size=batch) < SETTINGS["caption_dropout"])
        text = pipe.text_encoder(ids[torch.where(dropped, len(ids) - 1, index)]).last_hidden_state
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(step))
        predicted = pipe.unet(scheduler.add_noise(clean, noise, t), t, text).sample
        return nn.functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, t))

    def evaluate() -> str:
        save_file(adapters.named(), folder / "latest.safetensors")
        return table(right(pipe, new_scenes()[1][:12]))

    train(adapters, loss_of, folder, "lora", SETTINGS, evaluate)
    return adapters


def right(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> dict[str, float]:
    """The shares of right pictures, picture i from seed i, by the checker that knows the new shape too."""
    return score(scenes, generate(pipe, scenes), (*SHAPES, *NEW_SHAPES))


@torch.no_grad()
def generate(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> NDArray[np.uint8]:
    """Pictures of these scenes, sampled as `quality` does."""
    kept, pipe.scheduler = pipe.scheduler, DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    made: list[Any] = []
    for first in range(0, len(scenes), BATCH):
        captions = [scene.caption for scene in scenes[first : first + BATCH]]
        seeds = [torch.Generator().manual_seed(first + i) for i in range(len(captions))]
        made += pipe(captions, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds).images
    pipe.scheduler = kept
    return np.stack([np.asarray(picture) for picture in made])


def measured(file: Path, count: int) -> None:
    """Print the shares for held-out captions with the new word, and for old ones, without the file and with it."""
    new, old = new_scenes()[1][:count], list(split()[1][:count])
    pipe = _pipeline()
    print(f"{count} pictures each; {WORD} without: {table(right(pipe, new))}", flush=True)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    for scale, name, scenes in ((1.0, WORD, new), (1.0, "old captions", old), (0.0, "old captions", old)):
        pipe.fuse_lora(lora_scale=scale)
        print(f"{name} at scale {scale:g}: {table(right(pipe, scenes))}", flush=True)
        pipe.unfuse_lora()


def table(scores: Mapping[str, float]) -> str:
    """The shares on a line."""
    return ", ".join(f"{name} {value:.1%}" for name, value in scores.items())


def _pipeline() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    main()
