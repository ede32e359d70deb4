"""A bundle is a promise: what opens is what was written, and what does not open says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ingot
from ingot import Bundle, BundleError, EngineError, InputError

Damage = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: Damage) -> None:
    file = bundle / "ingot.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_an_untouched_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.manifest.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert bundle.manifest.provenance.versions["diffusers"]
    assert all(graph.parity for entry in bundle.manifest.components.values() for graph in entry.graphs)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no ingot\.json.*ingot export"):
        ingot.load(tmp_path)


def test_a_missing_component_file_is_named(copy: Path) -> None:
    (copy / "unet" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"unet/model\.onnx is missing"):
        ingot.load(copy)


def test_a_missing_component_is_named(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["components"].pop("vae_decoder"))
    with pytest.raises(InputError, match="missing: vae_decoder"):
        ingot.load(copy)


def test_a_truncated_graph_is_named_with_both_sizes(copy: Path) -> None:
    file = copy / "vae_decoder" / "model.onnx"
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole // 2)
    with pytest.raises(BundleError, match=rf"vae_decoder/model\.onnx has {whole // 2} bytes, not {whole}"):
        ingot.load(copy)


def test_a_changed_byte_is_found_by_its_hash(copy: Path) -> None:
    file = copy / "unet" / "model_ort.onnx"  # the form that is loaded
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet/model_ort\.onnx has another sha256"):
        ingot.load(copy)


def test_every_problem_is_told_at_once(copy: Path) -> None:
    (copy / "unet" / "model.onnx").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"(?s)tokenizer\.json has 2 bytes.*unet/model\.onnx is missing"):
        ingot.load(copy)


@pytest.mark.parametrize("schema", [0, 5, "one", None])
def test_an_unknown_schema_version_is_refused(copy: Path, schema: object) -> None:
    edit(copy, lambda manifest: manifest.update(schema=schema))
    with pytest.raises(BundleError, match=rf"schema version {schema!r}; this Ingot reads versions 1, 2, 3 and 4"):
        ingot.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_manifest_that_is_not_one_is_refused(copy: Path, text: str) -> None:
    (copy / "ingot.json").write_text(text)
    with pytest.raises(BundleError, match=r"ingot\.json"):
        ingot.load(copy)


def test_a_manifest_of_another_shape_is_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(surprise=1))
    with pytest.raises(BundleError, match="surprise"):
        ingot.load(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "unet/../../x", "..\\x", "C:/x"])
def test_a_path_that_leaves_the_bundle_is_refused(copy: Path, name: str) -> None:
    def leave(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["graphs"][0]["files"] = [name]
        manifest["files"][name] = {"size": 1, "sha256": "0"}

    edit(copy, leave)
    with pytest.raises(BundleError, match="leaves the bundle"):
        ingot.load(copy)


def test_a_link_that_leaves_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    file = copy / "unet" / "model.onnx"
    file.rename(tmp_path / "elsewhere.onnx")
    file.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="leaves the bundle"):
        ingot.load(copy)


def test_a_file_without_hash_is_refused(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["files"].pop("unet/model.onnx"))
    with pytest.raises(BundleError, match=r"unet/model\.onnx is used but has no hash"):
        ingot.load(copy)


def test_a_file_that_nobody_hashed_is_refused(copy: Path) -> None:
    """A graph could read it as weights."""
    (copy / "unet" / "other.onnx_data").write_bytes(b"x")
    (copy / ".DS_Store").write_bytes(b"a desktop was here")
    with pytest.raises(BundleError, match=r"trusted: unet/other\.onnx_data is not in the manifest$"):
        ingot.load(copy)


EDITS: dict[str, tuple[Damage, str]] = {
    "no tokenizer": (lambda m: m.update(tokenizers={}), "StableDiffusionPipeline needs 'tokenizer'"),
    "an empty config": (lambda m: m["components"]["vae_decoder"].update(config={}), "needs 'block_out_channels'"),
    "a graph without file": (
        lambda m: m["components"]["unet"]["graphs"][0].update(files=[]),
        "unet: onnx float32 names no file",
    ),
    "a component without graph": (lambda m: m["components"]["unet"].update(graphs=[]), "unet has no graph"),
    "a null byte": (lambda m: m["files"].update({"a\0b": {"size": 1, "sha256": ""}}), "leaves the bundle"),
    "a dtype": (
        lambda m: m["components"]["unet"]["graphs"][0]["signature"]["inputs"][0].update(dtype="wonder"),
        "unet: unknown dtype 'wonder'",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_told_what_is_wrong(copy: Path, name: str) -> None:
    change, message = EDITS[name]
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        ingot.load(copy)


def test_a_bundle_that_may_not_be_read_says_so(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root, who runs many test machines, may read everything
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BundleError, match=r"ingot\.json cannot be read: Permission denied"):
        Bundle.open(copy)


def test_a_provider_that_does_not_start_is_no_silent_cpu(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lists CUDA, its library does not load: ONNX Runtime would go on on the CPU."""
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        ingot.load(tiny_bundle, device="cuda")


def test_hidden_files_and_links_to_folders_are_left_alone(copy: Path, tmp_path: Path) -> None:
    (copy / ".cache").mkdir()
    (copy / ".cache" / "index").write_bytes(b"1")
    (copy / "unet" / ".DS_Store").write_bytes(b"2")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"3")
    (copy / "notes").symlink_to(tmp_path / "elsewhere")
    Bundle.open(copy)
    (copy / "deep" / "er").mkdir(parents=True)
    (copy / "deep" / "er" / "model.onnx_data").write_bytes(b"4")
    with pytest.raises(BundleError, match=r"trusted: deep/er/model\.onnx_data is not in the manifest$"):
        Bundle.open(copy)


def test_an_engine_or_precision_that_the_bundle_lacks_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="has no graphs for float16; it has: onnx float32"):
        ingot.load(tiny_bundle, precision="float16")


def test_a_pipeline_without_torch_free_loop_is_named(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(pipeline="WonderPipeline"))
    with pytest.raises(
        InputError, match=r"unknown torch-free pipeline 'WonderPipeline'; available: .*StableDiffusionPipeline"
    ):
        ingot.load(copy)


def test_verify_deep_runs_every_graph(tiny_bundle: Path) -> None:
    lines = ingot.verify(tiny_bundle, deep=True)
    forms = [line.split(":")[0] for line in lines[2:]]
    roles = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert forms == [f"{role} on onnx float32{form}" for role in roles for form in (" for onnxruntime", "")]


def test_verify_deep_finds_a_graph_that_computes_something_else(copy: Path) -> None:
    """Hashes made to fit, as somebody who edits a bundle would."""
    from ingot.runtimes.bundle import describe_file

    shutil.copy(copy / "parity" / "unet.npz", copy / "parity" / "vae_decoder.npz")
    import numpy as np

    with np.load(copy / "parity" / "unet.npz") as stored:
        arrays = {key: stored[key] * (1.01 if "/outputs/" in key else 1) for key in stored.files}
    np.savez_compressed(copy / "parity" / "unet.npz", **arrays)

    def fit(manifest: dict[str, Any]) -> None:
        for name in ("parity/unet.npz", "parity/vae_decoder.npz"):
            entry = describe_file(copy / name)
            manifest["files"][name] = {"size": entry.size, "sha256": entry.sha256}

    edit(copy, fit)
    with pytest.raises(BundleError, match=r"unet on onnx float32 for onnxruntime: relative L2 .*; the limit is 1e-04"):
        ingot.verify(copy, deep=True)
