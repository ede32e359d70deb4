"""Time and memory of a full-size export: `python -m ingot.benchmarks.full_size WORK_FOLDER [--to openvino] [OPTIONS OF ingot export]`.

Makes a Stable Diffusion 1.5 checkpoint with random weights, casts it with the command line in a process of its own, and prints
seconds and the process's peak resident memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .random_checkpoint import saved


def main() -> None:
    """Make the checkpoint where there is none yet, cast it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="needs 9 GB")
    parser.add_argument("--to", default="onnx", help="targets, as for ingot export; so is whatever follows")
    arguments, rest = parser.parse_known_args()
    checkpoint, bundle = saved(arguments.work / "checkpoint"), arguments.work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    began = time.monotonic()
    options = ["--to", arguments.to, *rest]
    command = [sys.executable, "-m", "ingot.cli", "export", str(checkpoint), "-o", str(bundle), *options]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    print(f"\n| Stable Diffusion 1.5, random weights | {' '.join(options)} |\n|---|---|")
    print(
        f"| export, s | {seconds:.0f} |\n| peak resident memory, GiB | {peak / 2**30:.2f} |\n| bundle, GB | {size / 1e9:.2f} |"
    )


if __name__ == "__main__":
    main()
