"""The figures that two reports are held against each other by, and what counts as a change of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ingot.runtimes.errors import InputError

from .record import Job, Quality, Row, Run

THRESHOLD = 0.05
REGRESSION, IMPROVEMENT, NOISE = "regression", "improvement", "within noise"
NEW, SILENT = "new", "no verdict"  # a row that the old report lacks; a figure that one of them lacks
# Nearer than these two pictures and latents are not told apart: what rounding to 8 bits does to a picture,
# 20 log10(255 sqrt(12)), and what a float32 graph is allowed (relative L2 1e-4).
ROUNDING_DB, FLOAT32_DB = 58.9, 80.0


@dataclass(frozen=True)
class Metric:
    """A figure of a row: one value for each run, or a single one; empty where it was not measured."""

    name: str
    unit: str
    values: Callable[[Row, Job], Sequence[float]]
    better: str = "less"  # less, more, or decibels


def _of_runs(value: Callable[[Run, Job], float | None]) -> Callable[[Row, Job], list[float]]:
    return lambda row, job: [found for run in row.runs if (found := value(run, job)) is not None]


def _of_row(value: Callable[[Row], float | None]) -> Callable[[Row, Job], list[float]]:
    return lambda row, _: [] if (found := value(row)) is None else [found]


def _of_quality(value: Callable[[Quality], float | None]) -> Callable[[Row, Job], list[float]]:
    return _of_row(lambda row: None if row.quality is None else value(row.quality))


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("seconds per picture", "s", _of_runs(lambda run, job: middle([s / job.batch for s in run.call_s]))),
        Metric("seconds per step", "s", _of_runs(lambda run, _: middle(run.step_s))),
        Metric("cold start", "s", _of_runs(lambda run, _: run.cold_start_s)),
        Metric("peak memory", "MiB", _of_runs(lambda run, _: run.peak_mib or None)),
        Metric("GPU memory", "MiB", _of_runs(lambda run, _: run.gpu_peak_mib)),
        Metric("energy per call", "J", _of_runs(lambda run, _: run.energy_j)),
        Metric("artifact size", "MB", _of_row(lambda row: row.artifact_mb)),
        Metric("installed size", "MB", _of_row(lambda row: row.installed_mb.get("total"))),
        Metric("PSNR", "dB", _of_quality(lambda q: math.inf if q.equal else q.psnr_db), "decibels"),
        Metric("SSIM", "", _of_quality(lambda q: q.ssim), "more"),
        Metric("latents' SQNR", "dB", _of_quality(lambda q: math.inf if q.latents_equal else q.latent_sqnr_db), "decibels"),
        Metric("checker", "", _of_quality(lambda q: q.checker), "more"),
        Metric("CLIP score", "", _of_quality(lambda q: q.clip), "more"),
        Metric("FID", "", _of_quality(lambda q: q.fid)),
    )
}  # fmt: skip


def judged(metric: Metric, old: Sequence[float], new: Sequence[float], limit: float) -> tuple[float | None, str]:
    """The change, and what to say of it."""
    before, after = median(old), median(new)
    if metric.better == "decibels":
        most = ROUNDING_DB if metric.name == "PSNR" else FLOAT32_DB
        # the ratio of the errors, of which more is worse
        grown = 10 ** ((min(before, most) - min(after, most)) / 20) - 1
        change = None if math.isinf(before) or math.isinf(after) else after - before
    else:
        change = grown = _share(before, after)
        if metric.better == "more":
            grown = -grown
    apart = min(new) > max(old) or max(new) < min(old)
    # a share just at the limit is not beyond it, whatever binary fractions make of it
    if not apart or abs(grown) <= limit * (1 + 1e-9):
        return change, NOISE
    return change, REGRESSION if grown > 0 else IMPROVEMENT


def _share(old: float, new: float) -> float:
    if old == new:
        return 0.0
    return (new - old) / abs(old) if old else math.copysign(math.inf, new)


def read_thresholds(threshold: str | None, metrics: Sequence[str] = ()) -> dict[str, float]:
    """What `--threshold 5%` and `--metric "PSNR=10%"` ask for: a threshold for each metric that counts, all where none is
    named. Raises InputError for what is no share and for a metric that there is none of."""
    common = THRESHOLD if threshold is None else _read_share("--threshold", threshold)
    found = {}
    for given in metrics:
        name, _, own = given.partition("=")
        known = next((metric for metric in METRICS if metric.lower() == name.strip().lower()), None)
        if known is None:
            raise InputError(f"--metric {given}: there is no {name.strip()!r}; available: {', '.join(METRICS)}")
        found[known] = _read_share(f"--metric {name}", own) if own else common
    return found or dict.fromkeys(METRICS, common)


def _read_share(option: str, text: str) -> float:
    """`5%` or `0.05`."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < math.inf:
        raise InputError(f"{option} {text}: a share is needed, such as 5% or 0.05")
    return share
