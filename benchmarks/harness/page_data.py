"""What the page's scripts read: a report's figures by contestant and job, its timelines and pictures, as plain JSON."""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .environments import ENVIRONMENTS
from .prepare import WEIGHT
from .record import Contestant, Job, Report, Row, Run
from .summary import Line, Spread

PICTURE_BUDGET = 24 * 2**20  # bytes of PNG that a page holds; equal pictures are held once
_NAMES = {  # what others call what bundles call by these
    "fp32": "float32", "f32": "float32", "fp16": "float16", "f16": "float16", "bf16": "bfloat16",
}  # fmt: skip


class Measure(NamedTuple):
    """A figure that the page shows."""

    title: str
    unit: str = ""
    better: str = "less"
    of_run: Callable[[Run, Job], float | None] | None = None  # what each process measured


def _call(calls: Sequence[float], count: int = 1) -> float | None:
    return statistics.median(calls) / count if calls else None


MEASURES: dict[str, Measure] = {
    "picture_s": Measure("Time a picture", "s", of_run=lambda run, job: _call(run.call_s, job.batch)),
    "step_s": Measure("Time a step", "s", of_run=lambda run, _: _call(run.step_s)),
    "cold_start_s": Measure("Cold start to the first picture", "s", of_run=lambda run, _: run.cold_start_s),
    "first_preview_s": Measure("Time to the first preview", "s", of_run=lambda run, _: run.first_preview_s),
    "host_ms_per_step": Measure("Host time outside the denoiser", "ms a step", of_run=lambda run, _: _call(run.host_ms_per_step)),
    "peak_mib": Measure("Peak memory", "MiB", of_run=lambda run, _: run.peak_mib or None),
    "gpu_peak_mib": Measure("Peak GPU memory", "MiB", of_run=lambda run, _: run.gpu_peak_mib),
    "energy_j": Measure("Energy a picture", "J", of_run=lambda run, job: None if run.energy_j is None else run.energy_j / job.batch),
    "artifact_mb": Measure("Size of the opened files", "MB"),
    "installed_mb": Measure("Installed packages", "MB"),
    "images_per_minute": Measure("Pictures a minute", better="more"),
    "psnr_db": Measure("PSNR", "dB", "more"),
    "ssim": Measure("SSIM", better="more"),
    "latent_sqnr_db": Measure("Latent SQNR", "dB", "more"),
    "checker": Measure("Shapes checker, share right", better="more"),
    "clip": Measure("CLIP score", better="more"),
    "fid": Measure("FID"),
}  # fmt: skip
QUALITIES = ("psnr_db", "ssim", "latent_sqnr_db", "checker", "clip", "fid")
PARTS = ("import_s", "open_s", "first_step_s")


class Pictures:
    """The pictures of a page as data addresses: each content once, and no more bytes than the budget."""

    def __init__(self, folder: Path, budget: int = PICTURE_BUDGET) -> None:
        self.folder, self.left = folder, budget
        self.addresses: list[str] = []
        self.left_out = 0
        self._known: dict[str, int] = {}

    def add(self, name: str) -> int | None:
        """The picture's place in `addresses`; None where its file is missing or there is no room for it."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            return None
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._known:
            if len(content) > self.left:
                self.left_out += 1
                return None
            self.left -= len(content)
            self._known[digest] = len(self.addresses)
            self.addresses.append("data:image/png;base64," + base64.b64encode(content).decode())
        return self._known[digest]


def page_data(report: Report, lines: Sequence[Line], folder: Path) -> tuple[dict[str, Any], int]:
    """The data, and how many pictures found no room."""
    # Ingot's first: they get the colours that stand out most
    ordered = sorted(report.contestants, key=lambda one: one.kind != "ingot")
    groups = list(dict.fromkeys(group_of(one) for one in ordered))
    pictures = Pictures(folder)
    places = _places(report, pictures)
    numbers = {one.name: index for index, one in enumerate(report.contestants)}
    rows = [
        _row(row, line, report.jobs[row.job], numbers[row.contestant]) | {"pictures": places[index]}
        for index, (row, line) in enumerate(zip(report.rows, lines, strict=True))
    ]
    return {
        "measures": {name: {"title": one.title, "unit": one.unit, "better": one.better} for name, one in MEASURES.items()},
        "reference": report.reference,
        "groups": groups,
        "jobs": [_job(job) for job in report.jobs],
        "contestants": [_contestant(one, report) for one in report.contestants],
        "rows": rows,
        "pictures": pictures.addresses,
    }, pictures.left_out  # fmt: skip


def engine_of(contestant: Contestant) -> str:
    """The engine of Ingot's, else the baseline's name."""
    return str(contestant.options.get("engine") or Path(contestant.kind).stem)


def scheme_of(contestant: Contestant) -> str:
    """What its weights are in, by the names that bundles have for it."""
    told = contestant.options.get("precision") or contestant.options.get("dtype")
    if not told and contestant.kind in ENVIRONMENTS:
        told = contestant.options.get("weights", WEIGHT)
    return _NAMES.get(str(told), str(told or "as it is"))


def group_of(contestant: Contestant) -> str:
    """What shares a colour."""
    return f"Ingot, {engine_of(contestant)}" if contestant.kind == "ingot" else engine_of(contestant)


def size(job: Job) -> str:
    """Height and width, in the order that the command line has them."""
    return f"{job.height}\N{MULTIPLICATION SIGN}{job.width}"


def job_label(job: Job) -> str:
    """`512 x 768, batch 2, 20 steps, 1 thread`."""
    threads = f"{job.threads} thread{'s' if job.threads != 1 else ''}"
    return f"{size(job)}, batch {job.batch}, {job.steps} step{'s' if job.steps != 1 else ''}, {threads}"


def _job(job: Job) -> dict[str, Any]:
    return {
        "label": job_label(job), "size": size(job), "pixels": job.height * job.width, "batch": job.batch,
        "steps": job.steps, "threads": job.threads, "guidance_scale": job.guidance_scale, "scheduler": job.scheduler,
        "seed": job.seed, "prompts": list(job.prompts),
    }  # fmt: skip


def _contestant(one: Contestant, report: Report) -> dict[str, Any]:
    notes = [note for row in report.rows if row.contestant == one.name for note in (*row.notes, row.error or "")]
    engine, scheme, group = engine_of(one), scheme_of(one), group_of(one)
    text = " ".join([one.name, engine, scheme, one.kind, *notes]).lower()
    return {
        "name": one.name,
        "engine": engine,
        "scheme": scheme,
        "group": group,
        "text": text,
        "reference": one.name == report.reference,
    }


def _row(row: Row, line: Line, job: Job, number: int) -> dict[str, Any]:
    figures = {name: found for name in MEASURES if (found := _figure(name, row, line, job)) is not None}
    timeline, seconds = _timeline(row.runs)
    return {
        "id": f"c{number}", "contestant": number, "job": row.job, "error": row.error, "notes": row.notes, "figures": figures,
        "quality": _quality(row, line), "parts": _parts(line), "timeline": timeline, "call_s": seconds,
        "roles": {role: spread.median for role, spread in line.component_s.items()},
        "ratio": _triple(line.speedup),
    }  # fmt: skip


def _figure(name: str, row: Row, line: Line, job: Job) -> list[Any] | None:
    """Median, least, most, and what each process measured."""
    if name in QUALITIES:
        return None
    found = getattr(line, name)
    if found is None:
        return None
    of_run = MEASURES[name].of_run
    values = [one for run in row.runs if of_run and (one := of_run(run, job)) is not None]
    if isinstance(found, Spread):
        return [found.median, found.least, found.most, values]
    return [found, min(values, default=found), max(values, default=found), values or [found]]


def _quality(row: Row, line: Line) -> dict[str, Any]:
    if line.quality is None:
        # the reference is held against itself where nobody said otherwise
        return {"equal": True, "latents_equal": True, "ssim": 1.0} if line.reference and row.runs else {}
    found: dict[str, Any] = {name: getattr(line.quality, name) for name in QUALITIES}
    return found | {"equal": line.quality.equal, "latents_equal": line.quality.latents_equal}


def _parts(line: Line) -> list[float]:
    """The cold start's parts: import, open, first step, and the rest of the median cold start."""
    if line.cold_start_s is None:
        return []
    parts = [spread.median if (spread := getattr(line, name)) else 0.0 for name in PARTS]
    return [*parts, max(0.0, line.cold_start_s.median - sum(parts))]


def _timeline(runs: Sequence[Run]) -> tuple[list[list[Any]], float]:
    """The last call of the process whose last call is the median one, and its seconds."""
    timed = sorted((run for run in runs if run.timeline), key=_last_call)
    if not timed:
        return [], 0.0
    run = timed[(len(timed) - 1) // 2]
    spans = [[what, round(start, 6), round(end, 6)] for what, start, end in run.timeline]
    return spans, max(_last_call(run), *(end for _, _, end in run.timeline))


def _last_call(run: Run) -> float:
    """A process may have made its first call only."""
    return run.call_s[-1] if run.call_s else run.first_image_s


def _triple(spread: Spread | None) -> list[float] | None:
    return None if spread is None else [spread.median, spread.least, spread.most]


def _places(report: Report, pictures: Pictures) -> list[list[int | None]]:
    """Each row's pictures. The first of every row comes first: where room is short, everybody has one."""
    places: list[list[int | None]] = [[None] * len(row.pictures) for row in report.rows]
    for turn in range(max((len(row.pictures) for row in report.rows), default=0)):
        for index, row in enumerate(report.rows):
            if turn < len(row.pictures):
                places[index][turn] = pictures.add(row.pictures[turn])
    return places
