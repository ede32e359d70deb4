"""`ingot bench` measures what it says: real processes of a tiny model, and contestants that are slow, damaged, or die."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import ingot
from ingot.benchmarks.harness import process, run
from ingot.benchmarks.harness.process import Answer
from ingot.benchmarks.harness.record import Contestant, Job, Report, Row, Run
from ingot.benchmarks.harness.summary import Line, summarize
from ingot.cli import main

SLEEP = 0.4  # seconds a step: far more than a step of the tiny model takes
STEPS, ROUNDS, CALLS = 3, 2, 1
CONTESTANTS = {
    "slow": f"""
        import time
        from contestants.ingot import PACKAGES, OpenedBundle, load_libraries
        def open_model(task, clock):
            opened = OpenedBundle(task, clock)
            unet = opened.pipe.engines["unet"]
            honest = unet.run
            unet.run = lambda inputs: (time.sleep({SLEEP}), honest(inputs))[1]
            return opened
        """,
    "damaged": """
        import numpy as np
        from contestants.ingot import PACKAGES, OpenedBundle, load_libraries
        class Damaged(OpenedBundle):
            def __call__(self, *asked):
                self.notes = ["damaged on purpose"]
                return super().__call__(*asked) ^ np.uint8(64)
        open_model = Damaged
        """,
    "dies": """
        import os, signal
        from contestants.ingot import PACKAGES, OpenedBundle, load_libraries
        class Dies(OpenedBundle):
            calls = 0
            def __call__(self, *asked):
                self.calls += 1
                if self.calls == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(*asked)
        open_model = Dies
        """,
    "refuses": """
        PACKAGES = ()
        def load_libraries(): pass
        def open_model(task, clock): raise ValueError("it does not like this model")
        """,
}


def written(folder: Path, name: str, code: str) -> str:
    (folder / f"{name}.py").write_text(textwrap.dedent(code))
    return f"{name}={folder / name}.py"


@pytest.fixture(scope="module")
def report_folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of all of them, by the command line."""
    folder = tmp_path_factory.mktemp("bench")
    own = [word for name, code in CONTESTANTS.items() for word in ("--contestant", written(folder, name, code))]
    numbers = [
        "--steps",
        str(STEPS),
        "--rounds",
        str(ROUNDS),
        "--calls",
        str(CALLS),
        "--threads",
        "1",
        "--guidance-scale",
        "3",
    ]
    where = ["--engines", "onnx", "--quiet", "-o", str(folder / "report")]
    assert main(["bench", str(tiny_bundle), *own, *numbers, *where]) == 0
    return folder / "report"


@pytest.fixture(scope="module")
def report(report_folder: Path) -> Report:
    return msgspec.json.decode((report_folder / "report.json").read_bytes(), type=Report)


@pytest.fixture(scope="module")
def lines(report: Report) -> dict[str, Line]:
    return {line.contestant: line for line in summarize(report)}


def of(report: Report, name: str) -> Row:
    return next(row for row in report.rows if row.contestant == name)


def test_a_slowed_engine_shows_as_slower_by_what_it_was_slowed(report: Report, lines: dict[str, Line]) -> None:
    plain, slow = lines["onnx float32"], lines["slow"]
    assert plain.picture_s is not None
    assert slow.picture_s is not None
    assert slow.picture_s.least - plain.picture_s.most > 0.5 * STEPS * SLEEP
    assert slow.speedup is not None
    assert slow.speedup.most < 1
    # it sleeps before the engine's clock: the host's time, not the denoiser's
    for each in of(report, "slow").runs:
        assert min(each.host_ms_per_step) >= 1000 * SLEEP
        assert each.call_s[0] - each.component_s["unet"][0] >= STEPS * SLEEP


def test_a_damaged_one_shows_as_worse_and_an_equal_one_as_equal(lines: dict[str, Line]) -> None:
    slow, damaged = lines["slow"].quality, lines["damaged"].quality
    assert slow is not None
    assert slow.equal
    assert damaged is not None
    assert not damaged.equal
    # one bit of weight 64 is wrong in every byte
    assert damaged.psnr_db == pytest.approx(20 * np.log10(255 / 64), abs=1e-6)
    assert lines["damaged"].notes[:1] == ["damaged on purpose"]


def test_one_that_dies_has_a_row_that_says_when_and_the_rest_goes_on(report: Report) -> None:
    assert of(report, "dies").error == "killed by SIGKILL, as for lack of memory, during call 2 of 2"
    assert of(report, "refuses").error == "it does not like this model (during the opening of the model; exit code 1)"
    assert [len(of(report, name).runs) for name in ("onnx float32", "slow", "damaged")] == [ROUNDS] * 3
    assert not of(report, "dies").runs


def test_the_pictures_and_latents_are_those_of_the_library(
    report: Report, report_folder: Path, tiny_bundle: Path
) -> None:
    job = report.jobs[0]
    pipe = ingot.load(tiny_bundle, engine="onnx", threads=1)
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "progress": False}
    work = report_folder / "work" / "row-0"
    pictures, latents = np.load(work / "pictures.npy"), np.load(work / "latents.npy")
    assert len(pictures) == len(latents) == CALLS + 1
    for i in range(CALLS + 1):
        expected = pipe(job.prompts[i], seed=job.seed + i, **call).images[0]
        np.testing.assert_array_equal(pictures[i], np.asarray(expected))
        np.testing.assert_array_equal(
            latents[i], pipe(job.prompts[i], seed=job.seed + i, output_type="latent", **call).images[0]
        )
        np.testing.assert_array_equal(
            pictures[i], np.asarray(Image.open(report_folder / of(report, "onnx float32").pictures[i]))
        )


def test_a_cold_start_is_the_sum_of_its_parts(report: Report) -> None:
    for each in of(report, "onnx float32").runs:
        parts = each.import_s + each.open_s + each.first_image_s
        assert parts <= each.cold_start_s
        assert each.first_step_s < each.first_image_s
        assert len(each.call_s) == len(each.step_s) == len(each.host_ms_per_step) == CALLS
        assert set(each.component_s) >= {"text_encoder", "unet", "vae_decoder", "scheduler"}
        assert sum(seconds[0] for seconds in each.component_s.values()) < each.call_s[0]
        roles = [role for role, _, _ in each.timeline]
        assert roles.count("unet") == roles.count("scheduler") == STEPS
        assert all(0 <= start <= end <= each.call_s[-1] for _, start, end in each.timeline)
        assert each.first_preview_s is not None
        assert 10 < each.peak_mib < 2000


def test_the_report_says_what_ran_where(report: Report, tiny_bundle: Path) -> None:
    row = of(report, "onnx float32")
    assert report.reference == "onnx float32"
    assert {"ingot", "numpy", "onnxruntime"} <= set(row.versions)
    bundle = ingot.Bundle.open(tiny_bundle, hashes=False)
    opened = {"text_encoder", "unet", "vae_decoder"}
    names = {file for role in opened for file in bundle.graph(role, "onnx", "float32").files}
    assert row.artifact_mb == pytest.approx(sum(bundle.manifest.files[name].size for name in names) / 1e6, rel=1e-9)
    assert row.installed_mb["total"] > row.installed_mb["onnxruntime"] > 1
    assert len(report.noise.probe_ms) >= ROUNDS
    assert report.rounds == ROUNDS


def test_the_folder_holds_every_form_and_nothing_half_written(report_folder: Path) -> None:
    names = {file.name for file in report_folder.iterdir()}
    assert {"report.json", "report.md", "report.csv", "pictures", "work"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert "- **dies** failed: killed by SIGKILL" in (report_folder / "report.md").read_text()
    assert sorted(file.name for file in (report_folder / "work").iterdir())[0] == "noise-0.npy"


# without processes ---------------------------------------------------------------------------------------------------


def test_contestants_run_in_turn_after_a_shorter_warm_up(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str, int, int]] = []

    def measure(one: Contestant, job: Job, _: Path, *, round: int, calls: int, **__: Any) -> Answer:
        asked.append((round, one.name, job.steps, calls))
        return Answer(error="broken") if (round, one.name) == (1, "b") else Answer(run=a_run(round))

    monkeypatch.setattr(run, "measure", measure)
    found = ingot.bench(tiny_bundle, contestant=["a:", "b:", "c:"], rounds=2, calls=4, steps=[9], progress=False)
    assert asked == [
        (0, "a", 2, 0), (0, "b", 2, 0), (0, "c", 2, 0), (1, "a", 9, 4), (1, "b", 9, 4), (1, "c", 9, 4), (2, "a", 9, 4), (2, "c", 9, 4),
    ]  # fmt: skip
    assert [len(row.runs) for row in found.rows] == [2, 0, 2]
    assert [row.error for row in found.rows] == [None, "broken", None]


def test_what_was_measured_before_a_stop_is_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(one: Contestant, *_: Any, round: int, **__: Any) -> Answer:
        if (round, one.name) == (1, "second"):
            raise KeyboardInterrupt
        return Answer(run=a_run(round))

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        ingot.bench(tiny_bundle, contestant=["first:", "second:"], output=tmp_path / "report", progress=False)
    kept = msgspec.json.decode((tmp_path / "report" / "report.json").read_bytes(), type=Report)
    assert [[each.round for each in row.runs] for row in kept.rows] == [[1], []]
    note = "stopped in round 1 of 3: what was measured until then stands here"
    assert note in kept.notes
    for file in ("report.md", "report.html"):
        assert note in (tmp_path / "report" / file).read_text()
    again = ingot.bench(tiny_bundle, contestant=["first:"], output=tmp_path / "report", overwrite=True, progress=False)
    assert len(again.rows[0].runs) == 3


def a_run(number: int) -> Run:
    parts = {"import_s": 1.0, "open_s": 1.0, "first_step_s": 1.0, "first_image_s": 1.0, "cold_start_s": 3.0}
    return Run(round=number, call_s=[1.0], **parts)


def test_a_process_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    code = """
        import subprocess, sys, time
        from pathlib import Path
        PACKAGES = ()
        def load_libraries():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(__file__).with_name("child").write_text(str(child.pid))
            time.sleep(600)
        """
    one = Contestant(name="hangs", kind=written(tmp_path, "hangs", code).partition("=")[2], model="m")
    job = Job(height=8, width=8, batch=1, steps=1, threads=1, guidance_scale=1, scheduler="S", seed=0, prompts=("a",))
    noise = tmp_path / "noise.npy"
    answer = process.measure(one, job, tmp_path / "work", round=1, calls=1, noise=noise, timeout=20)
    assert answer.error == "stopped after 20 s, during its imports; --timeout allows more"
    child = Path("/proc") / (tmp_path / "child").read_text()
    for _ in range(100):  # a busy machine takes a while to end what was killed
        if _gone(child):
            break
        time.sleep(0.1)
    assert _gone(child)


def _gone(process_folder: Path) -> bool:
    """Whether a process has ended, though nobody may have asked for its exit code yet."""
    try:
        return (process_folder / "stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_a_process_is_offline_and_has_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/own")
    own, foreign = process.environment(3, foreign=False), process.environment(3, foreign=True)
    assert own["OMP_NUM_THREADS"] == own["MKL_NUM_THREADS"] == "3"
    assert own["HF_HUB_OFFLINE"] == "1"
    assert own["PYTHONPATH"] == "/own"
    assert "PYTHONPATH" not in foreign


def test_the_help_lists_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "--baseline" in capsys.readouterr().out


def test_a_task_is_plain_json(tmp_path: Path) -> None:
    """A foreign interpreter reads it with the standard library."""
    code = "PACKAGES = ()\ndef load_libraries(): raise ValueError('enough')\n"
    one = Contestant(
        name="x", kind=written(tmp_path, "x", code).partition("=")[2], model="m", options={"a": [1, {"b": None}]}
    )
    job = Job(height=8, width=16, batch=1, steps=1, threads=1, guidance_scale=1, scheduler="S", seed=4, prompts=("a",))
    answer = process.measure(one, job, tmp_path / "work", round=1, calls=2, noise=tmp_path / "n.npy", timeout=600)
    assert answer.error == "enough (during its imports; exit code 1)"
    told = json.loads((tmp_path / "work" / "task.json").read_text())
    assert (told["width"], told["seed"], told["options"], told["calls"]) == (16, 4, {"a": [1, {"b": None}]}, 2)


def test_a_report_tells_no_paths_of_whose_machine_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    one = Contestant(
        name="a", kind="diffusers", model=str(tmp_path / "out" / "b"), python="/home/somebody/env/bin/python"
    )
    told = run._to_publish(one)
    assert (told.model, told.python, told.kind) == ("out/b", "~/env/bin/python", "diffusers")
    assert run._to_publish(msgspec.structs.replace(one, model="shapes", python="/usr/bin/python")).model == "shapes"
