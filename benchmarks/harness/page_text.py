"""The page's text: what was measured where, the table, and how. All of it stands in the HTML, without a script."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .page_data import engine_of, job_label, scheme_of
from .record import Contestant, Job, Report
from .summary import Line, Spread

NONE = "\N{EN DASH}"


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
    """Three digits or so, as the plots have them."""
    if value is None:
        return NONE
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    for least, form in ((100, ".0f"), (10, ".1f"), (1, ".2f")):
        if size >= least:
            return format(value, form)
    return "0" if size == 0 else _significant(value)


def _significant(value: float) -> str:
    return f"{value:#.2g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def heading(report: Report) -> str:
    """Title, date, machine, versions and command."""
    machine = report.machine
    facts = {
        "Processor": f"{machine.processor}, {machine.cores} core{'s' if machine.cores != 1 else ''}",
        "Memory": f"{number(machine.memory_gib)} GiB",
        "System": machine.system,
        "Python": machine.python,
        "Instructions": ", ".join(machine.flags) or NONE,
        "GPU": machine.gpu,
        "Limits": machine.limit,
        "Measured": f"{moment(report.began)}, in {duration(report.seconds)}",
        "Rounds": f"{report.rounds}, contestants in turn",
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    jobs = f"{len(report.jobs)} job{'s' if len(report.jobs) != 1 else ''}"
    people = f"{len(report.contestants)} contestant{'s' if len(report.contestants) != 1 else ''}"
    against = f", held against {escape(report.reference)}" if report.reference else ""
    return (
        f'<h1 id="title">{escape(report.title or "Benchmark report")}</h1><p class="lead">{people}, {jobs}{against}.</p>'
        f'<dl class="facts">{listed}</dl>'
        f'<div class="command"><pre id="command" tabindex="0" aria-label="The command">{escape(report.command)}</pre>'
        '<button type="button" class="copy needs-script" data-of="command">Copy</button></div>'
    )


def banner(report: Report) -> str:
    """What a reader must know first: that the machine was not quiet."""
    if not report.noise.noisy:
        return ""
    why = report.noise.why or "the probe's times spread"
    why = escape(why[:1].upper() + why[1:])
    return (
        f'<p class="wide banner" role="note"><strong>The machine was noisy.</strong> {why}. '
        "Ratios, taken round by round, suffer less than seconds; small differences mean nothing here.</p>"
    )


def missing(report: Report) -> str:
    """What could not be made of the report, and why."""
    if not report.notes:
        return ""
    listed = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        '<div class="wide banner" role="note" aria-labelledby="missing"><p id="missing"><strong>Missing from this report</strong></p>'
        f"<ul>{listed}</ul></div>"
    )


def moment(iso: str) -> str:
    """`2026-01-02T03:04:05+00:00` as people write it."""
    return re.sub(r"(?:\+00:00|Z)$", " UTC", iso.replace("T", " "))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def pictures_note(left_out: int) -> str:
    if not left_out:
        return ""
    return f"{left_out} pictures found no room in this file; they lie beside the report."


class Column(NamedTuple):
    """A column of the table: what it sorts by, and what it says."""

    key: str
    title: str
    unit: str
    value: Callable[[Line], float | None]
    text: Callable[[Line], str] | None = None


def _spread(name: str) -> Callable[[Line], float | None]:
    def value(line: Line) -> float | None:
        found: Spread | None = getattr(line, name)
        return None if found is None else found.median

    return value


def _plain(name: str) -> Callable[[Line], float | None]:
    return lambda line: getattr(line, name)


def _quality(name: str) -> Callable[[Line], float | None]:
    return lambda line: None if line.quality is None else getattr(line.quality, name)


def _decibels(name: str, equal: str) -> Column:
    """Infinite where the two are equal: that sorts over every number."""

    def value(line: Line) -> float | None:
        if line.quality is not None and getattr(line.quality, equal):
            return 1e9
        return _quality(name)(line)

    title = "PSNR" if name == "psnr_db" else "Latent SQNR"
    return Column(name, title, "dB", value, lambda line: "equal" if value(line) == 1e9 else number(value(line)))


COLUMNS = (
    Column("picture_s", "A picture", "s", _spread("picture_s")),
    Column("speedup", "Times as fast", "", _spread("speedup")),
    Column("images_per_minute", "Pictures", "a minute", _plain("images_per_minute")),
    Column(
        "best_images_per_minute",
        "At the best batch",
        "a minute",
        _plain("best_images_per_minute"),
        lambda line: _best(line),
    ),
    Column("step_s", "A step", "s", _spread("step_s")),
    Column("host_ms_per_step", "Host", "ms a step", _spread("host_ms_per_step")),
    Column("cold_start_s", "Cold start", "s", _spread("cold_start_s")),
    Column("cold_speedup", "Times sooner", "", _spread("cold_speedup")),
    Column("import_s", "Import", "s", _spread("import_s")),
    Column("open_s", "Open", "s", _spread("open_s")),
    Column("first_step_s", "First step", "s", _spread("first_step_s")),
    Column("first_preview_s", "First preview", "s", _spread("first_preview_s")),
    Column("peak_mib", "Peak memory", "MiB", _plain("peak_mib")),
    Column("gpu_peak_mib", "GPU memory", "MiB", _plain("gpu_peak_mib")),
    Column("artifact_mb", "Files", "MB", _plain("artifact_mb")),
    Column("installed_mb", "Installed", "MB", _plain("installed_mb")),
    Column("energy_j", "Energy", "J a picture", _plain("energy_j")),
    _decibels("psnr_db", "equal"),
    Column("ssim", "SSIM", "", _quality("ssim"), lambda line: _share(_quality("ssim")(line))),
    _decibels("latent_sqnr_db", "latents_equal"),
    Column("checker", "Checker", "share right", _quality("checker"), lambda line: _share(_quality("checker")(line))),
    Column("clip", "CLIP", "score", _quality("clip")),
    Column("fid", "FID", "", _quality("fid")),
)


def _best(line: Line) -> str:
    return f"{number(line.best_images_per_minute)} at {line.best_batch}" if line.best_batch else NONE


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def table(report: Report, lines: Sequence[Line]) -> str:
    """Every row's figures; columns that no row fills are left away."""
    who = {one.name: one for one in report.contestants}
    columns = [one for one in COLUMNS if any(one.value(line) is not None for line in lines)]
    if len({line.batch for line in lines}) < 2:
        columns = [one for one in columns if one.key != "best_images_per_minute"]
    heads = "".join(_head(one.key, one.title, one.unit) for one in columns)
    words = {"name": "Contestant", "engine": "Engine", "scheme": "Scheme", "job": "Job"}
    heads = "".join(_head(key, title, kind="word") for key, title in words.items()) + heads
    body = "".join(
        _line(index, line, who[line.contestant], report.jobs[line.job], columns) for index, line in enumerate(lines)
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Every figure"><table id="figures">'
        '<caption class="hidden">Every contestant&rsquo;s figures, a row for each job</caption>'
        f"<thead><tr>{heads}{_head('notes', 'Notes', kind='word')}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p id="nothing" class="empty" hidden>No contestant fits the filters.</p>'
    )


def _head(key: str, title: str, unit: str = "", kind: str = "") -> str:
    told = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    kind = f' class="{kind}"' if kind else ""
    return f'<th scope="col" data-key="{key}"{kind}><span class="title">{escape(title)}</span>{told}</th>'


def _line(index: int, line: Line, who: Contestant, job: Job, columns: Sequence[Column]) -> str:
    cells = "".join(_cell(one, line) for one in columns)
    marks = ' <span class="tag">reference</span>' if line.reference else ""
    marks += ' <span class="tag bad">error</span>' if line.error else ""
    notes = "".join(f'<li class="bad">{escape(line.error)}</li>' if line.error else "") + "".join(
        f"<li>{escape(note)}</li>" for note in line.notes
    )
    return (
        f'<tr data-row="{index}"><th scope="row">{escape(who.name)}{marks}</th><td class="word">{escape(engine_of(who))}</td>'
        f'<td class="word">{escape(scheme_of(who))}</td><td class="word">{escape(job_label(job))}</td>{cells}'
        f'<td class="notes">{f"<ul>{notes}</ul>" if notes else ""}</td></tr>'
    )


def _cell(column: Column, line: Line) -> str:
    value = column.value(line)
    shown = column.text(line) if column.text else number(value)
    spread = getattr(line, column.key, None)
    range_ = ""
    if isinstance(spread, Spread) and spread.least != spread.most:
        range_ = f' title="{number(spread.least)} to {number(spread.most)} in {spread.count} processes"'
    return f'<td data-value="{"" if value is None else value}"{range_}>{escape(shown)}</td>'
