"""`ingot bench --compare OLD.json NEW.json`: what has become worse, for people and for CI.

A change counts where it is beyond the threshold and beyond the spread: the ranges of the two reports' runs, one figure for
each fresh process, do not touch. What is measured once (sizes, quality) has no spread.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ingot.runtimes.errors import InputError

from .comparison import Change, Comparison, as_markdown
from .figures import IMPROVEMENT, METRICS, NEW, NOISE, REGRESSION, SILENT, THRESHOLD, judged, middle
from .reading import read_report, require_schema
from .record import Job, Machine, Report, Row

_OF_CALLS = {
    "seconds per picture", "seconds per step", "energy per call", "PSNR", "SSIM", "latents' SQNR", "checker", "CLIP score", "FID",
}  # fmt: skip
FINE, WORSE, CANNOT = 0, 1, 2  # exit codes


def compare(old: Report, new: Report, threshold: float | Mapping[str, float] = THRESHOLD) -> Comparison:
    """Hold a report against an older one. Rows are matched by the contestant's name and an equal job.

    `threshold` is a share, 0.05 for 5 %, of the old figure; for figures in dB of the error that they stand for (5 % more of
    it is 0.42 dB less). With a mapping from metrics (`METRICS`) to thresholds only these are compared. A row that vanished
    or fails now is a regression, a failed one that runs now an improvement.
    """
    limits = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(METRICS, threshold)
    limits = {name: limit for name, limit in limits.items() if name not in _OF_CALLS or _alike(old, new)}
    jobs = [job for job in old.jobs if job in new.jobs]
    before, after = _rows(old), _rows(new)
    changes: list[Change] = []
    compared = 0
    for job in jobs:
        for name in dict.fromkeys([*(n for n, j in before if j == job), *(n for n, j in after if j == job)]):
            one, other = before.get((name, job)), after.get((name, job))
            changes += _presence(name, _named(job, new.jobs), one, other)
            if one is not None and other is not None and (one.error is None) == (other.error is None):
                compared += 1
                changes += _figures(name, job, _named(job, new.jobs), one, other, limits)
    return Comparison(warnings=_warnings(old, new), changes=changes, notes=_notes(old, new, jobs), compared=compared)


def _alike(old: Report, new: Report) -> bool:
    """Whether both have calls after the first, or neither: a first call is another thing, and so are its pictures alone."""
    return bool(old.calls) == bool(new.calls)


def _rows(report: Report) -> dict[tuple[str, Job], Row]:
    return {(row.contestant, report.jobs[row.job]): row for row in report.rows}


def _presence(name: str, job: str, old: Row | None, new: Row | None) -> list[Change]:
    """What is to be said of a row as a whole."""
    now = "" if new is None or new.error is None else f"fails: {new.error}"
    before = "" if old is None or old.error is None else f"failed: {old.error}"
    if old is None:
        found = (NEW, now)
    elif new is None:
        found = (REGRESSION, "is not in the new report")
    elif now and not before:
        found = (REGRESSION, now)
    elif before:
        found = (NOISE, now) if now else (IMPROVEMENT, before)
    else:
        return []
    return [Change(contestant=name, job=job, verdict=found[0], why=found[1])]


def _figures(name: str, job: Job, label: str, old: Row, new: Row, limits: Mapping[str, float]) -> list[Change]:
    found = []
    for key, limit in limits.items():
        metric = METRICS[key]
        before, after = metric.values(old, job), metric.values(new, job)
        if not before and not after:
            continue
        change, verdict = judged(metric, before, after, limit) if before and after else (None, SILENT)
        found.append(
            Change(
                contestant=name, job=label, verdict=verdict, metric=key, unit=metric.unit,
                old=middle(before), new=middle(after), change=change,
            )
        )  # fmt: skip
    return found


def _warnings(old: Report, new: Report) -> list[str]:
    found = [
        f"another machine: {field} {getattr(old.machine, field)}, now {getattr(new.machine, field)}"
        for field in Machine.__struct_fields__
        if getattr(old.machine, field) != getattr(new.machine, field)
    ]
    for which, report in (("old", old), ("new", new)):
        if report.noise.noisy:
            found.append(f"the {which} report is of a noisy machine{report.noise.why and ': '}{report.noise.why}")
    if old.reference != new.reference:
        found.append(f"quality is against {new.reference}, was against {old.reference}")
    if old.calls != new.calls:
        found.append(f"{new.calls} calls after the first, was {old.calls}: pictures of other prompts and seeds")
    before = {contestant.name: contestant for contestant in old.contestants}
    for contestant in new.contestants:
        other = before.get(contestant.name, contestant)
        differ = [field for field in ("kind", "options", "call") if getattr(contestant, field) != getattr(other, field)]
        if differ:
            found.append(f"{contestant.name} is another contestant by now: its {', '.join(differ)} differ")
    return [*found, *_versions(old, new)]


def _versions(old: Report, new: Report) -> list[str]:
    """Packages whose versions changed, each once."""
    before, after = ({k: v for row in report.rows for k, v in row.versions.items()} for report in (old, new))
    return [
        f"{name} {before[name]}, now {after[name]}"
        for name in sorted(before)
        if before[name] != after.get(name, before[name])
    ]


def _notes(old: Report, new: Report, jobs: Sequence[Job]) -> list[str]:
    found = (
        [] if _alike(old, new) else ["not compared: time, energy and quality, of first calls alone in one of the two"]
    )
    for which, report, other in (("old", old, new), ("new", new, old)):
        for job in report.jobs:
            if job in jobs:
                continue
            nearest = min(other.jobs, key=lambda one: len(_differences(job, one)), default=None)
            unlike = "" if nearest is None else f" (nearest: other {', '.join(_differences(job, nearest))})"
            found.append(f"not compared: {_named(job, report.jobs)} is a job of the {which} report only{unlike}")
    return found


def _differences(job: Job, other: Job) -> list[str]:
    return [field for field in Job.__struct_fields__ if getattr(job, field) != getattr(other, field)]


def _named(job: Job, jobs: Sequence[Job]) -> str:
    """A job in words, with what it takes to tell it from the others."""
    words = f"{job.height}x{job.width}, batch {job.batch}, {job.steps} steps, {job.threads} threads"
    for field in ("guidance_scale", "scheduler", "seed"):
        if len({getattr(other, field) for other in jobs}) > 1:
            words += f", {field.replace('_', ' ')} {getattr(job, field)}"
    return words


def main_compare(old_path: str | Path, new_path: str | Path, thresholds: Mapping[str, float]) -> int:
    """Print the comparison of two reports; 0 where nothing is worse, 1 where something is, 2 where they cannot be compared."""
    try:
        require_schema(old_path, new_path)
        old, new = read_report(old_path), read_report(new_path)
        comparison = compare(old, new, thresholds)
        if not any(job in new.jobs for job in old.jobs):
            raise InputError(f"{old_path} and {new_path} have no job in common:\n" + "\n".join(comparison.notes))
    except InputError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return CANNOT
    print(as_markdown(comparison, thresholds))
    return WORSE if comparison.regressions else FINE
