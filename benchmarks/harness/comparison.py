"""What a comparison of two reports found, and its text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from .figures import IMPROVEMENT, NEW, NOISE, REGRESSION, SILENT


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a contestant at a job in both reports, or (`metric` empty) a row that is in one of them only."""

    contestant: str
    job: str
    verdict: str
    metric: str = ""
    unit: str = ""
    old: float | None = None  # the median of the runs
    new: float | None = None
    change: float | None = None  # share of the old figure, positive where there is more of it; dB for what is in dB
    why: str = ""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two reports, side by side."""

    warnings: list[str]  # what makes the figures hard to compare: read first
    changes: list[Change]
    notes: list[str]  # what was not compared
    compared: int  # rows

    @property
    def regressions(self) -> list[Change]:
        """What has become worse."""
        return [change for change in self.changes if change.verdict == REGRESSION]


def as_markdown(comparison: Comparison, threshold: float | Mapping[str, float]) -> str:
    """Markdown: warnings, a table with what is worse first, what was not compared, the sum."""
    order = (REGRESSION, IMPROVEMENT, NEW, SILENT, NOISE)
    warnings = [f"- WARNING: {warning}" for warning in comparison.warnings]
    table = _table(sorted(comparison.changes, key=lambda change: order.index(change.verdict)))
    notes = [f"- {note}" for note in comparison.notes]
    counts = Counter(change.verdict for change in comparison.changes)
    said = ", ".join(
        f"{counts[verdict]} {verdict}{_plural(verdict, counts[verdict])}" for verdict in order if counts[verdict]
    )
    limits = sorted(set(threshold.values() if isinstance(threshold, Mapping) else [threshold]))
    beyond = " or ".join(f"{100 * limit:g} %" for limit in limits)
    total = [f"{comparison.compared} rows compared; beyond {beyond} and the runs' spread: {said or 'nothing'}"]
    return "\n\n".join("\n".join(block) for block in (warnings, table, notes, total) if block)


def _plural(verdict: str, count: int) -> str:
    return "s" if verdict in (REGRESSION, IMPROVEMENT) and count != 1 else ""


def _table(changes: Iterable[Change]) -> list[str]:
    rows = [("verdict", "contestant", "job", "figure", "old", "new", "change")]
    for one in changes:
        figure = f"{one.metric} ({one.unit})" if one.unit else one.metric or one.why or "the row"
        rows.append((one.verdict, one.contestant, one.job, figure, _number(one.old), _number(one.new), _changed(one)))
    cells = [tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return "equal" if math.isinf(value) else f"{value:.4g}"


def _changed(one: Change) -> str:
    if one.change is None:
        return ""
    return f"{one.change:+.2f} dB" if one.unit == "dB" else f"{100 * one.change:+.1f} %"
