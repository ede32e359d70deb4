"""The command line, as somebody types it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ingot
from ingot.cli import main
from ingot.runtimes import schedulers


def test_generate_writes_what_the_library_makes(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cat.png"
    assert (
        main(
            [
                "generate",
                str(tiny_bundle),
                "a cat",
                "--steps",
                "2",
                "--size",
                "64x96",
                "--seed",
                "4",
                "--quiet",
                "-o",
                str(out),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip() == str(out)
    expected = ingot.load(tiny_bundle)(
        "a cat", num_inference_steps=2, height=64, width=96, seed=4, progress=False
    ).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected))


def test_generate_reads_prompts_from_a_file_and_numbers_the_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n", encoding="utf-8")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--count", "2", "--steps", "1", "--size", "64", "--quiet"]
    assert main(["generate", str(tiny_bundle), *options, "-o", str(tmp_path / "p.png")]) == 0
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["p-1.png", "p-2.png", "p-3.png", "p-4.png"]
    assert main(["generate", str(tiny_bundle), *options, "--grid", "-o", str(tmp_path / "grid.png")]) == 0
    assert Image.open(tmp_path / "grid.png").size == (128, 128)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        (["--negative", "rain"], {"negative_prompt": "rain"}),
        (["--guidance", "2"], {"guidance_scale": 2.0}),
        # not Euler, whose steps are DDIM's in other variables
        (["--scheduler", "EulerAncestralDiscreteScheduler"], {"scheduler": "EulerAncestralDiscreteScheduler"}),
        (["--threads", "1"], {}),
    ],
)
def test_generate_hands_its_options_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], call: dict[str, Any]
) -> None:
    """Latents, not pictures: a random decoder paints nearly everything grey."""
    from ingot.runtimes.pipelines.stable_diffusion import StableDiffusion

    decoded: list[Any] = []
    honest = StableDiffusion.decode

    def keep(self: Any, latents: Any) -> Any:
        decoded.append(latents)
        return honest(self, latents)

    monkeypatch.setattr(StableDiffusion, "decode", keep)
    base = ["generate", str(tiny_bundle), "--steps", "2", "--size", "64", "--quiet", "-o", str(tmp_path / "o.png")]
    assert main([*base, *options, "a cat"]) == 0  # the prompt behind the options
    pipe = ingot.load(tiny_bundle)
    if name := call.pop("scheduler", None):
        pipe.scheduler = schedulers.from_config({**pipe.scheduler.config, "_class_name": name})
    same = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "output_type": "latent", "progress": False}
    np.testing.assert_array_equal(decoded[0], pipe("a cat", **same, **call).images)
    plain = ingot.load(tiny_bundle)("a cat", **same).images
    assert (np.abs(decoded[0] - plain).max() > 1e-3) == ("--threads" not in options)


def test_generate_reads_prompts_from_standard_input(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\na dog\n"))
    options = ["-", "--steps", "1", "--size", "64", "--quiet", "-o", str(tmp_path / "p.png")]
    assert main(["generate", str(tiny_bundle), *options]) == 0
    assert len(list(tmp_path.glob("p-*.png"))) == 2


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "bundle", "a cat", "--wonder"])
    assert "unrecognized arguments: --wonder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--steps", "0"], "num_inference_steps must be a whole number of at least 1, not 0"),
        (["a cat", "--size", "63x64"], "height=63 is not a multiple of"),
        (["a cat", "--count", "0"], "--count 0: at least 1 picture is needed"),
        ([], "no prompt was given"),
        (["--prompts", "/nowhere/prompts.txt"], "cannot read prompts from /nowhere/prompts.txt as UTF-8"),
        (["a cat", "-o", "/nowhere/out.png"], "the folder /nowhere does not exist"),
        (["a cat", "--steps", "1", "--size", "64", "-o", "out.wonder"], "cannot save out.wonder"),
        (["a cat", "--scheduler", "Wonder"], "unknown scheduler 'Wonder'; available: CMStochasticIterativeScheduler"),
        (
            ["a cat", "--device", "cuda"],
            r"this onnxruntime has no CUDAExecutionProvider (pip install onnxruntime-gpu in place of onnxruntime); it has:",
        ),
        (["a cat", "--device", "abacus"], "unknown device 'abacus' for ONNX Runtime; available: cpu, cuda"),
        (["a cat", "--threads", "0"], "threads=0: a session needs at least 1"),
    ],
)
def test_generate_refuses_in_one_line(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["generate", str(tiny_bundle), *arguments, "--quiet"]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("ingot: ")
    assert message in told
    assert "\n" not in told


def test_inspect_tells_components_signatures_and_parity(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    for piece in (
        "StableDiffusionPipeline",
        "unet (UNet2DConditionModel",
        "in  encoder_hidden_states: float32[batch, 77, 32]",
        "parity: relative L2",
        "dB against diffusers",
    ):
        assert piece in text
    assert main(["inspect", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 4


def test_verify_tells_and_fails(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_bundle), "--deep"]) == 0
    assert "unet on onnx float32: relative L2" in capsys.readouterr().out
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    (broken / "unet" / "model.onnx").write_bytes(b"")
    assert main(["verify", str(broken)]) == 1
    assert "unet/model.onnx has 0 bytes" in capsys.readouterr().err


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "CPUExecutionProvider" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"]["onnx"]["CPUExecutionProvider"] == "available"


def test_export_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "shapes", "-o", str(tmp_path / "b"), "--to", "onx"]) == 1
    assert (
        capsys.readouterr().err.strip()
        == "ingot: unknown target 'onx'; available: coreml, onnx, openvino, tensorrt, torch"
    )


@pytest.mark.parametrize("text", ["axb", "64x", "x64"])
def test_a_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "bundle", "a cat", "--size", text])
    assert "is not a size; 512x768" in capsys.readouterr().err
