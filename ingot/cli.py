"""The command line: `ingot export | add | generate | inspect | verify | resources | doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot import __version__
from ingot.runtimes.errors import IngotError

from . import commands

TARGETS = "onnx, openvino, coreml, tensorrt or torch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error of the user's or the machine's, told in one line."""
    parsed = _parse(arguments)
    try:
        parsed.run(parsed)
    except IngotError as error:
        print(f"ingot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ingot: stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="ingot", description="Cast diffusion models into verified graphs and run them without PyTorch."
    )
    top.add_argument("--version", action="version", version=f"ingot {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")
    _add_export(verbs.add_parser("export", help="cast a checkpoint into a bundle"))
    _add_add(verbs.add_parser("add", help="add targets to a bundle"))
    _add_generate(verbs.add_parser("generate", help="make pictures from prompts"))
    _add_inspect(verbs.add_parser("inspect", help="show what a bundle holds"))
    _add_verify(verbs.add_parser("verify", help="hold a bundle against its manifest"))
    _add_resources(verbs.add_parser("resources", help="lay out Core ML graphs as Apple's Swift package reads them"))
    doctor = verbs.add_parser("doctor", help="show which engines and devices this machine has")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=commands.doctor)
    return top


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Prompts may stand behind options too, which argparse does not let a list of arguments do."""
    top = parser()
    parsed, rest = top.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "prompts") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.prompts += rest
    return parsed


def size(text: str) -> tuple[int, int]:
    """`512x768` as (height, width); `512` as a square."""
    height, times, width = text.lower().partition("x")
    try:
        return int(height), int(width if times else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; 512x768 is height 512 and width 768") from None


def option(text: str) -> tuple[str, str, Any]:
    """`coreml.attention=split_einsum` as its target, its name and its value: JSON where it is that, else the text."""
    key, equals, value = text.partition("=")
    target, dot, name = key.partition(".")
    if not (equals and dot and target and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not TARGET.OPTION=VALUE, such as coreml.attention=original")
    try:
        return target, name, json.loads(value)
    except ValueError:
        return target, name, value


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="'shapes', a folder, a hub id, or a .safetensors file")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the folder to make")
    command.add_argument("--to", default="onnx", metavar="TARGET[,TARGET]", help=f"{TARGETS} (default: onnx)")
    _add_casting(command)
    command.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    command.set_defaults(run=commands.export)


def _add_add(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--to", required=True, metavar="TARGET[,TARGET]", help=TARGETS)
    command.add_argument("--model", metavar="MODEL", help="the model, where it is no longer where it was")
    _add_casting(command)
    command.add_argument("--overwrite", action="store_true", help="replace the graphs that it has for a target")
    command.set_defaults(run=commands.add)


def _add_casting(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the weights (default: the target's own)",
    )
    command.add_argument("--size", type=size, metavar="HxW", help="size to record at; with --static the only size")
    command.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures at once to record with (default: 1)"
    )
    command.add_argument("--static", action="store_true", help="fix every dimension to --size and --batch")
    command.add_argument(
        "--set",
        dest="options",
        type=option,
        action="append",
        default=[],
        metavar="TARGET.OPTION=VALUE",
        help="an option of a target, as in coreml.attention=original; a wrong name is answered with those that exist",
    )
    command.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    command.add_argument("--config", metavar="FOLDER", help="for a single file: a checkpoint of the same architecture")
    command.add_argument("--allow-pickle", action="store_true", help="read .bin and .ckpt weights, which can run code")


def _add_resources(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    command.add_argument("--overwrite", action="store_true", help="replace such a folder")
    command.set_defaults(run=commands.resources)


def _add_generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="one or several; - reads them from standard input, a line each"
    )
    command.add_argument("--prompts", dest="prompt_file", type=Path, metavar="FILE", help="a prompt on each line")
    command.add_argument("--negative", metavar="PROMPT", help="what the picture should not show")
    command.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (default: 20)")
    command.add_argument(
        "--guidance", type=float, default=7.5, metavar="G", help="classifier-free guidance (default: 7.5)"
    )
    command.add_argument("--size", type=size, metavar="HxW", help="height x width (default: the model's own)")
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the first picture; the next takes S+1 (default: 0)"
    )
    command.add_argument("--count", type=int, default=1, metavar="N", help="pictures for each prompt (default: 1)")
    command.add_argument("--scheduler", metavar="NAME", help="another scheduler, by diffusers' class name")
    command.add_argument("--grid", action="store_true", help="one file with all pictures in rows")
    command.add_argument("--engine", metavar="ENGINE", help=f"{TARGETS} (default: by what the machine has)")
    command.add_argument("--device", metavar="DEVICE", help="cpu, cuda, gpu, mps, … (default: by what the machine has)")
    command.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out.png"),
        metavar="FILE",
        help="default: out.png; several: out-1.png, …",
    )
    command.set_defaults(run=commands.generate)


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--json", action="store_true", help="print the manifest")
    command.set_defaults(run=commands.inspect)


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--deep", action="store_true", help="also run every graph on its stored inputs")
    command.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    command.set_defaults(run=commands.verify)


if __name__ == "__main__":
    sys.exit(main())
