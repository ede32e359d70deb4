"""`ingot bench`, from the request to the report. Start here.

A job and a contestant are a row. Each round measures every row once, each in a fresh process, in turn: what slows the machine
for a while slows them all. The first round is a warm-up, of two steps, and is not counted.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

import ingot
from ingot.runtimes.errors import EngineError, IngotError
from ingot.runtimes.noise import Generator

from . import folder as files
from . import machine, summary, tables
from .process import Answer, measure
from .record import Contestant, Noise, Report, Row
from .request import SHAPES, Request, make, resolved

WARM_UP_STEPS = 2
WHOLE = {"cache_schedule", "cache_center"}  # arguments of a call that are of the job's number of steps alone
Say = Callable[[str], None]
T = TypeVar("T")


def bench(*bundles: str | Path, progress: bool = True, **options: Any) -> Report:
    """Measure bundles, each engine and precision of them in fresh processes, beside baselines; what the report holds is in
    `record`.

    `options` are those of the command line, by the same names: engines, schemes, sizes [(height, width)], batch [1, 2],
    steps [20], threads [1], guidance_scale, scheduler, seed, baseline ["diffusers"], model, contestant
    ["NAME: engine=onnx, cache_interval=3"], reference, prompts (a file or a list), rounds, calls, device, title, environments, work,
    clip, fid, overwrite, timeout (seconds, of a process), and output, the folder that is made: report.json, .csv, .md, .html
    and pictures. Without `output` only the report is returned. A contestant that fails gets a row that says why, and the
    rest goes on. Raises InputError, BundleError and EngineError before anything runs.

    >>> import ingot                                                        # doctest: +SKIP
    >>> report = ingot.bench("shapes-bundle", engines=["onnx"], rounds=2)   # doctest: +SKIP
    """
    _check_system()
    return run_request(make(bundles, **options), overwrite=bool(options.get("overwrite")), progress=progress)


def run_request(
    request: Request, *, refused: Mapping[str, str] | None = None, overwrite: bool = False, progress: bool = True
) -> Report:
    """Measure what a request asks for. Contestants that are `refused`, by name with the reason, keep their rows and do not run."""
    say: Say = (lambda line: print(line, file=sys.stderr, flush=True)) if progress else (lambda _: None)
    with files.opened(request.output, overwrite) as folder:
        begun = _Bench(request, folder, say)
        begun.rows = [replace(row, error=(refused or {}).get(row.contestant)) for row in begun.rows]
        return begun.run()


class _Bench:
    """A run under way: its rows grow by a process's figures at a time."""

    def __init__(self, request: Request, folder: Path, say: Say) -> None:
        self.request, self.folder, self.say = request, folder, say
        self.began, self.clock = datetime.now(UTC), time.monotonic()
        self.machine = machine.machine()
        self.probes: list[float] = []
        self.rows = [Row(contestant=one.name, job=i) for i in range(len(request.jobs)) for one in request.contestants]
        self.contestants = {one.name: one for one in request.contestants}
        self.prepared: dict[str, list[str]] = {}  # what is to be said of each one's model and interpreter
        self.notes: list[str] = []

    def run(self) -> Report:
        """Everything, to the report's last file."""
        self._save(self._report())  # from now on the folder is known as a report's
        self._draw_noise()
        self._prepare()
        for number in range(self.request.rounds + 1):
            try:
                self._round(number)
            except KeyboardInterrupt:
                self._stopped(number)
                raise
        self.probes.append(machine.probe_ms())
        return self._finish()

    def _stopped(self, number: int) -> None:
        """Make a whole report of what there is, where there is anything."""
        if any(row.runs for row in self.rows):
            self.notes.append(
                f"stopped in {_name(number, self.request.rounds)}: what was measured until then stands here"
            )
            self._finish()

    def _prepare(self) -> None:
        """Have baselines' checkpoints in their own format. One that cannot be is an error of its rows."""
        for one in self.request.contestants:
            try:
                self.contestants[one.name], self.prepared[one.name] = _prepared(one, self.request, self.say)
            except (IngotError, OSError, ValueError, KeyError) as error:  # its checkpoint's files may be anything
                why = _text(error)
                self.say(f"{one.name}: {why}")
                self.rows = [replace(row, error=why) if row.contestant == one.name else row for row in self.rows]

    def _round(self, number: int) -> None:
        """Each row once; 0 is the warm-up."""
        for index, row in enumerate(self.rows):
            if row.error is None:
                self.probes.append(machine.probe_ms())
                answer = self._measured(index, row, number)
                self.rows[index] = self._with(row, answer, number)
                self._save(self._report())
                self.say(f"{_name(number, self.request.rounds)}, {self._what(row)}: {_said(answer)}")

    def _measured(self, index: int, row: Row, number: int) -> Answer:
        one, job = self.contestants[row.contestant], self.request.jobs[row.job]
        if not number and not WHOLE & set(one.call):
            job = replace(job, steps=min(job.steps, WARM_UP_STEPS))
        return measure(
            one, job, self._place(index, number), round=number, calls=self.request.calls if number else 0,
            noise=self._noise(row.job), timeout=self.request.timeout, describe=number == 1,
        )  # fmt: skip

    def _with(self, row: Row, answer: Answer, number: int) -> Row:
        if answer.run is None:
            return replace(row, error=answer.error)
        if not number:
            return row
        row = replace(row, runs=[*row.runs, answer.run])
        if number > 1:  # it says no more than that it ended badly
            return replace(row, notes=list(dict.fromkeys([*row.notes, *answer.notes])))
        return replace(
            row,
            notes=[*answer.notes, *self.prepared.get(row.contestant, [])],
            versions=answer.versions,
            artifact_mb=answer.artifact_mb,
            installed_mb=answer.installed_mb,
        )

    def _finish(self) -> Report:
        """Quality, pictures, tables and the page, each from what is there."""
        for index, row in enumerate(self.rows):
            notes = [*row.notes, *self._unlike(index, row)]
            self.rows[index] = replace(row, pictures=self._pictures(index, row), notes=notes)
        report = self._judged(self._report())
        lines = summary.summarize(report)
        self._page(report, lines)
        report = replace(report, notes=self.notes)
        files.write(self.folder / files.MARKDOWN, tables.markdown(report, lines))
        files.write(self.folder / files.CSV, tables.csv(lines))
        self._save(report)
        return report

    def _judged(self, report: Report) -> Report:
        from .quality import judge

        return self._tried(
            "no quality", lambda: judge(report, self.folder, clip=self.request.clip, fid=self.request.fid), report
        )

    def _page(self, report: Report, lines: Sequence[summary.Line]) -> None:
        def write() -> None:
            from .page import page

            files.write(self.folder / files.PAGE, page(report, lines, self.folder))

        self._tried("no page", write, None)

    def _tried(self, without: str, make: Callable[[], T], otherwise: T) -> T:
        """What is made; hours of measurements are not lost where it cannot be, whatever the reason: that is told instead."""
        try:
            return make()
        except Exception as error:  # of whatever kind: see above
            self.notes.append(f"{without}: {_text(error)}")
            print(f"ingot: {self.notes[-1]}", file=sys.stderr, flush=True)
            return otherwise

    def _report(self) -> Report:
        busy = [run.busy for row in self.rows for run in row.runs]
        found = (
            machine.noise(self.probes, max(busy, default=0.0))
            if self.probes
            else Noise(probe_ms=[], spread=0, busy=0, noisy=False)
        )
        asked = self.request
        return Report(
            ingot=ingot.__version__, command=asked.command, began=self.began.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self.clock, 1), title=asked.title, machine=self.machine, noise=found,
            rounds=asked.rounds, calls=asked.calls, reference=asked.reference, jobs=list(asked.jobs),
            contestants=[*map(_to_publish, asked.contestants)],
            rows=self.rows, notes=self.notes,
        )  # fmt: skip

    def _save(self, report: Report) -> None:
        files.write(
            self.folder / files.JSON, msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"
        )

    def _what(self, row: Row) -> str:
        job = self.request.jobs[row.job]
        return (
            f"{row.contestant} at {job.height}x{job.width}, batch {job.batch}, {job.steps} steps, {job.threads} threads"
        )

    # files beside the report ---------------------------------------------------------------------------------------

    def _place(self, index: int, number: int = 1) -> Path:
        """A row's folder. Its first counted process's stays, for the pictures; the others' are told from it."""
        return self.folder / files.WORK / (f"row-{index}" if number == 1 else f"row-{index}-round-{number}")

    def _noise(self, job: int) -> Path:
        return self.folder / files.WORK / f"noise-{job}.npy"

    def _draw_noise(self) -> None:
        """Each picture's first latents, as a `torch.Generator` of its seed draws them."""
        (self.folder / files.WORK).mkdir(exist_ok=True)
        channels, factor = self.request.latents
        for i, job in enumerate(self.request.jobs):
            shape = 1, channels, job.height // factor, job.width // factor
            count = (self.request.calls + 1) * job.batch
            np.save(self._noise(i), np.concatenate([Generator(job.seed + k).randn(shape) for k in range(count)]))

    def _pictures(self, index: int, row: Row) -> list[str]:
        """The first pictures of a row as PNG, by their names in the report's folder."""
        file = self._place(index) / "pictures.npy"
        if not row.runs or not file.exists():
            return []
        without = f"{row.contestant}: no pictures"
        return self._tried(without, lambda: files.keep_pictures(self.folder, file, index, row.contestant), [])

    def _unlike(self, index: int, row: Row) -> list[str]:
        """A note where equal seeds gave other pictures in another process. The further rounds' files are not kept."""
        first, differ = self._place(index) / "pictures.npy", False
        for number in range(self.request.rounds + 1):
            folder = self._place(index, number)
            if number > 1 and first.exists() and (folder / "pictures.npy").exists():
                differ |= self._tried(
                    f"{row.contestant}: not compared from round to round",
                    partial(_differ, first, folder / "pictures.npy"),
                    False,
                )
            if number != 1 and row.error is None:  # what a failed one printed stays
                shutil.rmtree(folder, ignore_errors=True)
        return ["its pictures differ from process to process at equal seeds"] if differ and row.runs else []


def _prepared(one: Contestant, request: Request, say: Say) -> tuple[Contestant, list[str]]:
    """A contestant with the model that it opens, a baseline's own export of the checkpoint, and a note of what that took."""
    from .environments import ENVIRONMENTS, FOLDER
    from .prepare import FORMATS, WEIGHT, prepared

    if one.kind not in FORMATS:
        shared = one.kind in ENVIRONMENTS and not one.python
        return one, ["in Ingot's own environment: one of its pinned versions is not made"] if shared else []
    say(f"{one.name}: {one.model} in its own format, in {request.work}")
    found = prepared(
        one.kind,
        one.model if one.model == SHAPES else resolved(one.model),
        request.work,
        environments=FOLDER if request.environments is None else request.environments,
        weights=str(one.options.get("weights", WEIGHT)),
    )
    took = f"its model was exported in {found.seconds:.0f} s with {found.peak_mib:,.0f} MiB at most"
    return replace(one, model=str(found.path)), [took] if found.seconds else []


def _check_system() -> None:
    """Raise EngineError where processes cannot be measured and ended as here."""
    if not (hasattr(os, "killpg") and hasattr(os, "sysconf")):
        raise EngineError(
            "ingot bench measures on Linux and macOS; this system has no groups of processes to end together"
        )


def _to_publish(one: Contestant) -> Contestant:
    """A contestant as a report tells of it: by paths that say nothing of whose machine it was."""
    return replace(one, model=_short(one.model), python=_short(one.python), kind=_short(one.kind))


def _short(path: str) -> str:
    """From the working folder, or from the user's; what is no path of theirs stays."""
    for place, sign in ((Path.cwd(), ""), (Path.home(), "~/")):
        if Path(path).is_absolute() and Path(path).is_relative_to(place):
            return sign + Path(path).relative_to(place).as_posix()
    return path


def _differ(one: Path, other: Path) -> bool:
    return not np.array_equal(np.load(one), np.load(other))


def _text(error: Exception) -> str:
    """In one line; what is no error of ours with its kind, for a KeyError's text is the key alone."""
    return str(error) if isinstance(error, IngotError) else f"{type(error).__name__}: {error}"


def _name(number: int, rounds: int) -> str:
    return f"round {number} of {rounds}" if number else "warm-up"


def _said(answer: Answer) -> str:
    if answer.run is None:
        return f"failed: {answer.error}"
    later = summary.call_seconds(answer.run)
    return f"{answer.run.cold_start_s:.2f} s to the first picture" + (
        f", {later:.3f} s a call" if later is not None else ""
    )
