"""`make bench`: how soon Ingot is there: `import ingot`, opening a bundle, the first picture; each in a fresh process.

Medians of several runs with a warm file cache. Linux only. Bundle: `python -m ingot.benchmarks.start_up [BUNDLE]`, by default Shapes,
cast into a temporary folder.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 7
_STAGES = """
import time; t0 = time.perf_counter()
import ingot; t1 = time.perf_counter()
pipe = ingot.load({bundle!r}); t2 = time.perf_counter()
pipe('a large red ring on a blue background', num_inference_steps=20, seed=0, progress=False); t3 = time.perf_counter()
# not getrusage: its peak includes the process that started this one
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(t1 - t0, t2 - t1, t3 - t2, int(peak.split()[1]) / 1024)
"""
NAMES = ("import ingot, s", "ingot.load with hashes, s", "first picture, 20 steps, s", "peak resident memory, MiB")


def main() -> None:
    """Print a Markdown table of the medians and their spread."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = sys.argv[1] if len(sys.argv) > 1 else _cast(Path(folder) / "shapes")
        runs = [_measure(bundle) for _ in range(RUNS + 1)][1:]
    print(f"\n{bundle}, {RUNS} fresh processes after a warm-up\n\n| | median | least | most |\n|---|---|---|---|")
    for name, values in zip(NAMES, zip(*runs, strict=True), strict=True):
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


def _cast(path: Path) -> str:
    import ingot

    return str(ingot.export("shapes", path))


def _measure(bundle: str) -> tuple[float, ...]:
    done = subprocess.run(
        [sys.executable, "-c", _STAGES.format(bundle=bundle)], capture_output=True, text=True, check=True
    )
    return tuple(float(value) for value in done.stdout.split())


if __name__ == "__main__":
    main()
