"""The table of schemes, from made-up lines of a report and a tiny bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingot.benchmarks import scheme_table
from ingot.benchmarks.harness.summary import summarize
from ingot.runtimes.bundle import Bundle

from . import bench_reports


@pytest.fixture(scope="module")
def rows(tiny_bundle: Path) -> dict[str, list[str]]:
    """By what the report has: with the bundle's one graph, without it, and where it died."""
    bundle = Bundle.open(tiny_bundle)
    lines = summarize(bench_reports.report(count=5))
    died = summarize(bench_reports.report(count=5, failing=[4]))
    return {
        "measured": scheme_table.table(bundle, lines),
        "elsewhere": scheme_table.table(bundle, lines[:1]),
        "died": scheme_table.table(bundle, died),
    }


def test_a_row_is_what_bench_measured(rows: dict[str, list[str]]) -> None:
    head, marks, reference, own = rows["measured"]
    assert {row.count("|") for row in (head, marks, reference, own)} == {10}
    assert reference.startswith("| diffusers | float32 | 34.0 |")
    assert reference.endswith("| - | - | 100% |")
    assert own.startswith("| onnx | float32 | 33.8 |")
    assert own.endswith("| equal | 1.000 | 100% |")


def test_seconds_a_step_are_a_pictures_over_the_steps(rows: dict[str, list[str]]) -> None:
    (line,) = summarize(bench_reports.report(count=1))
    assert line.picture_s is not None
    assert f"| {line.picture_s.median / scheme_table.STEPS:.4f} | {line.peak_mib:.0f} |" in rows["measured"][2]


def test_what_does_not_run_here_has_its_size_alone(rows: dict[str, list[str]], tiny_bundle: Path) -> None:
    own = rows["elsewhere"][3]
    assert own.endswith("| | |  |  |  |")
    # the form for ONNX Runtime, where a component has one, and the weights that lie beside it
    folders = [tiny_bundle / role for role in scheme_table.ROLES]
    files = [next(f for f in (folder / "model_ort.onnx", folder / "model.onnx") if f.exists()) for folder in folders]
    files += [f for folder in folders if (f := folder / "model.onnx_data").exists()]
    assert float(own.split("|")[3]) == pytest.approx(sum(f.stat().st_size for f in files) / 1e6, abs=0.05)  # one digit


def test_what_died_says_why(rows: dict[str, list[str]]) -> None:
    assert rows["died"][3] == "| onnx | float32 | killed by signal 9 (out of memory?) | | | | | | |"
