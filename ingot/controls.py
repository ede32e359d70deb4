"""The command line's options for prompts, added words, other VAEs and the safety checker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_export_options(command: argparse.ArgumentParser) -> None:
    """Those of `ingot export`."""
    _add_tokens(command, "add a textual inversion to the checkpoint's vocabulary")
    command.add_argument(
        "--long-prompts",
        action="store_true",
        help="have the denoiser take prompts of any length, for onnx, openvino and torch",
    )
    command.add_argument("--no-safety-checker", action="store_true", help="leave the checkpoint's safety checker out")


def export_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `ingot.export` is given for them."""
    return {
        "textual_inversions": options.textual_inversions,
        "long_prompts": options.long_prompts,
        "safety_checker": not options.no_safety_checker,
    }


def add_generate_options(command: argparse.ArgumentParser) -> None:
    """Those of `ingot generate`."""
    command.add_argument("--weighted", action="store_true", help="read (word:1.3) and [word] in prompts as weights")
    command.add_argument(
        "--long-prompts", action="store_true", help="encode what does not fit in chunks, and cut nothing"
    )
    command.add_argument(
        "--clip-skip", type=int, metavar="N", help="layers of the text encoder to leave out at its end"
    )
    _add_tokens(command, "add a textual inversion to the bundle's vocabulary for this run")
    command.add_argument(
        "--vae", type=Path, metavar="BUNDLE", help="decode with another bundle's VAE, such as a tiny one"
    )
    command.add_argument("--tile", type=int, metavar="PIXELS", help="decode in tiles of this side, to bound the memory")
    command.add_argument("--no-safety-checker", action="store_true", help="do without the bundle's safety checker")


def load_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `ingot.load` is given for them."""
    return {
        "textual_inversions": options.textual_inversions,
        "vae": options.vae,
        "safety_checker": not options.no_safety_checker,
    }


def token(text: str) -> tuple[str, str | None]:
    """`cat.safetensors:<cat>` as the file and its token; None where the file's own is meant."""
    file, _, name = text.rpartition(":")
    # a colon of the file's own, as in C:\\cat.safetensors, has a path or an ending behind it
    own = not file or "/" in name or "\\" in name or name.endswith(".safetensors")
    return (text, None) if own else (file, name)


def _add_tokens(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--textual-inversion", dest="textual_inversions", type=token, action="append", default=[], metavar="FILE[:TOKEN]",
        help=f"{what}: a .safetensors file, and what stands for it in prompts; may be given several times",
    )  # fmt: skip
