"""From measurements to figures, and what people, spreadsheets and programs are given of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingot.benchmarks.harness import record, tables
from ingot.benchmarks.harness.record import Contestant, Job, Machine, Noise, Quality, Report, Row, Run
from ingot.benchmarks.harness.summary import Line, summarize

ROOT = Path(__file__).parent.parent


def run(number: int, calls: list[float], cold: float = 1.0, peak: float = 100.0, **more: Any) -> Run:
    """A process: seconds of its calls, of its cold start, and its peak in MiB."""
    parts = {"import_s": 0.1, "open_s": 0.2, "first_step_s": 0.3, "first_image_s": 0.5}
    return Run(round=number, cold_start_s=cold, call_s=calls, peak_mib=peak, **{**parts, **more})


def job(**changed: Any) -> Job:
    values = {
        "height": 64, "width": 96, "batch": 1, "steps": 8, "threads": 1, "guidance_scale": 4.0, "scheduler": "DDIMScheduler",
        "seed": 0, "prompts": ("a",),
    }  # fmt: skip
    return Job(**{**values, **changed})


def report(rows: list[Row], jobs: list[Job] | None = None, noise: Noise | None = None) -> Report:
    names = list(dict.fromkeys(row.contestant for row in rows))
    return Report(
        ingot="1", command="ingot bench b", began="2000-01-01T00:00:00+00:00", seconds=5, title="A title",
        machine=Machine(processor="P", cores=2, memory_gib=4, system="S", python="3", flags=["avx2"]),
        noise=noise or Noise(probe_ms=[1.0], spread=0.01, busy=0.0, noisy=False), rounds=2, reference=names[0],
        jobs=jobs or [job()], contestants=[Contestant(name=name, kind="ingot", model="b") for name in names], rows=rows,
    )  # fmt: skip


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is twice as slow in round 2, for both: one is three times as fast in each."""
    slow = Row(contestant="slow", job=0, runs=[run(1, [3.0], 6.0), run(2, [6.0], 8.0)])
    fast = Row(contestant="fast", job=0, runs=[run(1, [1.0], 2.0, 50), run(2, [2.0], 2.0, 25)])
    reference, line = summarize(report([slow, fast]))
    assert line.speedup is not None
    assert (line.speedup.least, line.speedup.median, line.speedup.most) == (3.0, 3.0, 3.0)
    assert line.cold_speedup is not None
    assert (line.cold_speedup.least, line.cold_speedup.most) == (3.0, 4.0)
    assert line.memory_share is not None
    assert (line.memory_share.least, line.memory_share.most) == (0.25, 0.5)
    assert reference.reference
    assert reference.speedup is not None
    assert reference.speedup.median == 1.0


def test_a_round_that_only_one_of_two_has_makes_no_ratio() -> None:
    rows = [Row(contestant="a", job=0, runs=[run(1, [2.0])]), Row(contestant="b", job=0, runs=[run(2, [1.0])])]
    assert summarize(report(rows))[1].speedup is None


def test_a_process_counts_by_its_median_call_and_a_batch_by_its_pictures() -> None:
    row = Row(contestant="a", job=0, runs=[run(1, [4.0, 9.0, 4.4]), run(2, [6.0, 5.0])])
    line = summarize(report([row], [job(batch=2)]))[0]
    assert line.picture_s is not None
    assert line.picture_s.median == pytest.approx((2.2 + 2.75) / 2, rel=1e-12)
    assert line.picture_s.deviation == pytest.approx(0.275, rel=1e-12)
    assert line.images_per_minute == pytest.approx(60 / 2.475, rel=1e-12)


def test_the_best_batch_is_of_the_same_contestant_size_steps_and_threads() -> None:
    jobs = [job(), job(batch=4), job(batch=4, height=128)]
    rows = [Row(contestant=name, job=i, runs=[run(1, [seconds])])
            for name, times in (("a", (1.0, 2.0, 0.1)), ("b", (1.0, 6.0, 0.1))) for i, seconds in enumerate(times)]  # fmt: skip
    found = {
        (line.contestant, line.job): (line.best_batch, line.best_images_per_minute)
        for line in summarize(report(rows, jobs))
    }
    assert found["a", 0] == found["a", 1] == (4, pytest.approx(120.0))
    assert found["b", 0] == found["b", 1] == (1, pytest.approx(60.0))
    assert found["a", 2] == (4, pytest.approx(2400.0))


def test_what_was_not_measured_is_none_and_a_failed_row_keeps_its_place() -> None:
    rows = [Row(contestant="a", job=0, runs=[run(1, [1.0])]), Row(contestant="b", job=0, error="it broke")]
    line = summarize(report(rows))[1]
    assert (line.picture_s, line.speedup, line.peak_mib, line.energy_j, line.error) == (
        None,
        None,
        None,
        None,
        "it broke",
    )


def test_the_markdown_says_first_that_a_machine_was_noisy() -> None:
    noisy = Noise(probe_ms=[1.0, 2.0], spread=0.7, busy=0.5, noisy=True, why="fixed arithmetic took 1.0 to 2.0 ms")
    found = report([Row(contestant="a", job=0, runs=[run(1, [1.0])])], noise=noisy)
    text = tables.markdown(found, summarize(found))
    assert text.splitlines()[2].startswith("**This machine was noisy: fixed arithmetic took 1.0 to 2.0 ms")
    calm = report(found.rows)
    assert "noisy" not in tables.markdown(calm, summarize(calm))


def test_the_markdown_has_a_row_for_each_result_and_a_line_for_each_failure() -> None:
    quality = Quality(reference="a", psnr_db=31.24, ssim=0.98765)
    rows = [
        Row(contestant="a", job=0, runs=[run(1, [2.0])], notes=["a note"], installed_mb={"numpy": 30.0, "total": 30.0}),
        Row(contestant="b|c", job=0, runs=[run(1, [0.5], host_ms_per_step=[1.5])], quality=quality),
        Row(contestant="d", job=0, error="killed by SIGSEGV, during call 2 of 4"),
    ]
    found = report(rows)
    lines = tables.markdown(found, summarize(found)).splitlines()
    head = next(line for line in lines if line.startswith("| contestant"))
    row = dict(zip(_cells(head), _cells(next(line for line in lines if line.startswith("| b"))), strict=True))
    assert row["contestant"] == "b\\|c"
    assert (row["s a picture"], row["speed, times a"], row["PSNR, dB"], row["SSIM"]) == (
        "0.500",
        "4.00",
        "31.2",
        "0.9877",
    )
    assert "FID" not in head  # nobody has one
    assert "- **d** failed: killed by SIGSEGV, during call 2 of 4" in lines
    assert "- a: a note" in lines


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("\\|", "\0").strip("|").replace("\0", "\\|").split(" | ")]


def test_the_csv_has_a_column_for_each_figure_and_its_spread() -> None:
    rows = [
        Row(contestant="a", job=0, runs=[run(1, [1.0], component_s={"unet": [0.7]}), run(2, [2.0])], notes=["x", "y"])
    ]
    found = list(csv.DictReader(io.StringIO(tables.csv(summarize(report(rows))))))
    assert len(found) == 1
    assert [float(found[0][name]) for name in ("picture_s", "picture_s_min", "picture_s_max", "picture_s_mad")] == [
        1.5,
        1,
        2,
        0.5,
    ]
    assert found[0]["unet_s"] == "0.7"
    assert found[0]["notes"] == "x; y"
    assert {name for name in Line.__struct_fields__ if name not in ("component_s", "quality")} <= set(found[0])


def test_a_report_is_read_as_it_was_written() -> None:
    rows = [
        Row(
            contestant="a",
            job=0,
            runs=[run(1, [1.0], timeline=[("unet", 0.0, 0.5)])],
            quality=Quality(reference="a", equal=True),
        )
    ]
    found = report(rows)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Report) == found


def test_the_published_schema_is_current() -> None:
    """`python -m ingot.benchmarks.harness.record > docs/bench-schema.json` renews it."""
    assert (ROOT / "docs" / "bench-schema.json").read_text() == record.schema()
    assert json.loads(record.schema())["$defs"]["Report"]["properties"]["schema"]["default"] == record.SCHEMA
