"""`make bench`: how soon Ingot is there: `import ingot`, opening a bundle, the first picture; each in a fresh process.

Medians of several runs with a warm file cache; the bundle's engines take turns. Linux only. `python -m ingot.benchmarks.start_up
[BUNDLE] [--engines onnx openvino] [--threads 1]`, by default Shapes, cast for those engines into a temporary folder.
`--before FOLDER` names a folder with another `ingot` package, which takes turns with this one: what a change did.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# CLOCK_MONOTONIC is one for all processes: `began` is the parent's, just before it starts the process
_STAGES = """
import time
began, clock = {began!r}, time.monotonic
started = clock()
import ingot
imported = clock()
pipe = ingot.load({bundle!r}, engine={engine!r}, threads={threads!r})
loaded = clock()
marks = []
pipe('a large red ring on a blue background', num_inference_steps=20, seed=0, progress=False,
     callback_on_step_end=lambda *_: marks.append(clock()))
done = clock()
# not getrusage: its peak includes the process that started this one
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(started - began, imported - started, loaded - imported, marks[0] - loaded, marks[-1] - marks[0], done - marks[-1],
      done - began, time.process_time(), int(peak.split()[1]) / 1024)
"""
NAMES = (
    "the interpreter, s",
    "import ingot, s",
    "ingot.load with hashes: imports NumPy and the engine, s",
    "first step, texts included, s",
    "19 steps more, s",
    "decoding, s",
    "process start to first picture, s",
    "processor time of it all, s",
    "peak resident memory, MiB",
)


def main() -> None:
    """Print a Markdown table of the medians and their spread for each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--engines", nargs="+", default=["onnx"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--before")
    options = parser.parse_args()
    packages = [None, options.before] if options.before else [None]
    turns = [(engine, package) for engine in options.engines for package in packages]
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or _cast(Path(folder) / "shapes", options.engines)
        rounds = [
            {turn: _measure(bundle, turn[0], options.threads, turn[1]) for turn in turns}
            for _ in range(options.runs + 1)
        ][1:]
    for engine, package in turns:
        which = f"{engine}, {package}" if package else engine
        title = f"{bundle}, {which}, {options.runs} fresh processes after a warm-up"
        print(f"\n{title}\n\n| | median | least | most |\n|---|---|---|---|")
        for name, values in zip(NAMES, zip(*(one[engine, package] for one in rounds), strict=True), strict=True):
            print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


def _cast(path: Path, engines: list[str]) -> str:
    import ingot

    return str(ingot.export("shapes", path, to=",".join(engines)))


def _measure(bundle: str, engine: str, threads: int | None, package: str | None) -> tuple[float, ...]:
    script = _STAGES.format(began=time.monotonic(), bundle=bundle, engine=engine, threads=threads)
    # installed packages have their bytecode; an editable Ingot gets its own in the warm-up
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if package is not None:
        environment["PYTHONPATH"] = package
    # -P: not the folder that this runs in, which may hold the sources of one of them
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return tuple(float(value) for value in done.stdout.split())


if __name__ == "__main__":
    main()
