"""The CPU: threads inside an operator, and nothing else."""

from __future__ import annotations

import torch

from .policy import Policy, Wishes, compile_options

HOW_TO_GET = "every torch has it"


def present() -> list[str]:
    """Always there."""
    return ["cpu"]


def about() -> str:
    """Its vector instructions and how many threads torch would use."""
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def policy(device: str, wishes: Wishes) -> Policy:
    """As asked."""
    return Policy(
        device=device,
        most_rows=wishes.most_rows,
        one_at_a_time=wishes.compile is not None,
        channels_last=bool(wishes.channels_last),
        slice_above=0 if wishes.attention == "sliced" else None,
        threads=wishes.threads,
        autocast=wishes.autocast,
        compile_options=compile_options(wishes.compile),
    )
