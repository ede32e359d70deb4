"""What a report says, in a few plain sentences computed from its lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .page_data import job_label
from .page_text import escape, number
from .record import Report
from .summary import Line, Spread

CLOSE_DB = 40.0  # from here on two pictures are hard to tell apart side by side

Figure = Callable[[Line], float | None]


def findings(report: Report, lines: Sequence[Line]) -> str:
    """A block for each job; the page shows the chosen one's."""
    blocks = []
    for index, job in enumerate(report.jobs):
        own = [line for line in lines if line.job == index]
        cards = "".join(_cards(own, report.reference))
        told = "".join(f"<li>{sentence}</li>" for sentence in _sentences(own))
        title = f'<p class="job">{escape(job_label(job))}</p>' if len(report.jobs) > 1 else ""
        blocks.append(
            f'<div data-job="{index}">{title}<div class="cards">{cards}</div><ul class="told">{told}</ul></div>'
        )
    return "".join(blocks)


def _cards(lines: Sequence[Line], reference: str | None) -> list[str]:
    several = sum(picture_s(line) is not None for line in lines) > 1
    fastest = _least(lines, picture_s)
    close = _least([line for line in lines if _close(line) and not line.reference], picture_s)
    cards = []
    if fastest:
        cards.append(
            _card(
                "Fastest" if several else "Time a picture",
                number(picture_s(fastest)),
                "s a picture",
                fastest,
                _speed(fastest, reference),
            )
        )
    if close and fastest and close is not fastest:
        title = f"Fastest at {CLOSE_DB:.0f} dB or more"
        cards.append(
            _card(
                title, number(picture_s(close)), "s a picture", close, f"{_fidelity(close)}. {_speed(close, reference)}"
            )
        )
    soonest = _least(lines, cold_start_s)
    if soonest:
        title = "Soonest first picture" if several else "First picture"
        cards.append(
            _card(
                title,
                number(cold_start_s(soonest)),
                "s",
                soonest,
                f"From the start of its process. {_times(soonest.cold_speedup, 'sooner than', reference, soonest)}",
            )
        )
    least = _least(lines, lambda line: line.peak_mib)
    if least:
        share = least.memory_share
        told = f"{share.median:.0%} of what {_called(reference)} takes." if share and not least.reference else ""
        cards.append(
            _card("Least memory" if several else "Memory", number(least.peak_mib), "MiB at its peak", least, told)
        )
    small = _least(lines, lambda line: line.artifact_mb)
    if small:
        told = f"Its packages take {number(small.installed_mb)} MB." if small.installed_mb is not None else ""
        cards.append(_card("Smallest" if several else "Size", number(small.artifact_mb), "MB of files", small, told))
    return cards  # fmt: skip


def picture_s(line: Line) -> float | None:
    return line.picture_s.median if line.picture_s else None


def cold_start_s(line: Line) -> float | None:
    return line.cold_start_s.median if line.cold_start_s else None


def _least(lines: Sequence[Line], figure: Figure) -> Line | None:
    found = [(value, index) for index, line in enumerate(lines) if (value := figure(line)) is not None]
    return lines[min(found)[1]] if found else None


def _card(title: str, figure: str, unit: str, line: Line, told: str) -> str:
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="figure"><b>{escape(figure)}</b> {escape(unit)}</p>'
        f'<p class="who">{escape(line.contestant)}</p><p class="soft">{told}</p></div>'
    )


def _speed(line: Line, reference: str | None) -> str:
    return _times(line.speedup, "as fast as", reference, line)


def _times(ratio: Spread | None, how: str, reference: str | None, line: Line) -> str:
    if line.reference:
        return "It is the reference."
    if ratio is None or reference is None:
        return ""
    between = f" (round by round {number(ratio.least)} to {number(ratio.most)})" if ratio.count > 1 else ""
    return f"{number(ratio.median)} times {how} {_called(reference)}{between}."


def _called(reference: str | None) -> str:
    return escape(reference) if reference and len(reference) <= 32 else "the reference"


def _decibels(line: Line) -> float | None:
    """PSNR; infinite where the pictures are equal."""
    if line.quality is None:
        return float("inf") if line.reference and line.picture_s else None
    return float("inf") if line.quality.equal else line.quality.psnr_db


def _close(line: Line) -> bool:
    found = _decibels(line)
    return found is not None and found >= CLOSE_DB


def _fidelity(line: Line) -> str:
    found = _decibels(line)
    if found is None:
        return "no quality"
    return "Equal pictures" if found == float("inf") else f"PSNR {number(found)} dB"


def frontier(lines: Sequence[Line]) -> list[Line]:
    """From the fastest on, those that are better than everyone before."""
    best, found = float("-inf"), []
    timed = [
        (seconds, value, line)
        for line in lines
        if (seconds := picture_s(line)) is not None and (value := _decibels(line)) is not None
    ]
    for _, value, line in sorted(timed, key=lambda one: (one[0], -one[1])):
        if value > best:
            best = value
            found.append(line)
    return found


def _sentences(lines: Sequence[Line]) -> list[str]:
    told = [_frontier_told(lines), _equal_told(lines), _batch_told(lines)]
    failed = [line for line in lines if line.error]
    if failed:
        told.append(f"{len(failed)} of {len(lines)} did not finish: {_names(failed)}. The table has the reasons.")
    noted = [line for line in lines if line.notes]
    if noted:
        told.append(f"The table has notes on {_names(noted)}.")
    if not any(picture_s(line) is not None for line in lines):
        told.append("No contestant has a time: there is nothing to compare.")
    return [sentence for sentence in told if sentence]


def _frontier_told(lines: Sequence[Line]) -> str:
    front = frontier(lines)
    if len(front) < 2:
        return ""
    named = "; ".join(
        f"<b>{escape(line.contestant)}</b> ({number(picture_s(line))} s, {_fidelity(line).replace('E', 'e', 1)})"
        for line in front[:6]
    )
    rest = "Every other is slower than one of these that is at least as good."
    return f"On the frontier of speed and quality, fastest first: {named}{_more(front)}. {rest}"


def _equal_told(lines: Sequence[Line]) -> str:
    equal = [line for line in lines if line.quality is not None and line.quality.equal and not line.reference]
    return f"Pictures equal to the reference&rsquo;s, byte by byte: {_names(equal)}." if equal else ""


def _batch_told(lines: Sequence[Line]) -> str:
    """Where a larger batch makes the most pictures a minute."""
    found = [(line.best_images_per_minute, line) for line in lines if line.best_images_per_minute is not None]
    if not found:
        return ""
    most, best = max(found, key=lambda one: one[0])
    if best.best_batch == 1:
        return ""
    return f"Most pictures a minute: <b>{escape(best.contestant)}</b>, {number(most)} at batch {best.best_batch}."


def _names(lines: Sequence[Line]) -> str:
    shown = [f"<b>{escape(line.contestant)}</b>" for line in lines[:6]]
    return ", ".join(shown) + _more(lines)


def _more(lines: Sequence[Line]) -> str:
    return f" and {len(lines) - 6} more" if len(lines) > 6 else ""
