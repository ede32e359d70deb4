"""The command line: `ingot export | add | quantize | generate | bench | inspect | verify | resources | doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingot import __version__
from ingot.runtimes.errors import IngotError

from . import bench_options, commands, controls

TARGETS = "onnx, openvino, coreml, tensorrt or torch"
SCHEMES = "int8-dynamic, int8-weights, int4-weights, int8-static, int8-hybrid, fp16, bf16, palette-8, palette-6, palette-4 or fp8"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or what the command itself does; 1 after an error of the user's or the machine's, told in
    one line."""
    parsed = _parse(arguments)
    try:
        return parsed.run(parsed) or 0
    except IngotError as error:
        print(f"ingot: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ingot: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="ingot", description="Cast diffusion models into verified graphs and run them without PyTorch."
    )
    top.add_argument("--version", action="version", version=f"ingot {__version__}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")
    _add_export(verbs.add_parser("export", help="cast a checkpoint into a bundle"))
    _add_add(verbs.add_parser("add", help="add targets to a bundle"))
    _add_quantize(verbs.add_parser("quantize", help="add smaller and faster graphs, with what they cost"))
    _add_generate(verbs.add_parser("generate", help="make pictures from prompts"))
    bench_options.add_options(
        verbs.add_parser("bench", help="measure bundles beside each other and beside peers"), size
    )
    _add_inspect(verbs.add_parser("inspect", help="show what a bundle holds"))
    _add_verify(verbs.add_parser("verify", help="hold a bundle against its manifest"))
    _add_resources(verbs.add_parser("resources", help="lay out Core ML graphs as Apple's Swift package reads them"))
    doctor = verbs.add_parser("doctor", help="show which engines and devices this machine has")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=commands.doctor)
    return top


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Prompts and bundles may stand behind options too, which argparse does not let a list of arguments do."""
    top = parser()
    parsed, rest = top.parse_known_args(arguments)
    lists = [value for name in ("bundles", "prompts") if isinstance(value := getattr(parsed, name, None), list)]
    if rest and (not lists or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        lists[0] += rest
    return parsed


def size(text: str) -> tuple[int, int]:
    """`512x768` as (height, width); `512` as a square."""
    height, times, width = text.lower().partition("x")
    try:
        return int(height), int(width if times else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; 512x768 is height 512 and width 768") from None


def lora(text: str) -> tuple[str, float]:
    """`style.safetensors:0.8` as the file and its scale, which is 1 where none is said."""
    file, _, scale = text.rpartition(":")
    try:
        return (file, float(scale)) if file else (text, 1.0)
    except ValueError:  # a colon of the file's own
        return text, 1.0


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
    command.add_argument(
        "--rewrite", dest="rewrites", action="append", default=[], metavar="NAME[=VALUE]",
        help="change the model first, as in fused_qkv or token_merging=0.5; a wrong name is answered with those that exist",
    )  # fmt: skip
    command.add_argument(
        "--deep-cache",
        type=int,
        metavar="BRANCH",
        help="write a shallow UNet too; 0 is the cheapest, the outermost layers",
    )
    _add_lora(command, "add a LoRA to the checkpoint's weights, for good")
    controls.add_export_options(command)
    command.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    command.set_defaults(run=commands.export)


def _add_lora(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--lora", dest="loras", type=lora, action="append", default=[], metavar="FILE:SCALE",
        help=f"{what}: a .safetensors file and how strongly (default: 1); may be given several times",
    )  # fmt: skip


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
    command.add_argument("--vae", metavar="FOLDER", help="another autoencoder to decode with, such as a tiny one")
    command.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    command.add_argument("--config", metavar="FOLDER", help="for a single file: a checkpoint of the same architecture")
    command.add_argument("--allow-pickle", action="store_true", help="read .bin and .ckpt weights, which can run code")


def _add_quantize(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    how = command.add_mutually_exclusive_group(required=True)
    how.add_argument("--scheme", metavar="SCHEME[,SCHEME]", help=SCHEMES)
    how.add_argument("--auto", action="store_true", help="measure every scheme here and keep what is on the frontier")
    how.add_argument("--recipe", type=Path, metavar="PATH", help="repeat what a bundle, or a file of recipes, says")
    command.add_argument("--to", metavar="ENGINE[,ENGINE]", help="engines (default: those of the bundle that have it)")
    command.add_argument("--components", metavar="ROLE[,ROLE]", help="components (default: all)")
    command.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers to leave in floats, as in '*.conv_in'"
    )
    command.add_argument("--calibrate", type=Path, metavar="FILE", help="prompts that static schemes are calibrated on")
    command.add_argument("--calls", type=int, default=32, metavar="N", help="calls to calibrate with (default: 32)")
    command.add_argument(
        "--prompts", dest="prompt_file", type=Path, metavar="FILE", help="prompts to measure damage on"
    )
    command.add_argument("--min-psnr", type=float, metavar="DB", help="floor of the pictures, against the float graphs")
    command.add_argument("--min-checker", type=float, metavar="SHARE", help="floor of the model's checker, 0 to 1")
    command.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (default: 20)")
    command.add_argument("--guidance", type=float, default=4.0, metavar="G", help="guidance scale (default: 4)")
    command.add_argument("--size", type=size, metavar="HxW", help="height x width (default: the model's own)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first picture (default: 0)")
    command.add_argument(
        "--set", dest="options", type=option, action="append", default=[], metavar="ENGINE.OPTION=VALUE",
        help="an option of a toolchain, as in onnx.block_size=64",
    )  # fmt: skip
    command.add_argument("--overwrite", action="store_true", help="make graphs anew that the bundle has")
    command.set_defaults(run=commands.quantize)


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
    _add_start(command)
    _add_loop(command)
    command.add_argument("--size", type=size, metavar="HxW", help="height x width (default: the model's own)")
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the first picture; the next takes S+1 (default: 0)"
    )
    command.add_argument("--count", type=int, default=1, metavar="N", help="pictures for each prompt (default: 1)")
    command.add_argument("--scheduler", metavar="NAME", help="another scheduler, by diffusers' class name")
    _add_lora(command, "add a LoRA to the weights for this run")
    controls.add_generate_options(command)
    command.add_argument("--grid", action="store_true", help="one file with all pictures in rows")
    command.add_argument("--engine", metavar="ENGINE", help=f"{TARGETS} (default: by what the machine has)")
    command.add_argument("--device", metavar="DEVICE", help="cpu, cuda, gpu, mps, … (default: by what the machine has)")
    command.add_argument(
        "--precision", metavar="NAME", help="float32, int8-static, … (default: what the bundle has first)"
    )
    command.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="default: out.png; several: out-1.png, …; of a prior's bundle out.safetensors",
    )
    command.set_defaults(run=commands.generate)


def _add_start(command: argparse.ArgumentParser) -> None:
    """What a picture starts from, and is steered by."""
    command.add_argument("--image", type=Path, metavar="FILE", help="a picture to begin with")
    command.add_argument(
        "--strength",
        type=float,
        metavar="SHARE",
        help="how much of --image to change, 0 to 1 (default: the task's own)",
    )
    command.add_argument(
        "--embeds", type=Path, metavar="FILE", help="a prior's embeddings, .safetensors, for its decoder's bundle"
    )
    command.add_argument("--mask", type=Path, metavar="FILE", help="paint --image anew only where this one is white")
    command.add_argument(
        "--control-image", dest="control_images", type=Path, action="append", default=[], metavar="FILE",
        help="a picture that a ControlNet or T2I-Adapter steers by; several: one for each of them, else for each prompt",
    )  # fmt: skip
    command.add_argument(
        "--control-scale", dest="control_scales", type=float, action="append", default=[], metavar="S",
        help="how much it steers (default: the pipeline's own); once, or for each ControlNet or adapter",
    )  # fmt: skip
    command.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="LABEL",
        help="a class by number or name, for models without prompts; may be given several times",
    )  # fmt: skip


def _add_loop(command: argparse.ArgumentParser) -> None:
    """How the loop runs."""
    command.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps (default: 20; without a prompt the model's own)"
    )
    command.add_argument(
        "--guidance",
        type=float,
        metavar="G",
        help="guidance (default: the model's own, such as 7.5 for Stable Diffusion)",
    )
    command.add_argument(
        "--guidance-start",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the steps before guidance (default: 0)",
    )
    command.add_argument(
        "--guidance-end",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the steps where guidance ends (default: 1)",
    )
    command.add_argument(
        "--cache-interval",
        type=int,
        default=1,
        metavar="N",
        help="with DeepCache: the full UNet every N steps (default: 1)",
    )


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--json", action="store_true", help="print the manifest")
    command.add_argument("--recipes", action="store_true", help="print the recipes of its quantized graphs, as JSON")
    command.set_defaults(run=commands.inspect)


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", type=Path, metavar="BUNDLE")
    command.add_argument("--deep", action="store_true", help="also run every graph on its stored inputs")
    command.add_argument("--threads", type=int, metavar="N", help="threads of the engine")
    command.set_defaults(run=commands.verify)


if __name__ == "__main__":
    sys.exit(main())
