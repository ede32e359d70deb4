"""From a report's measurements to the figures that are shown: medians with their spread, ratios pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import msgspec

from .record import Job, Quality, Report, Row, Run


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The median of some measurements, the least and the most, and the median absolute deviation from the median."""

    median: float
    least: float
    most: float
    deviation: float
    count: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A row's figures. None: not measured. Seconds are of the calls after the first, unless the name says otherwise."""

    contestant: str
    kind: str  # "ingot", a baseline's name, or a file
    job: int  # index into the report's jobs
    size: str  # "512x768", height x width
    batch: int
    steps: int
    threads: int
    reference: bool  # whether the ratios are held against this one
    error: str | None
    notes: list[str]
    picture_s: Spread | None  # a call's seconds / pictures: per process the median call
    step_s: Spread | None
    images_per_minute: float | None  # 60 / picture_s
    best_images_per_minute: (
        float | None
    )  # the contestant's largest over the batches of the same size, steps and threads
    best_batch: int | None
    cold_start_s: Spread | None  # from the process's start to the first picture; its parts follow
    import_s: Spread | None
    open_s: Spread | None
    first_step_s: Spread | None
    first_image_s: Spread | None  # the first call, whole: its first step included
    first_preview_s: Spread | None
    host_ms_per_step: Spread | None
    component_s: dict[str, Spread]  # by role, of a call
    peak_mib: float | None  # the median of the processes
    gpu_peak_mib: float | None
    energy_j: float | None  # of a picture
    artifact_mb: float | None
    installed_mb: float | None  # the total; the parts stand in the row
    speedup: Spread | None  # the reference's picture_s / this one's, round by round
    cold_speedup: Spread | None  # the same of cold_start_s
    memory_share: Spread | None  # this one's peak_mib / the reference's
    quality: Quality | None
    pictures: list[str]


def summarize(report: Report) -> list[Line]:
    """A line for each row, in the report's order."""
    against = {row.job: row for row in report.rows if row.contestant == report.reference}
    kinds = {one.name: one.kind for one in report.contestants}
    best = _best_batches(report)
    lines = []
    for row in report.rows:
        job = report.jobs[row.job]
        top = best.get(_family(row.contestant, job))
        lines.append(_line(row, job, kinds[row.contestant], against.get(row.job), top, report.reference))
    return lines


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of those that were measured; None of nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    middle = statistics.median(found)
    deviation = statistics.median(abs(value - middle) for value in found)
    return Spread(median=middle, least=min(found), most=max(found), deviation=deviation, count=len(found))


def ratios(over: Sequence[Run], under: Sequence[Run], figure: Callable[[Run], float | None]) -> Spread | None:
    """A figure of `over` divided by that of `under`, each in the round of the other: what slows a machine for a while slows
    both."""
    found = []
    theirs = {run.round: figure(run) for run in under}
    for run in over:
        mine, other = figure(run), theirs.get(run.round)
        if mine is not None and other:
            found.append(mine / other)
    return spread(found)


def call_seconds(run: Run) -> float | None:
    """A process's median call after the first."""
    return _median(run.call_s)


def _line(
    row: Row, job: Job, kind: str, reference: Row | None, top: tuple[float, int] | None, name: str | None
) -> Line:
    runs = row.runs
    pictures = spread(_over(call_seconds(run), job.batch) for run in runs)
    their = reference.runs if reference else []
    roles = dict.fromkeys(role for run in runs for role in run.component_s)
    return Line(
        contestant=row.contestant, kind=kind, job=row.job, size=f"{job.height}x{job.width}", batch=job.batch, steps=job.steps,
        threads=job.threads, reference=row.contestant == name, error=row.error, notes=row.notes,
        picture_s=pictures,
        step_s=spread(_median(run.step_s) for run in runs),
        images_per_minute=60 / pictures.median if pictures else None,
        best_images_per_minute=top[0] if top else None, best_batch=top[1] if top else None,
        cold_start_s=spread(run.cold_start_s for run in runs),
        import_s=spread(run.import_s for run in runs), open_s=spread(run.open_s for run in runs),
        first_step_s=spread(run.first_step_s for run in runs), first_image_s=spread(run.first_image_s for run in runs),
        first_preview_s=spread(run.first_preview_s for run in runs),
        host_ms_per_step=spread(_median(run.host_ms_per_step) for run in runs),
        component_s={role: found for role in roles if (found := spread(_median(run.component_s.get(role, [])) for run in runs))},
        peak_mib=_median([run.peak_mib for run in runs]),
        gpu_peak_mib=_median([run.gpu_peak_mib for run in runs if run.gpu_peak_mib is not None]),
        energy_j=_over(_median([run.energy_j for run in runs if run.energy_j is not None]), job.batch),
        artifact_mb=row.artifact_mb, installed_mb=row.installed_mb.get("total"),
        speedup=ratios(their, runs, call_seconds),
        cold_speedup=ratios(their, runs, lambda run: run.cold_start_s),
        memory_share=ratios(runs, their, lambda run: run.peak_mib),
        quality=row.quality, pictures=row.pictures,
    )  # fmt: skip


def _best_batches(report: Report) -> dict[tuple[object, ...], tuple[float, int]]:
    """By contestant, size, steps and threads: the most pictures a minute over the batches, and the batch."""
    best: dict[tuple[object, ...], tuple[float, int]] = {}
    for row in report.rows:
        job = report.jobs[row.job]
        seconds = spread(_over(call_seconds(run), job.batch) for run in row.runs)
        if seconds is not None:
            key = _family(row.contestant, job)
            best[key] = max(best.get(key, (0.0, 0)), (60 / seconds.median, job.batch))
    return best


def _family(contestant: str, job: Job) -> tuple[object, ...]:
    return contestant, job.height, job.width, job.steps, job.threads


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _over(value: float | None, count: int) -> float | None:
    return None if value is None else value / count
