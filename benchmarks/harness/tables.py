"""A report as Markdown, for people, and as CSV, for spreadsheets: both from `summary`'s lines."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from csv import DictWriter

import msgspec

from .record import Job, Quality, Report
from .summary import Line, Spread

Column = tuple[str, Callable[[Line], str]]
EQUAL = "equal"


def markdown(report: Report, lines: Sequence[Line]) -> str:
    """The whole report: whether the machine was quiet, a table of results for each job, what lies behind them, notes."""
    parts = [f"# {report.title}", *_noise(report), _machine(report)]
    for index, job in enumerate(report.jobs):
        of_job = [line for line in lines if line.job == index]
        measured = [line for line in of_job if line.picture_s is not None]
        parts.append(f"## {_job(job)}")
        parts.append(_table(_results(measured, report.reference), measured) if measured else "Nothing was measured.")
        parts += [f"- **{line.contestant}** failed: {line.error}" for line in of_job if line.error]
        if measured:
            parts += ["Where the time goes:", _table(_details(measured), measured)]
    parts += _installed(report)
    parts += _notes(report)
    parts += [_legend(report)]
    return "\n\n".join(_joined(parts)) + "\n"


def csv(lines: Sequence[Line]) -> str:
    """A row for each line, a column for each figure; a spread has four: its median, _min, _max and _mad."""
    rows = [_flat(line) for line in lines]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _results(lines: Sequence[Line], reference: str | None) -> list[Column]:
    """What was found; columns that nobody has a figure for are left out."""
    other = f"times {reference}" if reference else "ratio"
    batches = len({line.best_batch for line in lines} | {line.batch for line in lines}) > 1
    columns: list[Column] = [
        ("contestant", lambda line: f"**{line.contestant}**" if line.reference else line.contestant),
        ("s a picture", lambda line: _spread(line.picture_s)),
        (f"speed, {other}", lambda line: _times(line.speedup, line)),
        ("s a step", lambda line: _middle(line.step_s)),
        ("pictures a minute", lambda line: _number(line.images_per_minute)),
        ("at the best batch", lambda line: _best(line) if batches else ""),
        ("cold start, s", lambda line: _spread(line.cold_start_s)),
        (f"sooner, {other}", lambda line: _times(line.cold_speedup, line)),
        ("peak, MiB", lambda line: _number(line.peak_mib, 0)),
        ("GPU peak, MiB", lambda line: _number(line.gpu_peak_mib, 0)),
        ("J a picture", lambda line: _number(line.energy_j)),
        ("model, MB", lambda line: _number(line.artifact_mb, 1)),
        ("installed, MB", lambda line: _number(line.installed_mb, 0)),
        ("PSNR, dB", lambda line: "" if line.reference else _decibels(line.quality, "psnr_db", "equal")),
        ("SSIM", lambda line: "" if line.reference else _of(line.quality, "ssim", "{:.4f}")),
        ("latents' SQNR, dB", lambda line: "" if line.reference else _decibels(line.quality, "latent_sqnr_db", "latents_equal")),
        ("checker", lambda line: _of(line.quality, "checker", "{:.0%}")),
        ("CLIP score", lambda line: _of(line.quality, "clip", "{:.2f}")),
        ("FID", lambda line: _of(line.quality, "fid", "{:.2f}")),
    ]  # fmt: skip
    return _filled(columns, lines)


def _details(lines: Sequence[Line]) -> list[Column]:
    roles = dict.fromkeys(role for line in lines for role in line.component_s)
    columns: list[Column] = [
        ("contestant", lambda line: line.contestant),
        ("import, s", lambda line: _middle(line.import_s)),
        ("open, s", lambda line: _middle(line.open_s)),
        ("first step, s", lambda line: _middle(line.first_step_s)),
        ("first picture, s", lambda line: _middle(line.first_image_s)),
        ("first preview, s", lambda line: _middle(line.first_preview_s)),
        ("host, ms a step", lambda line: _middle(line.host_ms_per_step)),
        *((f"{role}, s a call", _role(role)) for role in roles),
    ]
    return _filled(columns, lines)


def _role(role: str) -> Callable[[Line], str]:
    return lambda line: _number(line.component_s[role].median) if role in line.component_s else ""


def _filled(columns: Sequence[Column], lines: Sequence[Line]) -> list[Column]:
    return [(name, cell) for name, cell in columns if any(cell(line) for line in lines)]


def _table(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    cells = [[name for name, _ in columns], *([cell(line) for _, cell in columns] for line in lines)]
    return _grid(cells)


def _grid(cells: Sequence[Sequence[str]]) -> str:
    """The first column to the left, figures to the right."""
    head, *rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in cells]
    marks = [":---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])


def _noise(report: Report) -> list[str]:
    noise = report.noise
    if noise.noisy:
        return [
            f"**This machine was noisy: {noise.why}.** Ratios, taken round by round, bear that better than seconds do."
        ]
    quiet = f"fixed arithmetic {noise.spread:.0%} apart, other processes at most {noise.busy:.0%} of the machine"
    return [f"The machine was quiet: {quiet}."]


def _machine(report: Report) -> str:
    here = report.machine
    lines = [
        f"- machine: {here.processor}, {here.cores} cores, {here.memory_gib:g} GiB, {here.system}"
        + (f", {here.gpu}" if here.gpu else "") + (f"; {here.limit}" if here.limit else ""),
        f"- instruction sets: {', '.join(here.flags) or 'none that matter'}",
        f"- Ingot {report.ingot}, Python {here.python}; {_versions(report)}",
        f"- {report.rounds} round{'s' if report.rounds > 1 else ''} after a warm-up, contestants in turn, each time a fresh process; "
        f"began {report.began}, took {report.seconds:,.0f} s",
    ]  # fmt: skip
    if report.command:
        lines.append(f"- command: `{report.command}`")
    return "\n".join(lines)


def _versions(report: Report) -> str:
    """Each package once; what differs between contestants names each version."""
    found: dict[str, list[str]] = {}
    for row in report.rows:
        for name, version in row.versions.items():
            if name != "ingot" and version not in found.setdefault(name, []):
                found[name].append(version)
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items()) or "no versions are known"


def _job(job: Job) -> str:
    return (
        f"{job.height}x{job.width}, batch {job.batch}, {job.steps} steps, {job.threads} thread{'s' if job.threads > 1 else ''}, "
        f"{job.scheduler.removesuffix('Scheduler')}, guidance {job.guidance_scale:g}"
    )


def _installed(report: Report) -> list[str]:
    """What the largest parts of each installation are, each contestant's kind once."""
    told: dict[str, str] = {}
    for row in report.rows:
        parts = [(name, mb) for name, mb in row.installed_mb.items() if name != "total"]
        if parts:
            largest = ", ".join(f"{name} {mb:.1f}" for name, mb in parts[:6])
            rest = sum(mb for _, mb in parts[6:])
            told.setdefault(f"{largest}, {len(parts[6:])} others {rest:.1f}" if rest else largest, row.contestant)
    return ["Installed, MB:", "\n".join(f"- {name}: {text}" for text, name in told.items())] if told else []


def _notes(report: Report) -> list[str]:
    told = dict.fromkeys(report.notes)
    for row in report.rows:
        told |= {f"{row.contestant}: {note}": None for note in row.notes}
    return ["Notes:", "\n".join(f"- {note}" for note in told)] if told else []


def _legend(report: Report) -> str:
    against = f" against {report.reference}, round by round" if report.reference else ""
    calls = "calls after the first" if report.calls else "the first and only call of each process"
    return (
        f"Medians over the rounds, with the least and the most. Seconds a picture are of {calls}; ratios are{against}. "
        "A cold start is from the process's start to the first picture. What each figure means: docs/bench.md."
    )


def _joined(parts: Iterable[str]) -> list[str]:
    """Neighbouring list items as one block."""
    blocks: list[str] = []
    for part in parts:
        if part.startswith("- ") and blocks and blocks[-1].startswith("- **") and part.startswith("- **"):
            blocks[-1] += f"\n{part}"
        else:
            blocks.append(part)
    return blocks


def _number(value: float | None, digits: int | None = None) -> str:
    """Three significant digits, or so many behind the point."""
    if value is None:
        return ""
    if digits is None:
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def _middle(spread: Spread | None) -> str:
    return "" if spread is None else _number(spread.median)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.count == 1:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _times(spread: Spread | None, line: Line) -> str:
    if spread is None or line.reference:
        return "1" if line.reference else ""
    return _spread(spread)


def _best(line: Line) -> str:
    return "" if line.best_images_per_minute is None else f"{_number(line.best_images_per_minute)} ({line.best_batch})"


def _of(quality: Quality | None, name: str, form: str) -> str:
    value = getattr(quality, name, None)
    return "" if value is None else form.format(value)


def _decibels(quality: Quality | None, name: str, equal: str) -> str:
    return EQUAL if getattr(quality, equal, False) else _of(quality, name, "{:.1f}")


def _flat(line: Line) -> dict[str, object]:
    """A line's fields; spreads, roles and qualities as columns of their own."""
    found: dict[str, object] = {}
    for name in line.__struct_fields__:
        value = getattr(line, name)
        if isinstance(value, Spread):
            found |= _columns(name, value)
        elif isinstance(value, Quality):
            found |= {f"quality_{key}": one for key, one in msgspec.structs.asdict(value).items()}
        elif isinstance(value, dict):
            for role, spread in value.items():
                found |= _columns(f"{role}_s", spread)
        else:
            found[name] = "; ".join(value) if isinstance(value, list) else value
    return found


def _columns(name: str, spread: Spread) -> dict[str, object]:
    return {
        name: spread.median,
        f"{name}_min": spread.least,
        f"{name}_max": spread.most,
        f"{name}_mad": spread.deviation,
    }
