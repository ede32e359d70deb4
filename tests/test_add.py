"""Targets added to a bundle later: what was there stays, what is new is certified, another model is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import ingot
from ingot import Bundle, InputError, ParityError
from ingot.cli import main
from ingot.exporters import parity
from ingot.runtimes import manifest as manifests


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_new_engine_runs_and_the_old_one_is_as_it_was(bundle: Path) -> None:
    before = contents(bundle)
    old = Bundle.open(bundle).manifest
    assert main(["add", str(bundle), "--to", "openvino", "--dtype", "float32"]) == 0
    manifest = Bundle.open(bundle).manifest
    assert {name: data for name, data in contents(bundle).items() if name in before and name != "ingot.json"} == {
        name: data for name, data in before.items() if name != "ingot.json"
    }
    assert [(g.engine, g.precision) for g in manifest.components["unet"].graphs] == [
        ("onnx", "float32"),
        ("openvino", "float32"),
    ]
    assert manifest.components["unet"].graphs[0] == old.components["unet"].graphs[0]
    assert manifest.parity["onnx"] == old.parity["onnx"]
    assert manifest.parity["openvino"].psnr_db is None or manifest.parity["openvino"].psnr_db >= 60
    assert [(a.targets, a.command is not None) for a in manifest.provenance.additions] == [(("openvino",), True)]
    call: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "output_type": "latent"}
    found = [
        ingot.load(bundle, engine=name, **options)("a cat", progress=False, **call).images
        for name, options in (("onnx", {}), ("openvino", {"inference_precision": "f32"}))
    ]
    assert np.linalg.norm(found[0] - found[1]) < 1e-4 * np.linalg.norm(found[0])


def test_a_target_that_is_there_is_refused_and_replaced_when_asked(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has graphs for onnx; give --overwrite"):
        ingot.add(bundle, to="onnx", progress=False)
    ingot.add(bundle, to="onnx", dtype="float16", overwrite=True, progress=False)
    manifest = Bundle.open(bundle).manifest
    assert [(g.engine, g.precision) for g in manifest.components["unet"].graphs] == [("onnx", "float16")]
    ingot.load(bundle)("a cat", num_inference_steps=1, height=64, width=64, progress=False)


def test_another_model_is_refused_and_the_bundle_left_alone(bundle: Path, tiny_sd: Any, tmp_path: Path) -> None:
    other = StableDiffusionPipeline.from_pretrained(tiny_sd.folder)
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.001)
    before = contents(bundle)
    with pytest.raises(InputError, match=r"not the model that .* was made from: unet answers a stored call"):
        ingot.add(bundle, to="openvino", model=other, progress=False)
    assert contents(bundle) == before
    assert [item.name for item in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_addition_leaves_the_bundle_as_it_was(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle)
    monkeypatch.setitem(parity.LIMITS, "float32", 0.0)
    with pytest.raises(ParityError):
        ingot.add(bundle, to="openvino", dtype="float32", progress=False)
    assert contents(bundle) == before


def test_a_model_that_is_gone_is_asked_for(bundle: Path) -> None:
    file = bundle / "ingot.json"
    text = json.loads(file.read_text())
    text["provenance"]["source"] = "/nowhere/model"
    file.write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"--model"):
        ingot.add(bundle, to="openvino", progress=False)


def test_a_bundle_of_the_first_schema_is_read(bundle: Path) -> None:
    file = bundle / "ingot.json"
    text = json.loads(file.read_text())
    text["schema"] = 1
    del text["provenance"]["additions"]
    for entry in text["components"].values():
        for graph in entry["graphs"]:
            del graph["options"], graph["computed"]
    file.write_text(json.dumps(text))
    assert Bundle.open(bundle).manifest.schema == 1
    ingot.load(bundle).close()
    file.write_text(json.dumps({**text, "schema": manifests.SCHEMA + 1}))
    with pytest.raises(ingot.BundleError, match="reads versions 1 and 2"):
        Bundle.open(bundle)


def test_options_are_checked_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["export", "shapes", "-o", str(tmp_path / "b"), "--to", "onnx"]
    for given, message in (
        ("onnx.wonder=1", "unknown option for the target onnx 'wonder'; available: external_bytes, opset"),
        ("openvino.source=onnx", "options are given for openvino, which is not among the targets onnx"),
        ("onx.opset=1", "unknown target 'onx'; available:"),
    ):
        assert main([*base, "--set", given]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "--set", "opset=20"])
    assert "'opset=20' is not TARGET.OPTION=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
