"""diffusers with `torch.compile` of the UNet and of the VAE's decoder. Compiling is part of the first call.

Options: those of diffusers; mode, backend, fullgraph: torch.compile's; inductor = {"conv_1x1_as_mm": true}: settings of
`torch._inductor.config`; cache = true keeps what was compiled for the next process, as torch does by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _diffusers_options as faster
from . import diffusers as plain
from ._diffusers_loop import Loop, check
from .measure import Clock, Task

PACKAGES = plain.PACKAGES
OPTIONS = (*plain.OPTIONS, "mode", "backend", "fullgraph", "inductor", "cache")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
INDUCTOR = "inductor"  # torch.compile's own backend: modes and settings are its


def load_libraries() -> None:
    """As diffusers."""
    plain.load_libraries()


def open_model(task: Task, clock: Clock) -> Loop:
    """The checkpoint, its UNet and decoder to be compiled when they are first called."""
    pipeline = check(task, OPTIONS)
    how = compile_arguments(task.options)
    settings = inductor_settings(task.options)
    import torch
    import torch._inductor.config

    pipe, notes = plain.loaded(task, pipeline)
    kept = bool(task.options.get("cache", False))
    if not kept:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # else the first round compiles for all that follow
        torch._inductor.config.force_disable_caches = True
    for name, value in settings.items():  # after torchao's own, which quantizing sets
        setattr(torch._inductor.config, name, value)
    for module in (pipe.unet, pipe.vae.decoder):
        module.forward = torch.compile(module.forward, **how)
    notes.append("compiled code from torch's cache, where it has it" if kept else "compiled anew in each process")
    return plain.opened(pipe, task, clock, notes)


def compile_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `torch.compile` is given. Raises ValueError for what it does not have."""
    import torch

    faster.require_flags(options, ("fullgraph", "cache"))
    how: dict[str, Any] = {name: str(options[name]) for name in ("mode", "backend") if name in options}
    if (mode := how.get("mode")) is not None and mode not in MODES:
        raise ValueError(f"mode={mode!r}; there is {', '.join(MODES)}")
    backend = how.get("backend", INDUCTOR)
    if "backend" in how and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise ValueError(f"backend={backend!r}; torch has {', '.join(known)}")
    own = [name for name in ("mode", "inductor") if name in options]
    if backend != INDUCTOR and own:
        raise ValueError(f"{', '.join(own)}: only the backend {INDUCTOR} has that; leave it out, or backend={backend}")
    return {**how, "fullgraph": True} if options.get("fullgraph") else how


def inductor_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the inductor that are asked for. Raises ValueError for those that this torch does not have."""
    import torch._inductor.config

    given = options.get("inductor", {})
    if not isinstance(given, dict):
        raise ValueError(f'inductor={given!r} is not a mapping such as {{"conv_1x1_as_mm": true}}')
    known = torch._inductor.config.get_config_copy()
    if missing := sorted(set(given) - set(known)):
        raise ValueError(f"inductor: torch {torch.__version__} has no setting {', '.join(missing)}")
    return given
