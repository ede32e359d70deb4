"""NVIDIA GPUs. Advice from diffusers' page "Accelerate inference": half precision, TF32, channels-last, torch.compile.

ROCm's torch calls its GPUs cuda too, and nothing here excludes them. Not tried on either: this was written without one.
"""

from __future__ import annotations

import torch

from .policy import Policy, Wishes, compile_options, nothing

HOW_TO_GET = "CUDA needs an NVIDIA GPU, its driver, and a torch built for CUDA (pytorch.org/get-started/locally)"
GIB = 2**30


def present() -> list[str]:
    """`cuda` is the current GPU, `cuda:1` and on the others."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cuda", *(f"cuda:{index}" for index in range(1, count))] if count else []


def about() -> str:
    """The GPUs by name, compute capability and memory."""
    cards = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return "; ".join(f"{card.name} {card.major}.{card.minor}, {card.total_memory / GIB:.0f} GiB" for card in cards)


def policy(device: str, wishes: Wishes) -> Policy:
    """As asked; compiled graphs replay CUDA graphs in two of the modes, whose memory only one thread may use."""
    return Policy(
        device=device,
        most_rows=wishes.most_rows,
        one_at_a_time=wishes.compile is not None,
        channels_last=bool(wishes.channels_last),
        slice_above=0 if wishes.attention == "sliced" else None,
        tf32=wishes.tf32,
        threads=wishes.threads,
        autocast=wishes.autocast,
        compile_options=compile_options(wishes.compile),
        warm_up_runs=3 if wishes.compile else 1,  # with CUDA graphs: compile, record, replay
        before_run=torch.compiler.cudagraph_mark_step_begin if wishes.compile else nothing,
        explain=lambda error: explain(error, device),
    )


def explain(error: BaseException, device: str) -> str | None:
    """What would do when the GPU's memory is full."""
    if not isinstance(error, torch.cuda.OutOfMemoryError):
        return None
    free, total = torch.cuda.mem_get_info(device)
    return (
        f"{device} has {free / GIB:.1f} of {total / GIB:.1f} GiB free; fewer pictures at a time (most_rows=2), a bundle "
        "in bfloat16 or float16, attention='sliced', a smaller picture, or closing what else uses the GPU would do"
    )
