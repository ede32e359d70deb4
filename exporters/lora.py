"""LoRA fused into a checkpoint before it is cast: `W + scale * alpha / rank * up @ down`, in the torch modules.

The files are read and the sums are made by what does it at run time (`runtimes.loras`), so that a bundle exported with a
LoRA and one that is loaded with it have the same weights, and PEFT is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ingot.runtimes.bundle import describe_file
from ingot.runtimes.engines._weights import changed_weight
from ingot.runtimes.errors import InputError
from ingot.runtimes.loras import Loras, read_loras
from ingot.runtimes.loras.plan import plan
from ingot.runtimes.manifest import FusedLora


def fuse(pipe: Any, loras: Loras) -> tuple[FusedLora, ...]:
    """Add LoRAs to the weights of a pipeline's modules, which get new tensors for those that change.

    `loras` are (file, scale). Returns what a bundle says of them. Raises InputError for a file that is no LoRA, and one for
    another base.
    """
    given = read_loras(loras)
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}

    def weights(role: str) -> dict[str, tuple[int, ...]]:
        named = modules[role].named_parameters()
        return {name: tuple(parameter.shape) for name, parameter in named if parameter.is_floating_point()}

    for role, updates in plan(given, modules, weights).items():
        parameters = dict(modules[role].named_parameters())
        for name, update in updates.items():
            held = parameters[name].detach().float().numpy()
            parameters[name].data = torch.from_numpy(changed_weight(update, held)).to(parameters[name].dtype)
    return tuple(
        FusedLora(file=str(lora.file), sha256=describe_file(lora.file).sha256, scale=lora.scale) for lora in given
    )


def fuse_again(pipe: Any, fused: Sequence[FusedLora]) -> None:
    """Fuse what a bundle says it was made with. Raises InputError where a file is gone or another by now."""
    for lora in fused:
        file = Path(lora.file)
        if not file.is_file() or describe_file(file).sha256 != lora.sha256:
            raise InputError(
                f"the bundle was made with the LoRA {lora.file} (sha256 {lora.sha256[:16]}…), which is not there any more or "
                "another file by now: put it back, or give the fused pipeline itself as the model"
            )
    fuse(pipe, [(lora.file, lora.scale) for lora in fused])


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """A pipeline that the caller keeps has its own weights again afterwards; of what is loaded for a cast nothing is kept."""
    parts = getattr(model, "components", {}).values()
    before = [(p, p.data) for part in parts if isinstance(part, nn.Module) for p in part.parameters()]
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
