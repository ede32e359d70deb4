"""Stage 2: the text encoder, trained alone to let a linear map name the five attributes from any token after the caption.

The denoiser's cross-attention then finds everything that the sentence says wherever it looks, from its first step on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ingot.shapes import ATTRIBUTES, COLOURS, PLACES, RADII, SHAPES, Scene, all_scenes

from .common import CONFIG, train

WORDS: dict[str, list[str]] = dict(
    zip(ATTRIBUTES, (list(COLOURS), list(SHAPES), list(RADII), list(PLACES), list(COLOURS)), strict=True)
)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, (count, 77), padded as the pipeline pads."""
    ids: torch.Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def labels(scenes: tuple[Scene, ...]) -> torch.Tensor:
    """The index of each attribute's word, (count, 5)."""
    return torch.tensor([[WORDS[name].index(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])


def train_text_encoder(folder: Path, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The trained text encoder; resumes from `folder`."""
    settings: dict[str, Any] = CONFIG["text"]
    torch.manual_seed(settings["seed"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, **settings["model"]
    )
    encoder = CLIPTextModel(config)
    heads = torch.nn.Linear(config.hidden_size, sum(map(len, WORDS.values())))
    both = torch.nn.ModuleDict({"encoder": encoder, "heads": heads})
    scenes = all_scenes()  # every sentence may be read; only pictures of the held-out ones are never seen
    ids, wanted = tokenize(tokenizer, [scene.caption for scene in scenes]), labels(scenes)

    def losses(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = encoder(ids[batch]).last_hidden_state
        place = torch.from_numpy(
            np.random.RandomState(int(batch[0])).randint(16, ids.shape[1], 4)
        )  # past every caption's end
        logits = heads(hidden[:, place]).split([len(words) for words in WORDS.values()], dim=-1)
        target = wanted[batch][:, None].expand(-1, len(place), -1)
        each = [
            torch.nn.functional.cross_entropy(part.flatten(0, 1), target[..., i].flatten())
            for i, part in enumerate(logits)
        ]
        right = torch.stack([part.argmax(-1) == target[..., i] for i, part in enumerate(logits)]).all(0)
        return torch.stack(each).sum(), right.float().mean()

    def loss_of(step: int) -> torch.Tensor:
        return losses(torch.from_numpy(np.random.RandomState(step).randint(0, len(ids), settings["batch"])))[0]

    @torch.no_grad()
    def evaluate() -> str:
        return f"all attributes named from a random later token: {losses(torch.arange(len(ids)))[1].item():.2%}"

    train(both, loss_of, folder, "text", settings, evaluate)
    return encoder.eval()
