"""How a report's figures were measured, told in the page from the report itself."""

from __future__ import annotations

from .page_data import size
from .page_text import escape, number
from .record import Job, Report, Row


def method(report: Report) -> str:
    """The machine's noise, the jobs, and the contestants with their versions; what the measures mean stands in `page.html`."""
    once = "" if report.calls else "<p>Each process made one call, whose figures stand where later calls' would.</p>"
    return f"{_noise(report)}{once}<h3>Jobs</h3>{_jobs(report.jobs)}<h3>Contestants</h3>{_contestants(report)}"


def _noise(report: Report) -> str:
    noise = report.noise
    times = f"{number(min(noise.probe_ms))} to {number(max(noise.probe_ms))} ms" if noise.probe_ms else "not at all"
    verdict = f"noisy: {noise.why}" if noise.noisy else "quiet enough"
    return (
        f"<p>A fixed piece of arithmetic was timed before and between the rounds: {times}, a spread of {noise.spread:.1%} of its "
        f"median. Other processes used at most {noise.busy:.0%} of the machine during a run. Verdict: {escape(verdict)}.</p>"
    )


def _jobs(jobs: list[Job]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{index + 1}</th><td>{size(job)}</td><td>{job.batch}</td><td>{job.steps}</td>"
        f"<td>{job.threads}</td><td>{number(job.guidance_scale)}</td><td class='word'>{escape(job.scheduler)}</td>"
        f"<td>{job.seed}</td><td class='notes'><ul>{''.join(f'<li>{escape(one)}</li>' for one in job.prompts)}</ul></td></tr>"
        for index, job in enumerate(jobs)
    )
    heads = ("Job", "Size", "Batch", "Steps", "Threads", "Guidance", "Scheduler", "First seed", "Prompts")
    return _scrolled("The jobs", heads, rows)


def _contestants(report: Report) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(one.name)}</th><td class='word'>{escape(one.kind)}</td><td class='path'>{escape(one.model)}</td>"
        f"<td class='path'>{escape(_told(one.options | one.call))}</td>"
        f"<td class='path'>{escape(_versions([row for row in report.rows if row.contestant == one.name]))}</td></tr>"
        for one in report.contestants
    )
    return _scrolled("The contestants", ("Contestant", "Kind", "Model", "Options", "Versions"), rows)


def _told(options: dict[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _versions(rows: list[Row]) -> str:
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row.versions
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _scrolled(label: str, heads: tuple[str, ...], rows: str) -> str:
    words = ("Scheduler", "Prompts", "Kind", "Model", "Options", "Versions")
    titles = "".join(f'<th scope="col"{" class=word" if title in words else ""}>{title}</th>' for title in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
