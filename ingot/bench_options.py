"""`ingot bench`: its options and what it does."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ingot.runtimes.errors import IngotError, InputError

TIMEOUT = 3600.0


def add_options(command: argparse.ArgumentParser, size: Any) -> None:
    """All of them; `size` reads HxW."""
    command.add_argument("bundles", nargs="*", metavar="BUNDLE", help="one or several")
    command.add_argument(
        "--compare", nargs=2, metavar=("OLD", "NEW"), help="hold a report against an older one, and measure nothing"
    )
    command.add_argument("--threshold", metavar="SHARE", help="with --compare: what counts as a change (default: 5%%)")
    command.add_argument(
        "--metric", action="append", default=[], metavar="NAME[=SHARE]", help="with --compare: these figures alone"
    )
    _add_contestants(command)
    _add_grid(command, size)
    _add_measuring(command)
    command.set_defaults(run=bench)


def _add_contestants(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engines", type=words, metavar="NAME,...", help="engines (default: all that the bundle has and that run here)"
    )
    command.add_argument(
        "--schemes", type=words, metavar="NAME,...", help="precisions (default: all that the bundle has)"
    )
    command.add_argument(
        "--baseline",
        type=words,
        default=[],
        metavar="NAME,...",
        help="peers to run beside; a wrong name is answered with those that there are",
    )
    command.add_argument(
        "--model", metavar="CHECKPOINT", help="what baselines load (default: what the bundle was made from)"
    )
    command.add_argument(
        "--contestant", action="append", default=[], metavar="NAME: KEY=VALUE, ...|NAME=FILE.py",
        help="a recipe, as in 'fast: engine=openvino, precision=int8-static, cache_interval=3', or a contestant of your own; "
        "without --engines and --schemes only these run",
    )  # fmt: skip
    command.add_argument(
        "--reference",
        metavar="NAME",
        help="the contestant that others are held against (default: the first baseline, else the first in floats)",
    )


def _add_grid(command: argparse.ArgumentParser, size: Any) -> None:
    command.add_argument(
        "--sizes", type=several(size), metavar="HxW,...", help="pictures' sizes (default: the model's own)"
    )
    command.add_argument(
        "--batch", type=several(int), default=[1], metavar="N,...", help="pictures a call (default: 1)"
    )
    command.add_argument(
        "--steps", type=several(int), default=[20], metavar="N,...", help="denoising steps (default: 20)"
    )
    command.add_argument(
        "--threads", type=several(int), metavar="N,...", help="threads (default: as many as there are cores)"
    )
    command.add_argument("--guidance-scale", type=float, default=7.5, metavar="G", help="guidance (default: 7.5)")
    command.add_argument("--scheduler", metavar="NAME", help="by diffusers' class name (default: the model's own)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first picture (default: 0)")
    command.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt on each line, taken in turn")


def _add_measuring(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="fresh processes of each contestant (default: 3)"
    )
    command.add_argument(
        "--calls",
        type=int,
        default=3,
        metavar="N",
        help="calls after the first in each (default: 3); 0 for models that take minutes: the first stands for all",
    )
    command.add_argument(
        "--timeout", type=float, default=TIMEOUT, metavar="S", help="seconds that a process may take (default: 3600)"
    )
    command.add_argument(
        "--device", default="cpu", metavar="NAME",
        help="where Ingot and diffusers run, such as cuda; the other baselines run on cpu alone (default: cpu)",
    )  # fmt: skip
    command.add_argument("--title", default="", metavar="TEXT", help="the report's title")
    command.add_argument(
        "--environments",
        type=Path,
        metavar="FOLDER",
        help="where baselines' environments are (default: build/bench-env)",
    )
    command.add_argument(
        "--work", type=Path, metavar="FOLDER", help="where baselines' exports are kept (default: ~/.cache/ingot/bench)"
    )
    command.add_argument("--clip", type=Path, metavar="FOLDER", help="a local CLIP model, for the CLIP score")
    command.add_argument("--fid", metavar="FOLDER:WEIGHTS", help="real pictures and Inception's weights, for FID")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="REPORT",
        help="the folder to make: report.json, .csv, .md, .html, pictures",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the report in such a folder")
    command.add_argument("--quiet", action="store_true", help="no line for each process")


def words(text: str) -> list[str]:
    """`onnx,openvino` as a list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def several(read: Any) -> Any:
    """A reader of values between commas."""

    def values(text: str) -> list[Any]:
        return [read(word) for word in words(text)]

    values.__name__ = getattr(read, "__name__", "value")  # what argparse calls a value that cannot be read
    return values


def bench(options: argparse.Namespace) -> int:
    """`ingot bench`: 0; with --compare 1 where something is worse."""
    return _compare(options) if options.compare else _measure(options)


def _compare(options: argparse.Namespace) -> int:
    """1 says that something became worse, so what cannot be compared at all is 2."""
    from ingot.benchmarks.harness.compare import main_compare
    from ingot.benchmarks.harness.figures import read_thresholds

    try:
        if options.bundles:
            raise InputError("--compare takes two reports and measures nothing: leave the bundles out")
        old, new = options.compare
        return main_compare(old, new, read_thresholds(options.threshold, options.metric))
    except IngotError as error:
        print(f"ingot: {error}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace) -> int:
    from ingot.benchmarks.harness import run, summary, tables

    named = (
        "engines", "schemes", "sizes", "batch", "steps", "threads", "guidance_scale", "scheduler", "seed", "baseline",
        "model", "contestant", "reference", "prompts", "rounds", "calls", "timeout", "device", "title", "environments", "work", "clip",
        "fid", "output", "overwrite",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in named}
    report = run.bench(
        *options.bundles, progress=not options.quiet, command=shlex.join(["ingot", *sys.argv[1:]]), **given
    )
    print(tables.markdown(report, summary.summarize(report)), end="")
    if options.output is not None:
        print(f"wrote {options.output}", file=sys.stderr)
    return 0 if any(row.runs for row in report.rows) else 1
