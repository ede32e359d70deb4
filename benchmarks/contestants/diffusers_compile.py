"""diffusers with `torch.compile` of the UNet and of the VAE's decoder. Compiling is part of the first call.

Options: dtype as of diffusers; mode, backend: torch.compile's; cache = true keeps what was compiled for the
next process, as torch does by itself.
"""

from __future__ import annotations

import os
from typing import Any

from . import diffusers as plain
from ._diffusers_loop import Loop, check, prepare
from .measure import Clock, Task

PACKAGES = plain.PACKAGES
OPTIONS = (*plain.OPTIONS, "mode", "backend", "cache")


def load_libraries() -> None:
    """As diffusers."""
    plain.load_libraries()


def open_model(task: Task, clock: Clock) -> Loop:
    """The checkpoint, its UNet and decoder to be compiled when they are first called."""
    pipeline = check(task, OPTIONS)
    import torch
    import torch._inductor.config

    pipe, notes = plain.loaded(task, pipeline)
    kept = bool(task.options.get("cache", False))
    if not kept:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # else the first round compiles for all that follow
        torch._inductor.config.force_disable_caches = True
    how: dict[str, Any] = {name: str(task.options[name]) for name in ("mode", "backend") if name in task.options}
    for module in (pipe.unet, pipe.vae.decoder):
        module.forward = torch.compile(module.forward, **how)
    prepare(pipe, task, clock)
    notes.append("compiled code from torch's cache, where it has it" if kept else "compiled anew in each process")
    return Loop(pipe, task, plain.files(pipe, task.model), notes)
