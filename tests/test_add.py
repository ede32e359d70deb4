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


@pytest.fixture(scope="module")
def grown(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with OpenVINO added."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("grown") / "bundle"))
    assert main(["add", str(folder), "--to", "openvino", "--dtype", "float32"]) == 0
    return folder


def test_the_new_engine_runs_and_the_old_one_is_as_it_was(tiny_bundle: Path, grown: Path) -> None:
    before, bundle = contents(tiny_bundle), grown
    old = Bundle.open(tiny_bundle).manifest
    manifest = Bundle.open(bundle).manifest
    assert {name: data for name, data in contents(bundle).items() if name in before and name != "ingot.json"} == {
        name: data for name, data in before.items() if name != "ingot.json"
    }
    assert [(g.engine, g.precision) for g in manifest.components["unet"].graphs] == [
        ("onnx", "float32"),  # for ONNX Runtime
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
    assert [(g.engine, g.precision) for g in manifest.components["unet"].graphs] == [("onnx", "float16")] * 2
    ingot.load(bundle)("a cat", num_inference_steps=1, height=64, width=64, progress=False)


def test_files_of_no_graph_are_written_anew_and_the_users_own_are_kept(grown: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(grown, tmp_path / "bundle"))
    (bundle / ".git").mkdir()
    (bundle / ".git" / "HEAD").write_text("ref: refs/heads/main")
    ingot.add(bundle, to="openvino", overwrite=True, progress=False)
    assert "tokenizer/openvino_tokenizer.xml" in Bundle.open(bundle).manifest.files
    assert [g.precision for g in Bundle.open(bundle).manifest.components["unet"].graphs] == [
        "float32",
        "float32",
        "float16",
    ]
    assert (bundle / ".git" / "HEAD").read_text() == "ref: refs/heads/main"


def test_a_static_graph_brings_a_call_of_its_size(bundle: Path) -> None:
    ingot.add(bundle, to="openvino", height=64, width=96, static=True, progress=False)
    lines = ingot.verify(bundle, deep=True)
    assert sum("relative L2" in line for line in lines) == 3 * len(Bundle.open(bundle).manifest.components)


def test_weights_shared_later_leave_those_shared_before(tmp_path: Path) -> None:
    import onnx_ir as ir
    import onnxruntime

    from ingot.exporters.onnx_weights import share_weights

    def write(name: str, value: float) -> list[Path]:
        files = []
        for role in ("a", "b"):
            (tmp_path / role).mkdir(exist_ok=True)
            weight = ir.tensor(np.full((64, 64), value, np.float32), name="w")
            x = ir.Input("x", shape=ir.Shape((1, 64)), type=ir.TensorType(ir.DataType.FLOAT))
            w = ir.Value(name="w", const_value=weight, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((64, 64)))
            y = ir.node("MatMul", [x, w])
            y.outputs[0].name = "y"
            y.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph = ir.Graph([x], [y.outputs[0]], nodes=[y], initializers=[w], opset_imports={"": 20}, name="g")
            ir.save(ir.Model(graph, ir_version=10), tmp_path / role / name)
            files.append(tmp_path / role / name)
        return files

    def run(file: Path) -> float:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return float(session.run(None, {"x": np.ones((1, 64), np.float32)})[0][0, 0])

    first = write("model.onnx", 1.0)
    assert share_weights(first).files
    second = write("tensorrt.onnx", 5.0)
    assert share_weights(second).files
    assert [run(file) for file in (*first, *second)] == [64.0, 64.0, 320.0, 320.0]


def test_another_model_is_refused_and_the_bundle_left_alone(bundle: Path, tiny_sd: Any, tmp_path: Path) -> None:
    other = StableDiffusionPipeline.from_pretrained(tiny_sd.folder)
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.001)
    before = contents(bundle)
    with pytest.raises(
        InputError, match=r"not the model that .* was made from: unet answers a stored call .* \(relative L2\)"
    ):
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
    with pytest.raises(ingot.BundleError, match="reads versions 1, 2, 3 and 4"):
        Bundle.open(bundle)


def test_options_are_checked_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["export", "shapes", "-o", str(tmp_path / "b"), "--to", "onnx"]
    for given, message in (
        ("onnx.wonder=1", "unknown option for the target onnx 'wonder'; available: external_bytes, opset"),
        ("openvino.source=onnx", "options are given for openvino, which is not among the targets onnx"),
        ("onx.opset=1", "unknown target 'onx'; available:"),
        ("onnx.opset=abc", "option of the target onnx: opset='abc': Expected `int`, got `str`"),
    ):
        assert main([*base, "--set", given]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*base, "--set", "opset=20"])
    assert "'opset=20' is not TARGET.OPTION=VALUE" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
