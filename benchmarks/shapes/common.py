"""What the training stages share: configuration, averaged weights, and a loop that saves and resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CONFIG: dict[str, Any] = json.loads((Path(__file__).parent / "config.json").read_text())


class Average:
    """Exponential moving average of a module's parameters, warmed up as (1 + step) / (10 + step)."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone().float() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """Move towards the module's present values."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.values[name].lerp_(p.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Write the averaged values into the module."""
        for name, p in module.named_parameters():
            p.copy_(self.values[name])


def one_cycle(step: int, total: int, peak: float, warm_up: int) -> float:
    """Learning rate: linear warm-up to `peak`, then a cosine to a hundredth of it at `total`."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    part = (step - warm_up) / max(1, total - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, part)))))


def train(
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    folder: Path,
    name: str,
    settings: dict[str, Any],
    evaluate: Callable[[], str],
) -> None:
    """Run AdamW on `loss_of(step)` to `settings["steps"]`, saving as it goes and going on from what was saved.

    Leaves the averaged weights in `module`. A run that was killed continues at its last save.
    """
    total, every = settings["steps"], settings["save_every"]
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings["rate"], betas=(0.9, 0.99), weight_decay=settings["weight_decay"]
    )
    average, first = Average(module, settings["ema"]), 0
    state_file = folder / f"{name}.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, first = state["average"], state["step"]
        print(f"{name}: resumed at step {first}", flush=True)
    began, losses = time.monotonic(), []
    for step in range(first, total):
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, total, settings["rate"], settings["warm_up"])
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update(module, step)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(f"{name}: step {step + 1}/{total} loss {np.mean(losses[-50:]):.5f} {pace:.3f} s/step", flush=True)
        if (step + 1) % every == 0 or step + 1 == total:
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.values,
                "step": step + 1,
            }
            torch.save(state, folder / f"{name}.tmp")
            (folder / f"{name}.tmp").replace(state_file)
            kept = {key: value.clone() for key, value in module.state_dict().items()}
            average.copy_to(module)
            print(f"{name}: step {step + 1}: {evaluate()}", flush=True)
            module.load_state_dict(kept)
    average.copy_to(module)
