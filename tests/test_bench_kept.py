"""What `ingot bench` keeps where something goes wrong: measurements, the user's files, other contestants."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import ingot
from ingot.benchmarks import scaling
from ingot.benchmarks.harness import environments, page, process, quality, run, vendor
from ingot.benchmarks.harness.process import Answer
from ingot.benchmarks.harness.reading import read_report
from ingot.benchmarks.harness.record import Contestant, Job
from ingot.runtimes.errors import EngineError

from .test_bench_quality import A_RUN, keep, noise, report

Bench = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """No processes: each measurement gives two pictures at once, and is listed with its round and steps."""
    seen: list[tuple[str, int, int]] = []

    def measure(one: Contestant, job: Job, place: Path, *, round: int, **_: Any) -> Answer:
        seen.append((one.name, round, job.steps))
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / "pictures.npy", noise(round, (2, job.height, job.width, 3)))
        return Answer(run=msgspec.structs.replace(A_RUN, round=round, call_s=[1.0]))

    monkeypatch.setattr(run, "measure", measure)
    return seen


@pytest.fixture
def bench(asked: list[tuple[str, int, int]], tiny_bundle: Path, tmp_path: Path) -> Bench:  # noqa: ARG001  # no processes
    return lambda **options: ingot.bench(
        tiny_bundle, **{"output": tmp_path / "report", "rounds": 1, "progress": False, **options}
    )


@pytest.mark.parametrize(
    ("module", "name", "note"),
    [
        (quality, "judge", "no quality: RuntimeError: broken"),
        (page, "page", "no page: RuntimeError: broken"),
        (run.files, "keep_pictures", "onnx float32: no pictures: RuntimeError: broken"),
    ],
)
def test_a_finished_run_is_written_whatever_fails(
    module: Any, name: str, note: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(module, name, broken)
    made = bench()
    assert note in made.notes
    assert note in capsys.readouterr().err
    assert read_report(tmp_path / "report") == made
    assert f"- {note}" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "report.csv").exists()
    assert (tmp_path / "report" / "report.html").exists() == (module is not page)


def test_small_pictures_and_broken_rows_cost_no_other_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in range(2):
        keep(tmp_path, row, noise(row, (1, 8, 64, 3)))
    found = judge_one(tmp_path)
    assert found.quality.ssim is None
    assert found.quality.psnr_db > 0
    assert found.notes == ["no SSIM: its windows of 11 pixels are larger than the pictures"]

    def broken(*_: Any) -> None:
        raise ArithmeticError("broken")

    monkeypatch.setattr(quality, "_quality", broken)
    assert judge_one(tmp_path).notes == ["no quality: ArithmeticError: broken"]


def judge_one(folder: Path) -> Any:
    return quality.judge(report("first", "second"), folder).rows[1]


def test_pictures_of_a_row_without_runs_are_not_judged(tmp_path: Path) -> None:
    """They are the warm-up's, of two steps."""
    for row in range(2):
        keep(tmp_path, row, noise())
    given = report("first", "second")
    first, second = given.rows
    without = quality.judge(
        msgspec.structs.replace(given, rows=[first, msgspec.structs.replace(second, runs=[])]), tmp_path
    )
    assert [row.quality is None for row in without.rows] == [False, True]
    alone = quality.judge(
        msgspec.structs.replace(given, rows=[msgspec.structs.replace(first, runs=[]), second]), tmp_path
    )
    assert alone.rows[0].quality is None
    assert alone.rows[1].quality is not None
    assert alone.rows[1].quality.reference == ""  # there is nothing to hold it against


def test_overwriting_leaves_what_is_not_the_reports(bench: Bench, tmp_path: Path) -> None:
    bench()
    place = tmp_path / "report"
    for name in ("notes.txt", "work/old.npy", "pictures/old.png", ".report.html.part"):
        (place / name).write_text("x")
    bench(overwrite=True)
    assert (place / "notes.txt").exists()
    assert not [name for name in ("work/old.npy", "pictures/old.png", ".report.html.part") if (place / name).exists()]


def test_a_run_that_was_stopped_at_once_can_be_overwritten(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "_prepared", stopped)
        with pytest.raises(KeyboardInterrupt):
            bench()
    assert read_report(tmp_path / "report").rows[0].runs == []
    assert len(bench(overwrite=True).rows[0].runs) == 1


def test_pictures_have_names_of_their_own_that_are_short(bench: Bench) -> None:
    names = ["a b", "a-b", "x" * 300]
    made = bench(contestant=[f"{name}:" for name in names])
    pictures = [name for row in made.rows for name in row.pictures]
    assert len(set(pictures)) == 2 * len(names)
    assert max(map(len, pictures)) < 60


def test_a_warm_up_is_whole_where_a_call_is_of_its_steps(bench: Bench, asked: list[tuple[str, int, int]]) -> None:
    bench(contestant=["a:", "b: cache_center=3"], steps=[9])
    assert asked == [("a", 0, 2), ("b", 0, 9), ("a", 1, 9), ("b", 1, 9)]


def test_a_model_that_cannot_be_prepared_costs_its_own_rows_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = run._prepared

    def prepared(one: Contestant, *others: Any) -> Any:
        if one.name == "bad":
            raise KeyError("unet")
        return honest(one, *others)

    monkeypatch.setattr(run, "_prepared", prepared)
    bad, good = bench(contestant=["bad:", "good:"]).rows
    assert bad.error == "KeyError: 'unet'"
    assert len(good.runs) == 1


def test_a_baseline_in_our_own_python_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "none")
    made = bench(baseline=["diffusers"])
    assert made.rows[0].notes[0] == "in Ingot's own environment: one of its pinned versions is not made"


def test_a_process_that_dies_after_its_calls_keeps_its_run(tmp_path: Path) -> None:
    code = """
        import os
        import numpy as np
        PACKAGES = ()
        def load_libraries(): pass
        class Opened:
            notes, latents, files = ["own"], None, []
            def __call__(self, prompts, seeds, on_step):
                on_step()
                return np.zeros((1, 8, 8, 3), np.uint8)
            def preview(self): os._exit(9)
        def open_model(task, clock): return Opened()
        """
    (tmp_path / "dies.py").write_text(textwrap.dedent(code))
    one = Contestant(name="dies", kind=str(tmp_path / "dies.py"), model="m")
    job = Job(height=8, width=8, batch=1, steps=1, threads=1, guidance_scale=1, scheduler="S", seed=0, prompts=("a",))
    answer = process.measure(one, job, tmp_path / "work", round=1, calls=1, noise=tmp_path / "n.npy", timeout=600)
    assert answer.error is None
    assert answer.run is not None
    assert len(answer.run.call_s) == 1
    why = "its process ended badly after its calls: it said nothing (during the first preview; exit code 9)"
    assert answer.notes == ["own", why]


def test_a_system_that_cannot_end_processes_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    with pytest.raises(EngineError, match="ingot bench measures on Linux and macOS"):
        ingot.bench(tiny_bundle)


def test_an_axis_is_measured_once_and_its_page_shows_what_was_measured(
    asked: list[tuple[str, int, int]], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place = tmp_path / "scaling"

    def scale(*options: str) -> list[tuple[str, int, int]]:
        asked.clear()
        monkeypatch.setattr(
            sys, "argv", ["scaling", str(tiny_bundle), "-o", str(place), "--threads", "1", "2", *options]
        )
        scaling.main()
        return list(asked)

    assert [one for one in scale("--axes", "threads") if one[1]] == [("whole", 1, 4)] * 2
    assert [one[0] for one in scale("--axes", "threads", "sizes", "--sizes", "64") if one[1]] == [
        "whole",
        "VAE in tiles",
    ]
    assert "threads: not measured" in capsys.readouterr().err
    page = (place / "README.md").read_text()
    assert page.index("## Resolution") < page.index("## Threads")
    assert "`python -m ingot.benchmarks.scaling " in page
    assert "| 2 | whole | 1 |" in page
    assert "(threads-seconds.svg)" in page
    assert (place / "threads-seconds.svg").read_text().count("<circle") == 2
    assert "VAE in tiles" in (place / "sizes-seconds.svg").read_text()
    assert scale("--axes", "threads", "--overwrite")


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [(0.93, [0, 0.2, 0.4, 0.6, 0.8, 1]), (6846, [0, 2000, 4000, 6000, 8000]), (5, [0, 1, 2, 3, 4, 5])],
)
def test_ticks_are_round_numbers(largest: float, ticks: list[float]) -> None:
    assert scaling.round_numbers(largest) == ticks


def test_axes_and_packages_that_there_are_none_of_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", "bundle", "-o", str(tmp_path), "--axes", "sise"])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "invalid choice: 'sise'" in capsys.readouterr().err
    monkeypatch.setattr(vendor.shutil, "which", lambda _: "/bin/false")
    with pytest.raises(SystemExit, match=r"npm pack p@1 ended with 1: it said nothing"):
        vendor.fetch({"name": "p", "version": "1", "member": "m"}, tmp_path)
