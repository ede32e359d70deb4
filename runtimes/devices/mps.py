"""Apple silicon. From diffusers' page on MPS: slice the attention below 64 GB of memory or above 512x512 pixels, one
prompt at a time, and with torch 1.13 a first pass whose result is thrown away. Not tried on a Mac.
"""

from __future__ import annotations

import os
import warnings

import torch

from .policy import Policy, Wishes, compile_options

HOW_TO_GET = "MPS needs Apple silicon, macOS 13 or later and an arm64 Python"
ENOUGH_MEMORY = 64 * 2**30
LATENT_TOKENS_AT_512 = 64 * 64  # 512 pixels are 64 latents wide
PROMPT_ROWS = 2  # one prompt, with guidance
PRESSURE = 0.9  # of what Metal recommends to stay below


def present() -> list[str]:
    """`mps` on a Mac whose torch has it."""
    return ["mps"] if torch.backends.mps.is_available() else []


def about() -> str:
    """Its memory, which the CPU shares."""
    return f"{memory_bytes() / 2**30:.0f} GiB shared with the CPU, fallback to it {'on' if fallback_is_on() else 'off'}"


def policy(device: str, wishes: Wishes) -> Policy:
    """Slices attention by memory and size, takes one prompt at a time, has no float64, and warns of full memory."""
    always = wishes.attention == "sliced" or memory_bytes() < ENOUGH_MEMORY
    return Policy(
        device=device,
        most_rows=wishes.most_rows or PROMPT_ROWS,
        one_at_a_time=True,  # torch has one stream on MPS
        no_float64=True,
        channels_last=bool(wishes.channels_last),
        slice_above=None if wishes.attention == "sdpa" else 0 if always else LATENT_TOKENS_AT_512,
        threads=wishes.threads,
        autocast=wishes.autocast,
        compile_options=compile_options(wishes.compile),
        discard_first=first_pass_differs(torch.__version__),
        before_run=warn_of_pressure,
        explain=explain,
    )


def first_pass_differs(version: str) -> bool:
    """Whether the first pass gives other numbers than those after it, as with torch before 2.0."""
    return int(version.partition(".")[0]) < 2


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fallback_is_on() -> bool:
    """Whether operators that MPS lacks go to the CPU; torch reads the variable when it is imported."""
    return os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"


def warn_of_pressure() -> None:
    """Say when Metal holds more than it recommends: past it memory that the CPU shares runs short."""
    used, most = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    if used > PRESSURE * most:
        warnings.warn(
            f"MPS holds {used / 2**30:.1f} GiB of the {most / 2**30:.1f} GiB that Metal recommends, and macOS may swap. A "
            "float16 bundle, attention='sliced', or a smaller picture would do",
            stacklevel=2,
        )


def explain(error: BaseException) -> str | None:
    """What would do when an operator is missing or memory is full."""
    said = str(error)
    if "not currently implemented for the MPS device" in said:
        return "PYTORCH_ENABLE_MPS_FALLBACK=1, set before Python starts, runs the missing operator on the CPU"
    if "MPS backend out of memory" in said:
        return "a float16 bundle, attention='sliced', most_rows=1 or a smaller picture needs less memory"
    if "float64" in said:
        return "MPS has no float64: give float32"
    return None
