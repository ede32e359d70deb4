"""What an export costs, beside optimum-cli's of the same checkpoint: seconds, peak memory, size.

    python -m ingot.benchmarks.export_cost CHECKPOINT --to onnx,openvino --work W [--rounds 1] [--environments FOLDER]

Both write float32 weights, in turn, each in a fresh process, with what it does by itself: see CHECKS. Seconds are of the wall
clock, those that Ingot says went into its checks beside them, and of the processors together. Memory is resident, of the
process with all that it starts, sampled ten times a second. Needs `make bench-env`. Linux tells the memory.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from ingot.exporters.stages import CHECKS as CHECKS_STAGE
from ingot.runtimes.errors import ExportError, IngotError, InputError, unknown

from .harness._watched import watched
from .harness.environments import FOLDER, python_of
from .harness.prepare import EXPORTERS, Prepared, checkpoint_folder, export

Cost = tuple[
    float, float | None, float, float, float
]  # seconds, of them checks, processor seconds, peak MiB, MB on disk
CHECKED = re.compile(rf"took \d+ s:.* {CHECKS_STAGE} (\d+)")  # what an export says at its end
CHECKS = {
    ("ingot", "onnx"): "every graph against torch, a whole picture, a hash of each file",
    ("ingot", "openvino"): "every graph against torch, a whole picture, a hash of each file",
    ("optimum-cli", "onnx"): "every graph against torch, a difference is a warning",
    ("optimum-cli", "openvino"): "none",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Export in turn, print the table."""
    parser = argparse.ArgumentParser(prog="ingot.benchmarks.export_cost", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="'shapes', or a folder")
    parser.add_argument("--to", default="onnx,openvino", metavar="TARGET[,TARGET]", help="onnx, openvino")
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for what is exported; about twice the checkpoint's size"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--environments", type=Path, default=FOLDER, help="where `make bench-env` made them")
    given = parser.parse_args(arguments)
    try:
        print(table(measured(given.checkpoint, given.to.split(","), given.work, given.rounds, given.environments)))
    except IngotError as error:
        raise SystemExit(f"error: {error}") from None


def measured(
    checkpoint: str, targets: Sequence[str], work: Path, rounds: int, environments: Path
) -> dict[tuple[str, str], list[Cost]]:
    """What each round took, by tool and target. All is checked before anything is exported."""
    if rounds < 1:
        raise InputError(f"--rounds {rounds}; at least 1")
    for target in targets:
        if target not in EXPORTERS:
            raise unknown("target", target, EXPORTERS)
    source = checkpoint_folder(checkpoint)
    pythons = {target: python_of(EXPORTERS[target], environments) for target in targets}
    found: dict[tuple[str, str], list[Cost]] = {}
    place = work / "export-cost"
    for target, tool in itertools.product([*targets] * rounds, ("ingot", "optimum-cli")):
        shutil.rmtree(place, ignore_errors=True)  # one at a time: a checkpoint may be large
        folder = place / tool
        if tool == "ingot":
            made, checks = _ingot(source, target, folder)
        else:
            made, checks = export(target, source, folder, pythons[target]), None
        cost = (made.seconds, checks, made.processor_s, made.peak_mib, _megabytes(folder))
        found.setdefault((tool, target), []).append(cost)
    shutil.rmtree(place)
    return found


def table(found: dict[tuple[str, str], list[Cost]]) -> str:
    """Markdown: medians, with least and most where there is more than one round."""
    lines = [
        "| export | seconds | of them checks | processor seconds | peak memory, MiB | on disk, MB | what is checked |",
        "|---|---|---|---|---|---|---|",
    ]
    for (tool, target), rounds in found.items():
        cells = [
            _cell(values, digits) for values, digits in zip(zip(*rounds, strict=True), (1, 1, 1, 0, 1), strict=True)
        ]
        lines.append(f"| {tool}, {target} | {' | '.join(cells)} | {CHECKS[tool, target]} |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    middle = f"{statistics.median(known):,.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):,.{digits}f} to {max(known):,.{digits}f})"


def _ingot(source: Path, target: str, folder: Path) -> tuple[Prepared, float | None]:
    """What was exported, and how many seconds its checks took."""
    command = [sys.executable, "-c", "from ingot.cli import main; main()", "export", str(source), "--to", target]
    command += ["--dtype", "float32", "--no-safety-checker", "--output", str(folder)]
    done = watched(command, {**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise ExportError(
            f"ingot export ended with {done.returncode}: {' | '.join(done.output.strip().splitlines()[-3:])}"
        )
    told = CHECKED.search(done.output)
    checks = float(told[1]) if told else None
    return Prepared(folder, done.seconds, done.peak_mib, tuple(command), done.processor_s), checks


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
