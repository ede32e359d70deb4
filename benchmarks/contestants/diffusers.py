"""diffusers on torch, as its quickstart runs it. Options: dtype = float32 | bfloat16 | float16; device, torch's name of it;
attention = sdpa | math; fuse_qkv, channels_last, tf32 = true; quantize = int8-dynamic, by torchao.
"""

from __future__ import annotations

from typing import Any

from . import _diffusers_options as faster
from ._diffusers_loop import Loop, check, prepare
from .measure import Clock, Task

PACKAGES = ("diffusers", "transformers", "torch", "accelerate")
OPTIONS = ("dtype", "device", *faster.OPTIONS)
TYPES = ("float32", "bfloat16", "float16")


def load_libraries() -> None:
    """torch, and what diffusers and transformers would import when a pipeline is opened."""
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import StableDiffusionPipeline  # noqa: F401


def open_model(task: Task, clock: Clock) -> Loop:
    """The checkpoint on its device, the processor where none is named."""
    pipe, notes = loaded(task, check(task, OPTIONS))
    return opened(pipe, task, clock, notes)


def opened(pipe: Any, task: Task, clock: Clock, notes: list[str]) -> Loop:
    """A pipeline that is loaded, ready to be called."""
    prepare(pipe, task, clock)
    loop = Loop(pipe, task, files(pipe, task.model), notes)
    loop.packages = (*PACKAGES, "torchao") if "quantize" in task.options else PACKAGES
    return loop


def loaded(task: Task, pipeline: str) -> tuple[Any, list[str]]:
    """The pipeline in its type, as its options want it, and what that changes. Nobody in a benchmark runs a safety checker."""
    import torch
    from diffusers import DiffusionPipeline

    name = str(task.options.get("dtype", "float32"))
    if name not in TYPES:
        raise ValueError(f"dtype {name!r}; there are {', '.join(TYPES)}")
    faster.check_values(task.options)
    faster.require_device(task.options)
    torch.set_num_threads(task.threads)
    unchecked = {} if "XL" in pipeline else {"safety_checker": None, "requires_safety_checker": False}
    pipe = DiffusionPipeline.from_pretrained(
        task.model, torch_dtype=getattr(torch, name), local_files_only=True, **unchecked
    )
    device = str(task.options.get("device", "cpu"))
    notes = [] if name == "float32" else [f"weights and sums in {name}"]
    notes += [] if device == "cpu" else [f"on the device {device}"]
    return pipe, notes + faster.configure(pipe.to(device), task.options)


def files(pipe: Any, model: str) -> list[str]:
    """The weights that were opened: a checkpoint may hold others beside them."""
    from pathlib import Path

    folders = [Path(model, name) for name in pipe.components if Path(model, name).is_dir()]
    return [str(file) for folder in folders for file in _weights(folder)]


def _weights(folder: Any) -> list[Any]:
    """Of one component: safetensors before .bin, the plain variant before others, and its configs and vocabularies."""
    found = [file for file in folder.iterdir() if file.is_file()]
    weights = [file for file in found if file.suffix in (".safetensors", ".bin", ".pt", ".ckpt")]
    plain = [file for file in weights if file.suffix == ".safetensors" and file.name.count(".") == 1]
    return [file for file in found if file not in weights] + (plain or weights)
