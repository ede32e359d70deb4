"""The GPU ladder on the CPU, with a tiny Stable Diffusion XL: every rung has its row, with figures or with the reason."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch._dynamo

from ingot.benchmarks import full_size_xl, gpu_ladder, gpu_rungs
from ingot.benchmarks.contestants import measure
from ingot.benchmarks.contestants.measure import Clock, Task
from ingot.benchmarks.gpu_rungs import Rung
from ingot.benchmarks.harness import process, run
from ingot.benchmarks.harness.process import Answer
from ingot.benchmarks.harness.record import Contestant, Job, Machine, Noise, Report, Row, Run
from ingot.cli import main as ingot_main
from ingot.runtimes.errors import EngineError

pytestmark = pytest.mark.usefixtures("torch_settings")

SIDE, STEPS = 32, 2
TORCH = [rung.name for rung in gpu_rungs.rungs("cpu", "eager") if rung.kind != "ingot"]
OWN = ["Ingot, ONNX Runtime, float16", "Ingot, torch, bfloat16", "Ingot, torch, int8-dynamic"]
ABSENT = ["Ingot, ONNX Runtime's TensorRT, float16", "Ingot, TensorRT, bfloat16"]  # without a GPU


def measured_here(
    one: Contestant, job: Job, folder: Path, *, round: int, calls: int, noise: Path, timeout: float, describe: bool = False
) -> Answer:  # fmt: skip
    """Contestants of diffusers in this process, which has imported it: twelve processes would do that for two minutes."""
    if one.kind == "ingot":
        return process.measure(
            one, job, folder, round=round, calls=calls, noise=noise, timeout=timeout, describe=describe
        )
    if not round:  # the warm-up's figures are not counted
        nothing = dict.fromkeys(("import_s", "open_s", "first_step_s", "first_image_s", "cold_start_s"), 0.0)
        return Answer(run=Run(round=0, **nothing))
    torch._dynamo.reset()
    folder.mkdir(parents=True)
    task = Task(
        **msgspec.to_builtins(job), kind=one.kind, model=one.model, options=dict(one.options), call={}, noise=str(noise), calls=calls,
        spawned=time.monotonic(),
    )  # fmt: skip
    clock = Clock()
    try:
        opened = measure.contestant(one.kind).open_model(task, clock)
        result = measure.measured(task, clock, opened, folder, measure.Stage(folder))
    except ValueError as error:
        return Answer(error=str(error))
    return Answer(
        run=msgspec.convert({"import_s": 0.0, "open_s": 0.0, **result, "round": round}, Run), notes=opened.notes
    )


def made_here(module: Sequence[str], log: Path) -> None:
    """What the ladder makes, in this process."""
    name, *words = module
    if name == "ingot.benchmarks.full_size_xl":
        full_size_xl.save(words[0], words[-1])
    elif ingot_main(words):
        raise EngineError(f"{words[0]} failed")
    log.write_text("")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole ladder."""
    folder = tmp_path_factory.mktemp("climbed")
    words = f"--work {folder / 'work'} --device cpu --config tiny --size {SIDE} --steps {STEPS} --rounds 1 --calls 1 --threads 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_ladder, "apart", made_here)
        patch.setattr(run, "measure", measured_here)
        assert gpu_ladder.main(["-o", str(folder / "report"), "--backend", "eager", *words.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def report(climbed: Path) -> Report:
    return msgspec.json.decode((climbed / "report" / "report.json").read_bytes(), type=Report)


def test_every_rung_that_a_processor_has_is_measured_and_the_others_say_why(report: Report) -> None:
    rows = {row.contestant: row for row in report.rows}
    assert sorted(rows) == sorted([*TORCH, *OWN, *ABSENT])
    assert {name: rows[name].error for name in [*TORCH, *OWN]} == dict.fromkeys([*TORCH, *OWN])
    assert all(len(rows[name].runs) == 1 for name in [*TORCH, *OWN])
    assert "no device tensorrt" in str(rows[ABSENT[0]].error)
    assert rows[ABSENT[1]].error
    assert not any(rows[name].runs for name in ABSENT)
    assert report.reference == TORCH[0] == "diffusers float32"


def test_each_rung_has_what_those_before_it_have(report: Report) -> None:
    notes = {row.contestant: "; ".join(row.notes) for row in report.rows}
    math, lower, fused = "without SDPA", "weights and sums in bfloat16", "from one product"
    said = {name: [part in notes[name] for part in (math, lower, "compiled", fused, "int8")] for name in TORCH}
    assert said == {
        "diffusers float32": [True, False, False, False, False],
        "diffusers + bfloat16": [True, True, False, False, False],
        "diffusers + SDPA": [False, True, False, False, False],
        "diffusers + compile": [False, True, True, False, False],
        "diffusers + fused QKV": [False, True, True, True, False],
        "diffusers + int8": [False, True, True, True, True],
    }


def test_all_rungs_make_the_same_picture_within_their_precision(report: Report) -> None:
    for row in report.rows:
        if row.runs and row.contestant != report.reference:
            assert row.quality is not None
            assert row.quality.psnr_db is not None, row.contestant  # none of them is equal
            assert row.quality.psnr_db > 25, row.contestant  # the limit of bfloat16 at export


def test_the_table_has_a_line_for_every_rung(climbed: Path) -> None:
    lines = (climbed / "report" / "ladder.md").read_text().splitlines()
    assert lines[0].startswith("| rung | s a picture | times the first | times the rung before |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:13]] == [*TORCH, OWN[0], *ABSENT, *OWN[1:]]
    assert all(line.count("|") == lines[0].count("|") for line in lines[1:13])
    assert sum("not run: " in line for line in lines[2:13]) == len(ABSENT)


def test_what_is_there_is_not_made_again(climbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(module: Sequence[str], _: Path) -> None:
        raise AssertionError(module)

    monkeypatch.setattr(gpu_ladder, "apart", never)
    made = gpu_ladder.Made(climbed / "work" / "tiny", "tiny", lambda _: None)
    made.checkpoint()
    found = {rung.name: made.reason(rung, "cpu") for rung in gpu_rungs.rungs("cpu", "eager")}
    assert [name for name, why in found.items() if why is not None] == ABSENT


def test_a_bundle_that_cannot_be_made_is_tried_once_and_costs_its_rungs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(module: Sequence[str], _: Path) -> None:
        tried.append(module[1])
        raise EngineError("no room")

    monkeypatch.setattr(gpu_ladder, "apart", fails)
    made = gpu_ladder.Made(tmp_path / "tiny", "tiny", lambda _: None)
    found = {rung.name: made.reason(rung, "cpu") for rung in gpu_rungs.rungs("cpu", "eager")}
    assert {name: found[name] for name in OWN} == dict.fromkeys(OWN, "no room")
    assert {name: found[name] for name in TORCH} == dict.fromkeys(TORCH)
    assert tried == ["export", "export"]  # onnx, torch: the rung with int8 needs the bundle of the one before


def test_a_process_that_fails_is_told_by_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ingot\.cli generate ended with 1: .*nowhere is no bundle") as caught:
        gpu_ladder.apart(
            ["ingot.cli", "generate", str(tmp_path / "nowhere"), "a", "-o", "x.png"], tmp_path / "said.log"
        )
    assert str(tmp_path / "said.log") in str(caught.value)


def test_without_the_device_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-o", str(tmp_path / "report"), "--work", str(tmp_path / "work"), "--device", "cuda:97"]
    assert gpu_ladder.main(words) == 1
    assert "nothing was measured: the engine torch has no device cuda:97 here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "36"], "--size 36 is not a multiple of 8, as this model needs"),
        (["--rounds", "0"], "--rounds 0: at least 1 is needed"),
        (["-o", "."], ". exists; --overwrite replaces a report in it, or name another folder with -o"),
        (["-o", "no/such/report"], "does not exist; -o must name a folder in one that does"),
    ],
)
def test_options_that_cannot_be_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu_ladder.main(["-o", "report", "--device", "cpu", "--config", "tiny", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ratios_are_round_by_round_against_the_first_and_against_the_rung_before() -> None:
    """By hand: 8 and 16 s, then 4 and 4 s, then one that did not run, then 2 and 1 s, then Ingot's 1 and 2 s."""
    ladder = [Rung(name, "diffusers", published=7.0) for name in "abcd"] + [Rung("e", "ingot")]
    seconds = {"a": (8.0, 16.0), "b": (4.0, 4.0), "c": (), "d": (2.0, 1.0), "e": (1.0, 2.0)}
    rows = [
        Row(
            contestant=name,
            job=0,
            error=None if all_s else "no | device",
            runs=[
                Run(round=i, import_s=0, open_s=0, first_step_s=0, first_image_s=0, cold_start_s=1.0, call_s=[each])
                for i, each in enumerate(all_s, 1)
            ],
        )
        for name, all_s in seconds.items()
    ]
    job = Job(height=8, width=8, batch=1, steps=1, threads=1, guidance_scale=1.0, scheduler="S", seed=0, prompts=("a",))
    found = Report(
        ingot="0", command="", began="", seconds=0, title="T", reference="a", rounds=2, jobs=[job], rows=rows,
        machine=Machine(processor="P", cores=1, memory_gib=1, system="", python="", flags=[]),
        noise=Noise(probe_ms=[], spread=0, busy=0, noisy=False),
        contestants=[Contestant(name=rung.name, kind=rung.kind, model="") for rung in ladder],
    )  # fmt: skip
    cells = [line.strip("| ").split(" | ") for line in gpu_rungs.table(found, ladder, published=True)[2:7]]
    assert cells[0][:4] == ["a", "12.000 (8.000 to 16.000)", "1", ""]
    assert cells[1][:4] == ["b", "4.000 (4.000 to 4.000)", "3.00 (2.00 to 4.00)", "3.00 (2.00 to 4.00)"]
    assert cells[2][1] == "not run: no / device"
    assert cells[3][:4] == ["d", "1.500 (1.000 to 2.000)", "10.00 (4.00 to 16.00)", "3.00 (2.00 to 4.00)"]
    assert cells[4][:4] == ["e", "1.500 (1.000 to 2.000)", "8.00 (8.00 to 8.00)", "1.25 (0.50 to 2.00)"]
    assert [row[-1] for row in cells[:4]] == ["7.00"] * 4
