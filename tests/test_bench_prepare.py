"""Environments of the baselines, and checkpoints in their formats: with stand-ins for pip and optimum-cli."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import CLIPTokenizer

from ingot.benchmarks import export_cost
from ingot.benchmarks.harness import environments, prepare
from ingot.benchmarks.harness._layout import mended
from ingot.benchmarks.harness._watched import watched
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.shapes import MODEL_DIR

# Says what it was told in `calls`; memory is taken by a child, for 0.4 s, so that samples of a tenth of a second see it.
TOOL = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[-1])
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
folder.mkdir(parents=True)
(folder / "weights.bin").write_bytes(b"0" * 1000)
if (here / "breaks").exists():
    print("reading\\nconverting")
    sys.exit("RuntimeError: the tool broke")
subprocess.run([sys.executable, "-c", "import time; kept = b'1' * 150_000_000; time.sleep(0.4)"], check=True)
(folder / "model_index.json").write_text('{{"_class_name": "StableDiffusionPipeline"}}')
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment's interpreter, with a stand-in for optimum-cli beside it."""
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "optimum-cli").write_text(TOOL)
    (folder / "optimum-cli").chmod(0o755)
    return folder / "python"


def calls(python: Path) -> list[list[str]]:
    return [json.loads(line) for line in (python.parent / "calls").read_text().splitlines()]


def test_an_export_is_made_once_and_its_cost_is_kept(python: Path, tmp_path: Path) -> None:
    first = prepare.prepared("optimum-onnx", "shapes", tmp_path / "work", python)
    again = prepare.prepared("optimum-onnx", "shapes", tmp_path / "work", python)
    assert first == again
    assert len(calls(python)) == 1
    assert calls(python)[0][:2] == ["export", "onnx"]
    assert calls(python)[0][2:8] == ["--model", str(MODEL_DIR), "--task", "text-to-image", "--dtype", "fp32"]
    assert (first.path / "weights.bin").is_file()
    assert first.path.parent == tmp_path / "work" / "onnx"
    assert 0.4 < first.seconds < 120
    assert 0 < first.processor_s < first.seconds * 2 + 1
    record = json.loads(first.path.with_name(f"{first.path.name}.json").read_text())
    assert record["seconds"] == first.seconds
    assert [file.name for file in first.path.parent.iterdir() if file.name.startswith(".")] == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's memory here")
def test_the_peak_is_of_all_processes(python: Path, tmp_path: Path) -> None:
    made = prepare.prepared("optimum-intel", "shapes", tmp_path, python)
    # the child alone holds 143 MiB of zeros and ones; two interpreters are some 10 MiB each
    assert 143 < made.peak_mib < 300


def test_openvino_is_exported_once_for_both_that_read_it(python: Path, tmp_path: Path) -> None:
    one = prepare.prepared("optimum-intel", "shapes", tmp_path, python)
    assert prepare.prepared("openvino-genai", "shapes", tmp_path, python) == one
    half = prepare.prepared("openvino-genai", "shapes", tmp_path, python, weights="fp16")
    assert half.path != one.path
    assert [call[6:8] for call in calls(python)] == [["--weight-format", "fp32"], ["--weight-format", "fp16"]]


def test_a_changed_checkpoint_is_exported_again(python: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(MODEL_DIR, tmp_path / "checkpoint")
    first = prepare.prepared("optimum-onnx", checkpoint, tmp_path, python)
    with (checkpoint / "scheduler" / "scheduler_config.json").open("a") as file:
        file.write("\n")
    assert prepare.prepared("optimum-onnx", checkpoint, tmp_path, python).path != first.path


def test_an_export_that_breaks_leaves_nothing_and_says_why(python: Path, tmp_path: Path) -> None:
    (python.parent / "breaks").touch()
    with pytest.raises(ExportError, match=r"ended with 1: reading \| converting \| RuntimeError: the tool broke$"):
        prepare.prepared("optimum-onnx", "shapes", tmp_path / "work", python)
    assert list((tmp_path / "work" / "onnx").iterdir()) == []
    (python.parent / "breaks").unlink()
    assert prepare.prepared("optimum-onnx", "shapes", tmp_path / "work", python).path.is_dir()


def test_an_export_without_its_record_is_not_taken_for_whole(python: Path, tmp_path: Path) -> None:
    first = prepare.prepared("optimum-onnx", "shapes", tmp_path, python)
    record = first.path.with_name(f"{first.path.name}.json")
    record.unlink()
    (first.path / "weights.bin").write_bytes(b"half")
    again = prepare.prepared("optimum-onnx", "shapes", tmp_path, python)
    assert (again.path / "weights.bin").stat().st_size == 1000
    assert len(calls(python)) == 2
    for broken in ("{", "[]", '{"seconds": 1}'):  # a disk that was full, another program
        record.write_text(broken)
        assert prepare.prepared("optimum-onnx", "shapes", tmp_path, python).path == first.path
    assert len(calls(python)) == 5


def test_what_older_transformers_would_misread_is_mended(tmp_path: Path) -> None:
    """Taken apart as transformers 5 writes it, Shapes comes back as it was."""
    checkpoint = shutil.copytree(MODEL_DIR, tmp_path / "checkpoint")
    assert mended(checkpoint, tmp_path / "mended") == checkpoint
    published = load_file(MODEL_DIR / "text_encoder" / "model.safetensors")
    bare = {name.removeprefix("text_model."): tensor for name, tensor in published.items()}
    save_file(bare, checkpoint / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    words = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    shutil.rmtree(checkpoint / "tokenizer")
    words.save_pretrained(checkpoint / "tokenizer")
    assert not (checkpoint / "tokenizer" / "vocab.json").exists()
    found = mended(checkpoint, tmp_path / "mended")
    assert found == tmp_path / "mended"
    weights = load_file(found / "text_encoder" / "model.safetensors")
    assert weights.keys() == published.keys()
    assert all(np.array_equal(weights[name], published[name]) for name in published)
    for name in ("vocab.json", "merges.txt"):
        made, wanted = ((folder / "tokenizer" / name).read_text() for folder in (found, MODEL_DIR))
        assert (json.loads(made) == json.loads(wanted)) if name == "vocab.json" else (made.split() == wanted.split())
    assert (found / "unet" / "config.json").resolve() == checkpoint / "unet" / "config.json"


def test_a_mended_checkpoint_is_what_is_exported(python: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(MODEL_DIR, tmp_path / "checkpoint")
    (checkpoint / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": []}}')
    (checkpoint / "tokenizer" / "vocab.json").unlink()
    made = prepare.prepared("optimum-onnx", checkpoint, tmp_path, python)
    assert calls(python)[0][3].endswith(".mended")
    assert {file.suffix for file in made.path.parent.iterdir()} == {"", ".json"}  # gone afterwards


def test_diffusers_reads_the_checkpoint_itself(tmp_path: Path) -> None:
    for kind in ("diffusers", "diffusers-compile"):
        assert prepare.prepared(kind, "shapes", tmp_path) == prepare.Prepared(MODEL_DIR)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_prepared_is_refused(python: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown baseline 'diffuser'; available: diffusers, diffusers-compile, "):
        prepare.prepared("diffuser", "shapes", tmp_path, python)
    with pytest.raises(InputError, match=r"no model_index.json; the baselines read a diffusers checkpoint"):
        prepare.prepared("optimum-onnx", tmp_path / "model.safetensors", tmp_path, python)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InputError, match="is a FluxPipeline; the baselines are asked for StableDiffusionPipeline, "):
        prepare.prepared("diffusers", tmp_path, tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match="does not name a pipeline's class"):
        prepare.prepared("diffusers", tmp_path, tmp_path)
    with pytest.raises(InputError, match="weights 'fp16' for optimum-onnx; there are fp32"):
        prepare.prepared("optimum-onnx", "shapes", tmp_path, python, weights="fp16")
    (python.parent / "optimum-cli").unlink()
    with pytest.raises(InputError, match="no optimum-cli beside it, so it is no environment of optimum-onnx"):
        prepare.prepared("optimum-onnx", "shapes", tmp_path, python)
    assert not (tmp_path / "onnx").exists()


def test_every_pin_is_exact_and_torch_stands_alone() -> None:
    for name in set(environments.ENVIRONMENTS.values()):
        found = environments.pins(name)
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in found), name
        assert ("torch==2.13.0" in found) == (name != "openvino-genai")
        assert len({pin.partition("==")[0].lower() for pin in found}) == len(found)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """In place of running them; `python -m venv` leaves an interpreter."""
    seen: list[list[str]] = []

    def run(_name: str, command: list[str]) -> None:
        seen.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()

    monkeypatch.setattr(environments, "_run", run)
    return seen


def test_an_environment_is_made_once_and_torch_first(commands: list[list[str]], tmp_path: Path) -> None:
    python = environments.make("optimum-onnx", tmp_path)
    assert python == tmp_path / "optimum-onnx" / "bin" / "python"
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]
    assert commands[1][-1] == "torch==2.13.0"
    assert "--no-deps" in commands[2]
    assert environments.make("optimum-onnx", tmp_path) == python == environments.python_of("optimum-onnx", tmp_path)
    assert len(commands) == 3


def test_an_environment_of_other_pins_is_made_again(commands: list[list[str]], tmp_path: Path) -> None:
    environments.make("openvino-genai", tmp_path)
    (tmp_path / "openvino-genai" / environments.STAMP).write_text("0123")
    with pytest.raises(InputError, match=r"openvino-genai in .* is of older pins; to make it: python -m ingot"):
        environments.python_of("openvino-genai", tmp_path)
    environments.make("openvino-genai", tmp_path)
    assert len(commands) == 4  # no torch in it
    assert environments.python_of("openvino-genai", tmp_path).exists()


def test_a_missing_environment_says_how_to_make_it(tmp_path: Path) -> None:
    how = f"is not in {tmp_path}; to make it: python -m ingot.benchmarks.harness.environments diffusers --folder {tmp_path}"
    with pytest.raises(InputError, match=f"the environment of the baseline diffusers-compile {re.escape(how)}"):
        environments.python_of("diffusers-compile", tmp_path)
    (tmp_path / "optimum-intel" / "bin").mkdir(parents=True)
    with pytest.raises(InputError, match="is half-made; to make it"):
        environments.python_of("optimum-intel", tmp_path)
    assert "make bench-env" in environments.how_to_make("diffusers")


def test_an_installation_that_fails_is_told_and_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        EngineError, match=r"environment diffusers could not be made: /bin/false -m venv .* ended with 1"
    ):
        environments.make("diffusers", tmp_path)
    with pytest.raises(InputError, match="to make it"):
        environments.python_of("diffusers", tmp_path)


def test_what_a_watched_command_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"

    def interrupted(self: Any) -> None:  # noqa: ARG001  # as after Ctrl-C
        while not (child.exists() and child.read_text().endswith("\n")):
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        watched(["sh", "-c", f"sleep 600 & echo $! > {child}; wait"])
    status = Path("/proc", child.read_text().strip(), "stat")
    for _ in range(600):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it runs on")


def test_a_watched_command_tells_its_end() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    done = watched([sys.executable, "-c", code], {"PYTHONUNBUFFERED": "1"})
    assert (done.returncode, sorted(done.output.split())) == (3, ["err", "out"])


def test_the_table_of_export_costs() -> None:
    found = {
        ("ingot", "onnx"): [
            (10.0, 4.0, 20.0, 1000.0, 5.0),
            (12.0, None, 20.0, 1100.0, 5.0),
            (11.0, 5.0, 20.0, 900.0, 5.0),
        ],
        ("optimum-cli", "onnx"): [(20.25, None, 21.0, 1500.4, 6.0)],
    }
    lines = export_cost.table(found).splitlines()
    assert lines[2].startswith(
        "| ingot, onnx | 11.0 (10.0 to 12.0) | 4.5 (4.0 to 5.0) | 20.0 (20.0 to 20.0)"
        " | 1,000 (900 to 1,100) | 5.0 (5.0 to 5.0) | every graph"
    )
    assert lines[3].startswith("| optimum-cli, onnx | 20.2 |  | 21.0 | 1,500 | 6.0 | every graph")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--to", "coreml"], "unknown target 'coreml'; available: onnx, openvino"),
        (["shapes", "--rounds", "0"], "--rounds 0; at least 1"),
        (["nowhere"], "nowhere has no model_index.json"),
        (["shapes", "--environments", "nowhere"], "the environment of the baseline optimum-onnx is not in nowhere"),
    ],
)
def test_export_costs_of_what_cannot_be_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        export_cost.main([*arguments, "--work", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()
