"""`ingot bench`, from the request to the report. Start here.

A job and a contestant are a row. Each round measures every row once, each in a fresh process, in turn: what slows the machine
for a while slows them all. The first round is a warm-up, of two steps, and is not counted.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from PIL import Image

import ingot
from ingot.runtimes.errors import IngotError
from ingot.runtimes.noise import Generator

from . import machine, summary, tables
from .process import Answer, measure
from .record import Contestant, Noise, Report, Row
from .request import SHAPES, Request, make, resolved

WARM_UP_STEPS = 2
WEIGHTS = "fp32"  # of baselines' exports, where a recipe does not say
PICTURES = 8  # of each row that are kept as PNG
Say = Callable[[str], None]


def bench(*bundles: str | Path, progress: bool = True, **options: Any) -> Report:
    """Measure bundles, each engine and precision of them in fresh processes, beside baselines; what the report holds is in
    `record`.

    `options` are those of the command line, by the same names: engines, schemes, sizes [(height, width)], batch [1, 2],
    steps [20], threads [1], guidance_scale, scheduler, seed, baseline ["diffusers"], model, contestant
    ["NAME: engine=onnx, cache_interval=3"], reference, prompts (a file or a list), rounds, calls, title, environments, work,
    clip, fid, overwrite, timeout (seconds, of a process), and output, the folder that is made: report.json, .csv, .md, .html
    and pictures. Without `output` only the report is returned. A contestant that fails gets a row that says why, and the
    rest goes on. Raises InputError, BundleError and EngineError before anything runs.

    >>> import ingot                                                        # doctest: +SKIP
    >>> report = ingot.bench("shapes-bundle", engines=["onnx"], rounds=2)   # doctest: +SKIP
    """
    request = make(bundles, **options)
    say: Say = (lambda line: print(line, file=sys.stderr, flush=True)) if progress else (lambda _: None)
    with _folder(request, bool(options.get("overwrite"))) as folder:
        return _Bench(request, folder, say).run()


@contextlib.contextmanager
def _folder(request: Request, overwrite: bool) -> Iterator[Path]:
    """The report's folder, empty; a temporary one where none is asked for."""
    if request.output is None:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
        return
    if overwrite:
        shutil.rmtree(request.output, ignore_errors=True)
    request.output.mkdir()
    yield request.output


class _Bench:
    """A run under way: its rows grow by a process's figures at a time."""

    def __init__(self, request: Request, folder: Path, say: Say) -> None:
        self.request, self.folder, self.say = request, folder, say
        self.began, self.clock = datetime.now(UTC), time.monotonic()
        self.machine = machine.machine()
        self.probes: list[float] = []
        self.rows = [Row(contestant=one.name, job=i) for i in range(len(request.jobs)) for one in request.contestants]
        self.contestants = {one.name: one for one in request.contestants}
        self.exports: dict[str, list[str]] = {}  # what each one's export took

    def run(self) -> Report:
        """Everything, to the report's last file."""
        self._draw_noise()
        self._prepare()
        for number in range(self.request.rounds + 1):
            self._round(number)
            self._save(self._report())
        self.probes.append(machine.probe_ms())
        return self._finish()

    def _prepare(self) -> None:
        """Have baselines' checkpoints in their own format. One that cannot be is an error of its rows."""
        for one in self.request.contestants:
            try:
                self.contestants[one.name], self.exports[one.name] = _prepared(one, self.request, self.say)
            except IngotError as error:
                self.say(f"{one.name}: {error}")
                self.rows = [replace(row, error=str(error)) if row.contestant == one.name else row for row in self.rows]

    def _round(self, number: int) -> None:
        """Each row once; 0 is the warm-up."""
        for index, row in enumerate(self.rows):
            if row.error is None:
                self.probes.append(machine.probe_ms())
                answer = self._measured(index, row, number)
                self.rows[index] = self._with(row, answer, number)
                self.say(f"{_name(number, self.request.rounds)}, {self._what(row)}: {_said(answer)}")

    def _measured(self, index: int, row: Row, number: int) -> Answer:
        one, job = self.contestants[row.contestant], self.request.jobs[row.job]
        if not number:
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
        if number > 1:
            return row
        return replace(
            row,
            notes=[*answer.notes, *self.exports.get(row.contestant, [])],
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
        _write(self.folder / "report.md", tables.markdown(report, lines))
        _write(self.folder / "report.csv", tables.csv(lines))
        self._page(report, lines)
        self._save(report)
        return report

    def _judged(self, report: Report) -> Report:
        from .quality import judge

        try:
            return judge(report, self.folder, clip=self.request.clip, fid=self.request.fid)
        except IngotError as error:  # hours of measurements are not lost for it
            self.say(f"no quality: {error}")
            return report

    def _page(self, report: Report, lines: Sequence[summary.Line]) -> None:
        try:
            from .page import page
        except ModuleNotFoundError as error:
            if error.name != f"{__package__}.page":
                raise
            return
        _write(self.folder / "report.html", page(report, lines, self.folder))

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
            rounds=asked.rounds, calls=asked.calls, reference=asked.reference, jobs=list(asked.jobs), contestants=list(asked.contestants),
            rows=self.rows,
        )  # fmt: skip

    def _save(self, report: Report) -> None:
        _write(self.folder / "report.json", msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n")

    def _what(self, row: Row) -> str:
        job = self.request.jobs[row.job]
        return (
            f"{row.contestant} at {job.height}x{job.width}, batch {job.batch}, {job.steps} steps, {job.threads} threads"
        )

    # files beside the report ---------------------------------------------------------------------------------------

    def _place(self, index: int, number: int = 1) -> Path:
        """A row's folder. Its first counted process's stays, for the pictures; the others' are told from it."""
        return self.folder / "work" / (f"row-{index}" if number == 1 else f"row-{index}-round-{number}")

    def _noise(self, job: int) -> Path:
        return self.folder / "work" / f"noise-{job}.npy"

    def _draw_noise(self) -> None:
        """Each picture's first latents, as a `torch.Generator` of its seed draws them."""
        (self.folder / "work").mkdir()
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
        (self.folder / "pictures").mkdir(exist_ok=True)
        names = []
        for i, picture in enumerate(np.load(file)[:PICTURES]):
            names.append(f"pictures/{_slug(row.contestant)}-{row.job}-{i}.png")
            Image.fromarray(picture).save(self.folder / names[-1])
        return names

    def _unlike(self, index: int, row: Row) -> list[str]:
        """A note where equal seeds gave other pictures in another process. The further rounds' files are not kept."""
        first, differ = self._place(index) / "pictures.npy", False
        for number in range(self.request.rounds + 1):
            folder = self._place(index, number)
            if number > 1 and first.exists() and (folder / "pictures.npy").exists():
                differ |= not np.array_equal(np.load(first), np.load(folder / "pictures.npy"))
            if number != 1 and row.error is None:  # what a failed one printed stays
                shutil.rmtree(folder, ignore_errors=True)
        return ["its pictures differ from process to process at equal seeds"] if differ and row.runs else []


def _prepared(one: Contestant, request: Request, say: Say) -> tuple[Contestant, list[str]]:
    """A contestant with the model that it opens, a baseline's own export of the checkpoint, and a note of what that took."""
    from .environments import FOLDER
    from .prepare import FORMATS, prepared

    if one.kind not in FORMATS:
        return one, []
    say(f"{one.name}: {one.model} in its own format, in {request.work}")
    found = prepared(
        one.kind,
        one.model if one.model == SHAPES else resolved(one.model),
        request.work,
        environments=FOLDER if request.environments is None else request.environments,
        weights=str(one.options.get("weights", WEIGHTS)),
    )
    took = f"its model was exported in {found.seconds:.0f} s with {found.peak_mib:,.0f} MiB at most"
    return replace(one, model=str(found.path)), [took] if found.seconds else []


def _write(file: Path, text: str) -> None:
    """A half-written file never has the name."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _name(number: int, rounds: int) -> str:
    return f"round {number} of {rounds}" if number else "warm-up"


def _said(answer: Answer) -> str:
    if answer.run is None:
        return f"failed: {answer.error}"
    later = summary.call_seconds(answer.run)
    return f"{answer.run.cold_start_s:.2f} s to the first picture" + (
        f", {later:.3f} s a call" if later is not None else ""
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-") or "contestant"
