"""The commands that make the checked-in reports: every step on a tiny checkpoint, what is refused, and what is kept."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from ingot import cli
from ingot.benchmarks import random_checkpoint, report
from ingot.benchmarks.harness import grid
from ingot.benchmarks.harness.prompts import OF_SHAPES
from ingot.benchmarks.harness.record import Report
from ingot.benchmarks.random_checkpoint import SD15, TINY
from ingot.runtimes.errors import InputError

LADDER = ["int8", "+ DeepCache 5", "+ guidance to 0.4", "+ tiny VAE"]
Ran = list[report.Command]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[report.Command], None], Ran]:
    """Runs commands in this process, which has imported torch already, and keeps them."""
    ran: Ran = []

    def run(command: report.Command) -> None:
        ran.append(command)
        module, *arguments = command
        if module == report.CLI:
            assert cli.main(arguments) == 0, command
        else:
            monkeypatch.setattr(sys, "argv", ["random_checkpoint", *arguments])
            random_checkpoint.main()

    return run, ran


def test_the_full_size_report_on_a_tiny_checkpoint(
    tmp_path: Path, here: tuple[Callable[[report.Command], None], Ran]
) -> None:
    run, ran = here
    asked = ["full-size", str(tmp_path / "work"), "-o", str(tmp_path / "report"), "--config", TINY, "--baselines", ""]
    report.main(asked, run)
    found = msgspec.json.decode((tmp_path / "report" / "report.json").read_bytes(), type=Report)
    assert [row.contestant for row in found.rows] == [
        "onnx float32", "openvino", *LADDER,
    ]  # fmt: skip
    assert [row.error for row in found.rows] == [None] * 6
    assert {len(row.runs) for row in found.rows} == {1}
    job = found.jobs[0]
    assert (job.height, job.width, job.guidance_scale, job.scheduler) == (64, 64, 7.5, "DPMSolverMultistepScheduler")
    assert (found.rounds, found.calls, found.notes) == (1, 0, [])
    # what each one adds happened: the shallow UNet ran, and the last decodes with another VAE
    spans = [{what for what, _, _ in row.runs[0].timeline} for row in found.rows]
    assert ["unet_shallow" in one for one in spans] == [False] * 3 + [True] * 3
    far = {row.contestant: row.quality.psnr_db for row in found.rows if row.quality}
    assert far[LADDER[3]] != far[LADDER[2]]
    assert not (tmp_path / "report" / "work").exists()
    # everything is there: again, it only measures
    count = len(ran)
    subject = report.full_size(tmp_path / "work", TINY)
    report.make(subject, run)
    assert len(ran) == count
    assert all(step.done() for step in subject.steps)
    shutil.rmtree(tmp_path / "work" / TINY / "deep-cache")
    assert [step.precision for step in subject.steps if not step.done()] == [None, "int8-static"]


@pytest.mark.parametrize("subject", ["shapes", "full-size"])
def test_every_command_is_one_that_ingot_takes(tmp_path: Path, subject: str) -> None:
    made = report.shapes(tmp_path) if subject == "shapes" else report.full_size(tmp_path)
    commands = [*(step.command for step in made.steps), report.bench(made, tmp_path / "report", made.baselines)]
    for module, *arguments in commands:
        if module == report.CLI:
            cli.parser().parse_args(arguments)
    measured = cli.parser().parse_args(commands[-1][1:])
    assert measured.baseline[0] == "diffusers"
    assert set(map(Path, measured.bundles)) == set(made.bundles)
    recipes = [grid.recipe(one)[1] for one in measured.contestant]
    assert {Path(str(said["bundle"])) for said in recipes if "kind" not in said} == set(made.bundles)


def test_a_peers_recipe_goes_where_the_peer_goes(tmp_path: Path) -> None:
    made = report.full_size(tmp_path)
    for peers, told in (("diffusers",), False), (("diffusers", "openvino-genai"), True):
        assert ("genai int8: kind=openvino-genai, weights=int8" in report.bench(made, tmp_path, peers)) is told


def test_the_shapes_report_draws_nothing_that_int8_was_calibrated_on(tmp_path: Path) -> None:
    assert not set(report.shapes(tmp_path).prompts) & set(OF_SHAPES)


def test_each_rung_adds_one_thing() -> None:
    said = [grid.recipe(one) for one in report.ladder("int8", Path("plain"), Path("cached, too"), Path("a, b"))]
    assert [name for name, _ in said] == LADDER
    assert [values["bundle"] for _, values in said] == ["plain", "cached, too", "cached, too", "cached, too"]
    added = [dict(values.items() - before.items()) for (_, before), (_, values) in itertools.pairwise(said)]
    assert added == [
        {"bundle": "cached, too", "cache_interval": 5}, {"guidance_end": 0.4}, {"vae": "a, b"},
    ]  # fmt: skip


def test_nothing_is_made_where_a_peer_or_the_disk_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: report.Command) -> None:
        raise AssertionError(command)

    asked = ["full-size", str(tmp_path / "work"), "-o", str(tmp_path / "report")]
    with pytest.raises(SystemExit, match=r"environment of the baseline diffusers is not in .*none"):
        report.main([*asked, "--environments", str(tmp_path / "none")], refuse)
    with pytest.raises(SystemExit, match="unknown baseline 'torch'"):
        report.main([*asked, "--baselines", "torch"], refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12e9))
    with pytest.raises(SystemExit, match=r"needs 40 GB, of which it has 0\.0, and its disk has 12\.0 GB free"):
        report.main([*asked, "--baselines", ""], refuse)
    assert not any(tmp_path.iterdir())


def test_a_step_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(report.ExportError, match=r"ended with 3: ingot\.cli export 'a b'; what is made is used again"):
        report.apart(["ingot.cli", "export", "a b"])
    assert "python -m ingot.cli export 'a b'" in capfd.readouterr().err


@pytest.mark.parametrize("config", [TINY, SD15])
def test_configs_are_of_one_kind(config: str) -> None:
    """Eight pixels to a latent in each: a tiny VAE of the one fits the other."""
    found = random_checkpoint.CONFIGS[config]
    assert len(found.vae["block_out_channels"]) == 4
    assert found.unet["cross_attention_dim"] == found.text["hidden_size"]


def test_a_checkpoint_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        random_checkpoint.save(tmp_path / "there", TINY)
    assert random_checkpoint.saved(tmp_path / "there") == tmp_path / "there"
