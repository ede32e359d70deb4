"""Two benchmark reports side by side: every verdict, by reports made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingot import InputError
from ingot.benchmarks.harness.compare import compare, main_compare
from ingot.benchmarks.harness.comparison import as_markdown
from ingot.benchmarks.harness.figures import METRICS, read_thresholds
from ingot.benchmarks.harness.record import Contestant, Job, Machine, Noise, Quality, Report, Row, Run

JOB = Job(
    height=64, width=64, batch=2, steps=4, threads=1, guidance_scale=7.5, scheduler="DDIMScheduler", seed=0, prompts=("a",)
)  # fmt: skip
MACHINE = Machine(processor="A", cores=2, memory_gib=24.0, system="Linux", python="3.11", flags=["avx2"])
QUIET = Noise(probe_ms=[1.0], spread=0.0, busy=0.0, noisy=False)


def row(call_s: list[float] | None = None, **more: Any) -> Row:
    """A contestant's row: one run for each of these seconds a call."""
    runs = [
        Run(round=i, import_s=1, open_s=1, first_step_s=1, first_image_s=1, cold_start_s=3, call_s=[s, s], step_s=[s / 4],
            peak_mib=100)
        for i, s in enumerate([2.0, 2.02, 1.98] if call_s is None else call_s)
    ]  # fmt: skip
    return Row(
        **{"contestant": "onnx", "job": 0, "runs": runs, "artifact_mb": 40.0, "installed_mb": {"total": 90}, **more}
    )


def report(*rows: Row, jobs: list[Job] | None = None, **more: Any) -> Report:
    names = dict.fromkeys(one.contestant for one in rows)
    contestants = [Contestant(name=name, kind="ingot", model="bundle") for name in names]
    made = Report(
        ingot="0.1", command="ingot bench", began="", seconds=1, title="", machine=MACHINE, noise=QUIET, rounds=3,
        reference=None, jobs=jobs or [JOB], contestants=contestants, rows=list(rows),
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def verdicts(old: Row, new: Row, threshold: float = 0.05) -> dict[str, str]:
    """What is said of each figure but `within noise`."""
    found = compare(report(old), report(new), threshold).changes
    return {change.metric: change.verdict for change in found if change.verdict != "within noise"}


def quality(**figures: Any) -> Row:
    return row(quality=Quality(reference="diffusers", **figures))


# verdicts of figures


def test_an_equal_report_has_nothing_to_say() -> None:
    found = compare(report(row()), report(row()))
    assert {change.verdict for change in found.changes} == {"within noise"}
    assert (found.regressions, found.warnings, found.notes, found.compared) == ([], [], [], 1)


def test_slower_is_a_regression_and_faster_an_improvement() -> None:
    fast, slow = row([2.0, 2.1, 1.9]), row([4.0, 4.1, 3.9])
    times = ("seconds per picture", "seconds per step")
    assert verdicts(fast, slow) == dict.fromkeys(times, "regression")
    assert verdicts(slow, fast) == dict.fromkeys(times, "improvement")
    (change,) = (c for c in compare(report(fast), report(slow)).changes if c.metric == "seconds per picture")
    assert (change.old, change.new, change.change) == (1.0, 2.0, 1.0)  # a call makes two pictures


def test_a_change_within_the_spread_of_the_runs_is_noise() -> None:
    """The medians are 10 % apart; the fastest run of the slower is as fast as the slowest of the faster."""
    assert verdicts(row([2.0, 1.9, 2.1]), row([2.2, 2.1, 2.3])) == {}
    assert set(verdicts(row([2.0, 1.9, 2.09]), row([2.2, 2.1, 2.3])).values()) == {"regression"}


def test_a_change_within_the_threshold_is_noise() -> None:
    assert verdicts(row([2.0]), row([2.1])) == {}  # 5 % is not beyond 5 %
    assert "seconds per picture" in verdicts(row([2.0]), row([2.1]), 0.04)


@pytest.mark.parametrize(
    ("metric", "old", "new"),
    [
        ("artifact size", row(artifact_mb=40), row(artifact_mb=50)),
        ("installed size", row(installed_mb={"total": 90}), row(installed_mb={"total": 100})),
        ("PSNR", quality(psnr_db=40.0), quality(psnr_db=39.5)),
        ("PSNR", quality(equal=True), quality(psnr_db=50.0)),
        ("SSIM", quality(ssim=0.99), quality(ssim=0.9)),
        ("latents' SQNR", quality(latent_sqnr_db=30.0), quality(latent_sqnr_db=20.0)),
        ("latents' SQNR", quality(latents_equal=True), quality(latent_sqnr_db=60.0)),
        ("checker", quality(checker=0.8), quality(checker=0.6)),
        ("checker", quality(checker=0.8), quality(checker=0.0)),
        ("CLIP score", quality(clip=30.0), quality(clip=25.0)),
        ("FID", quality(fid=20.0), quality(fid=30.0)),
    ],
)
def test_more_is_worse_of_sizes_and_less_is_worse_of_quality(metric: str, old: Row, new: Row) -> None:
    assert verdicts(old, new) == {metric: "regression"}
    assert verdicts(new, old) == {metric: "improvement"}


def test_memory_start_and_energy_are_held_too() -> None:
    def changed(**figures: Any) -> Row:
        return row(runs=[msgspec.structs.replace(run, **figures) for run in row().runs])

    for figures, metric in (
        ({"peak_mib": 120}, "peak memory"), ({"cold_start_s": 4}, "cold start"),
    ):  # fmt: skip
        assert verdicts(row(), changed(**figures)) == {metric: "regression"}
    for name, metric in (("gpu_peak_mib", "GPU memory"), ("energy_j", "energy per call")):
        assert verdicts(changed(**{name: 50.0}), changed(**{name: 60.0})) == {metric: "regression"}


def test_decibels_are_held_by_the_error_that_they_stand_for() -> None:
    """20 log10(1.05) = 0.424 dB."""
    assert verdicts(quality(psnr_db=40.0), quality(psnr_db=39.58)) == {}
    assert verdicts(quality(psnr_db=40.0), quality(psnr_db=39.57)) == {"PSNR": "regression"}


def test_pictures_nearer_than_the_rounding_to_8_bits_are_as_good_as_equal() -> None:
    assert verdicts(quality(equal=True, latents_equal=True), quality(psnr_db=60.0, latent_sqnr_db=90.0)) == {}


def test_a_figure_of_one_report_only_is_no_regression() -> None:
    assert verdicts(quality(ssim=0.9), row()) == {"SSIM": "no verdict"}
    assert verdicts(row(), quality(ssim=0.9)) == {"SSIM": "no verdict"}


# verdicts of rows


def test_rows_that_vanish_or_fail_by_now_are_regressions() -> None:
    openvino = row(contestant="openvino")
    gone = compare(report(row(), openvino), report(row()))
    assert [(change.contestant, change.why) for change in gone.regressions] == [
        ("openvino", "is not in the new report")
    ]
    dead = row(contestant="openvino", runs=[], error="signal 9 in call 2")
    failed = compare(report(row(), openvino), report(row(), dead))
    assert [(change.contestant, change.why) for change in failed.regressions] == [
        ("openvino", "fails: signal 9 in call 2")
    ]
    assert compare(report(row(), dead), report(row(), dead)).regressions == []
    (runs,) = (change for change in compare(report(dead), report(openvino)).changes if change.verdict == "improvement")
    assert runs.why == "failed: signal 9 in call 2"


def test_new_rows_are_listed() -> None:
    found = compare(report(row()), report(row(), row(contestant="torch"), row(contestant="x", runs=[], error="dies")))
    new = [(change.contestant, change.why) for change in found.changes if change.verdict == "new"]
    assert new == [("torch", ""), ("x", "fails: dies")]
    assert found.regressions == []


def test_jobs_that_differ_are_not_compared_and_said() -> None:
    other = msgspec.structs.replace(JOB, steps=8)
    found = compare(report(row([1.0])), report(row([1.0]), row([9.0], job=1), jobs=[JOB, other]))
    assert {change.verdict for change in found.changes} == {"within noise"}
    assert found.notes == [
        "not compared: 64x64, batch 2, 8 steps, 1 threads is a job of the new report only (nearest: other steps)"
    ]


# warnings


def test_other_machines_and_noise_are_warned_of_first() -> None:
    machine = msgspec.structs.replace(MACHINE, processor="B", cores=4)
    noise = msgspec.structs.replace(QUIET, noisy=True, why="the probe took twice as long in round 2")
    old = report(row(versions={"onnxruntime": "1.31"}))
    new = report(row(versions={"onnxruntime": "1.32"}), machine=machine, noise=noise, reference="onnx")
    found = compare(old, new)
    assert found.warnings == [
        "another machine: processor A, now B",
        "another machine: cores 2, now 4",
        "the new report is of a noisy machine: the probe took twice as long in round 2",
        "quality is against onnx, was against None",
        "onnxruntime 1.31, now 1.32",
    ]
    assert as_markdown(found, 0.05).startswith("- WARNING: another machine: processor")


def test_a_contestant_with_other_options_is_warned_of() -> None:
    contestant = Contestant(name="onnx", kind="ingot", model="elsewhere", call={"cache_interval": 3})
    found = compare(report(row()), report(row(), contestants=[contestant]))
    assert found.warnings == ["onnx is another contestant by now: its call differ"]


# the command


def saved(made: Report, file: Path, **changed: Any) -> Path:
    content = msgspec.to_builtins(made) | changed
    file.write_bytes(msgspec.json.encode(content))
    return file


def test_exit_codes_and_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = read_thresholds("5%")
    old = saved(report(row()), tmp_path / "old.json")
    assert main_compare(old, old, limits) == 0
    assert "1 rows compared; beyond 5 % and the runs' spread: 6 within noise" in capsys.readouterr().out
    (tmp_path / "new").mkdir()  # a report's folder does as well
    saved(report(row([3.0])), tmp_path / "new" / "report.json")
    assert main_compare(old, tmp_path / "new", limits) == 1
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    job = "64x64, batch 2, 4 steps, 1 threads"
    assert table[2] == ["regression", "onnx", job, "seconds per picture (s)", "1", "1.5", "+50.0 %"]
    assert main_compare(old, tmp_path / "new", read_thresholds("5%", ["peak memory"])) == 0
    assert main_compare(old, tmp_path / "new", read_thresholds("60%")) == 0


def test_what_cannot_be_compared_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = read_thresholds(None)
    good = saved(report(row()), tmp_path / "good.json")
    other = saved(report(row()), tmp_path / "other.json", schema=7)
    assert main_compare(good, other, limits) == 2
    said = capsys.readouterr().err
    assert f"{good} has schema 1, {other} has schema 7; this Ingot reads schema 1" in said
    for content in (
        b"",
        b"[1]",
        b'{"schema": 1}',
        msgspec.json.encode(msgspec.structs.replace(report(row()), jobs=[])),
    ):
        (tmp_path / "broken.json").write_bytes(content)
        assert main_compare(tmp_path / "broken.json", good, limits) == 2
        assert "broken.json is no report of `ingot bench`" in capsys.readouterr().err
    assert main_compare(good, tmp_path / "nowhere.json", limits) == 2
    assert "nowhere.json cannot be read: No such file" in capsys.readouterr().err
    longer = saved(report(row(), jobs=[msgspec.structs.replace(JOB, steps=8)]), tmp_path / "longer.json")
    assert main_compare(good, longer, limits) == 2
    assert "have no job in common" in capsys.readouterr().err


def test_thresholds_as_they_are_typed() -> None:
    assert read_thresholds("10%") == dict.fromkeys(METRICS, 0.1)
    assert read_thresholds(None, ["psnr=0.2", "cold start"]) == {"PSNR": 0.2, "cold start": 0.05}
    with pytest.raises(InputError, match="there is no 'speed'; available: seconds per picture, "):
        read_thresholds(None, ["speed"])
    for wrong in ("five", "-5%", "nan", "inf", ""):
        with pytest.raises(InputError, match=r"a share is needed, such as 5% or 0\.05"):
            read_thresholds(wrong)


def test_first_calls_are_not_held_against_later_ones() -> None:
    slow, fast = (
        row([9.0, 9.1, 9.2], quality=Quality(reference="x", psnr_db=10.0)),
        row(quality=Quality(reference="x", psnr_db=40.0)),
    )
    found = compare(report(fast, calls=3), report(slow, calls=0))
    assert "0 calls after the first, was 3: pictures of other prompts and seeds" in found.warnings
    assert found.notes == ["not compared: time, energy and quality, of first calls alone in one of the two"]
    compared = {change.metric for change in found.changes}
    assert {"cold start", "artifact size"} <= compared
    assert not {"seconds per picture", "seconds per step", "PSNR"} & compared
    both = compare(report(fast, calls=3), report(slow, calls=2))
    assert both.warnings == ["2 calls after the first, was 3: pictures of other prompts and seeds"]
    assert {"seconds per picture", "PSNR"} <= {change.metric for change in both.regressions}
