"""How time and memory grow: `python -m ingot.benchmarks.scaling BUNDLE -o FOLDER [--engine onnx] [--axes sizes batch ...]`.

`ingot bench` over one axis at a time: resolution (beside it the VAE in tiles), batch, threads, steps; what does not vary is as
the options say. Each axis leaves its report in FOLDER/AXIS and two plots, seconds a picture and peak memory, as SVG;
FOLDER/README.md shows them all. An axis whose report is there already is not measured again (`--overwrite`: it is).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import ingot

from .harness.folder import JSON, write
from .harness.reading import read_report
from .harness.record import Report
from .harness.summary import Line, summarize

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe & Ito 2008: told apart by the colour-blind
AXES = ("sizes", "batch", "threads", "steps")
TITLES = {"sizes": "Resolution", "batch": "Batch", "threads": "Threads", "steps": "Steps"}
UNITS = {"sizes": "pixels to a side", "batch": "pictures at once", "threads": "threads", "steps": "steps"}
MODULE = "ingot.benchmarks.scaling"
WIDTH, HEIGHT, MARGIN = 520, 320, 60
Curve = list[tuple[float, float]]


def main() -> None:
    """Measure every axis, print its table, draw its plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engine", default="onnx")
    parser.add_argument("--precision")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384, 512, 768, 1024])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--size", type=int, default=256, help="where it does not vary; as steps and threads below")
    parser.add_argument("--fixed-steps", type=int, default=4)
    parser.add_argument("--fixed-threads", type=int, default=2)
    parser.add_argument("--tile", type=int, default=256, help="pixels to a side of the tiles that the VAE decodes in")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true", help="measure again what is there")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for axis in options.axes:
        if options.overwrite or not (options.output / axis / JSON).exists():
            measured(axis, options)
        else:
            print(
                f"{axis}: not measured, {options.output / axis} has its report; --overwrite measures again",
                file=sys.stderr,
            )
        report = read_report(options.output / axis)
        lines = summarize(report)
        for name, curves in plotted(axis, lines).items():
            write(options.output / f"{axis}-{name}.svg", svg(axis, name, curves))
        print("\n".join(section(axis, report, lines)), flush=True)
        write(options.output / "README.md", page(options.output))


def measured(axis: str, options: argparse.Namespace) -> None:
    """`ingot bench` along one axis."""
    recipe = f"engine={options.engine}" + (f", precision={options.precision}" if options.precision else "")
    given: dict[str, Any] = {
        "sizes": [(options.size, options.size)], "batch": [1], "steps": [options.fixed_steps], "threads": [options.fixed_threads],
    }  # fmt: skip
    given[axis] = [(side, side) for side in options.sizes] if axis == "sizes" else getattr(options, axis)
    contestants = [f"whole: {recipe}"] + ([f"VAE in tiles: {recipe}, tile={options.tile}"] if axis == "sizes" else [])
    ingot.bench(
        options.bundle, **given, contestant=contestants, rounds=options.rounds, calls=options.calls, output=options.output / axis,
        overwrite=True, title=f"{options.bundle.name} over {axis}", command=shlex.join(["python", "-m", MODULE, *sys.argv[1:]]),
    )  # fmt: skip


def page(folder: Path) -> str:
    """Markdown of all axes that the folder has reports of."""
    parts = ["# How time and memory grow"]
    for axis in AXES:
        if (folder / axis / JSON).exists():
            report = read_report(folder / axis)
            parts += section(axis, report, summarize(report))
            parts += ["", f"![Seconds a picture]({axis}-seconds.svg) ![Peak memory]({axis}-memory.svg)"]
    return "\n".join(parts) + "\n"


def section(axis: str, report: Report, lines: Sequence[Line]) -> list[str]:
    """Markdown: what was measured, where, by which command, and the figures."""
    job = report.jobs[0]
    fixed = {
        "sizes": f"{job.width}x{job.height} pixels", "batch": f"batch {job.batch}", "steps": f"{job.steps} steps",
        "threads": f"{job.threads} threads",
    }  # fmt: skip
    machine = f"{report.machine.processor}, {report.machine.cores} cores, {len(report.rows[0].runs)} round(s)"
    rows = [
        f"\n## {TITLES[axis]}",
        f"\n`{report.command}`: {', '.join(text for name, text in fixed.items() if name != axis)}; {machine}.",
        *([f"The machine was not quiet: {report.noise.why}."] if report.noise.noisy else []),
        "",
        f"| {axis} | | seconds a picture | a step | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        seconds = f"{line.picture_s.median:.3g}" if line.picture_s else line.error or ""
        step = f"{line.step_s.median:.3g}" if line.step_s else ""
        rows.append(f"| {place(axis, line):g} | {line.contestant} | {seconds} | {step} | {line.peak_mib or 0:,.0f} |")
    return rows


def plotted(axis: str, lines: Sequence[Line]) -> dict[str, dict[str, Curve]]:
    """By plot and contestant: (place on the axis, value)."""
    found: dict[str, dict[str, Curve]] = {"seconds": {}, "memory": {}}
    for line in lines:
        if line.picture_s is not None:
            found["seconds"].setdefault(line.contestant, []).append((place(axis, line), line.picture_s.median))
        if line.peak_mib:
            found["memory"].setdefault(line.contestant, []).append((place(axis, line), line.peak_mib))
    return found


def place(axis: str, line: Line) -> float:
    """Where a line stands on its axis: pixels to a side, or the number that varies."""
    return float(line.size.partition("x")[0]) if axis == "sizes" else float(getattr(line, axis))


def svg(axis: str, name: str, curves: dict[str, Curve]) -> str:
    """A plot with linear axes from 0."""
    points = [point for curve in curves.values() for point in curve] or [(1.0, 1.0)]
    right, ticks = max(x for x, _ in points), round_numbers(max(y for _, y in points))
    unit = {"seconds": "seconds a picture", "memory": "peak resident memory, MiB"}[name]

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / right * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y / ticks[-1] * (HEIGHT - 2 * MARGIN)

    drawn = [_text(WIDTH / 2, 24, f"{unit}, over {UNITS[axis]}", "middle")]
    for x in sorted({x for x, _ in points}):
        drawn.append(_text(at(x, 0)[0], HEIGHT - MARGIN + 18, f"{x:g}", "middle"))
    for y in ticks:
        drawn.append(_text(MARGIN - 6, at(0, y)[1] + 4, f"{y:,g}", "end"))
        drawn.append(f'<path d="M{MARGIN} {at(0, y)[1]:.1f}H{WIDTH - MARGIN}" stroke="#bbb" fill="none"/>')
    for index, (contestant, curve) in enumerate(curves.items()):
        colour, places = COLOURS[index % len(COLOURS)], [at(*point) for point in sorted(curve)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="2" fill="none"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
        if len(curves) > 1:
            drawn.append(_text(MARGIN + 160 * index, HEIGHT - 14, contestant, "start", colour))
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="background:#fff">{"".join(drawn)}</svg>\n'


def round_numbers(largest: float) -> list[float]:
    """Ticks from 0 to at least the largest value, a few of them, at a distance of 1, 2 or 5 times a power of ten.

    >>> round_numbers(0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    least = largest / 5
    power = 10.0 ** math.floor(math.log10(least))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [round(i * distance, 12) for i in range(math.ceil(largest / distance - 1e-9) + 1)]


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    font = 'font-family="sans-serif" font-size="13"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {font} fill="{colour}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
