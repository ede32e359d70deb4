"""Bundles that an earlier Ingot wrote: targets are added to them and graphs quantized, and then they say what new ones say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot import Bundle
from ingot.runtimes import manifest as manifests

# What each schema added, as `runtimes/manifest.py` has it.
ADDED: dict[int, dict[str, tuple[str, ...]]] = {
    4: {
        "manifest": ("config", "schedulers", "processors"),
        "component": ("method", "arguments", "extras"),
        "provenance": ("loras", "textual_inversions"),
    },
    3: {"manifest": ("quality",), "graph": ("form", "rewrites", "quantization")},
    2: {"graph": ("options", "computed"), "provenance": ("additions",)},
}
CALL: dict[str, Any] = {
    "num_inference_steps": 2,
    "height": 64,
    "width": 64,
    "seed": 0,
    "output_type": "latent",
    "progress": False,
}


def without(entry: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        entry.pop(name, None)


def aged(bundle: Path, folder: Path, schema: int) -> Path:
    """A copy of the bundle as that schema had it: without later fields, forms and files."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "ingot.json").read_text())
    manifest["schema"] = schema
    for entry in manifest["components"].values():
        extras = entry.get("extras", {}).values() if schema < 4 else ()
        tuned = [g for g in entry["graphs"] if g["form"]] if schema < 3 else []
        entry["graphs"] = [graph for graph in entry["graphs"] if graph not in tuned]
        kept = {file for graph in entry["graphs"] for file in graph["files"]}
        for file in {*extras, *(file for graph in tuned for file in graph["files"])} - kept:
            (folder / file).unlink()
            del manifest["files"][file]
    for added in (fields for number, fields in ADDED.items() if number > schema):
        without(manifest, added.get("manifest", ()))
        without(manifest["provenance"], added.get("provenance", ()))
        for entry in manifest["components"].values():
            without(entry, added.get("component", ()))
            for graph in entry["graphs"]:
                without(graph, added.get("graph", ()))
    (folder / "ingot.json").write_text(json.dumps(manifest))
    assert Bundle.open(folder).manifest.schema == schema
    return folder


def latents(bundle: Path, **options: Any) -> Any:
    with ingot.load(bundle, **options) as pipe:
        return pipe("a cat", **CALL).images


@pytest.mark.parametrize("schema", [1, 3])
def test_a_target_added_to_an_older_bundle_brings_what_it_lacked(
    tiny_bundle: Path, tmp_path: Path, schema: int
) -> None:
    bundle = aged(tiny_bundle, tmp_path / "bundle", schema)
    ingot.add(bundle, to="openvino", dtype="float32", progress=False)
    found, new = Bundle.open(bundle).manifest, Bundle.open(tiny_bundle).manifest
    assert found.schema == manifests.SCHEMA
    assert (found.config, found.schedulers, found.processors) == (new.config, new.schedulers, new.processors)
    for role, entry in new.components.items():
        mine = found.components[role]
        assert (mine.method, mine.arguments, set(mine.extras)) == (entry.method, entry.arguments, set(entry.extras))
        assert {graph.engine for graph in mine.graphs} == {"onnx", "openvino"}
    assert ingot.verify(bundle)
    # float32 graphs over two steps, as in test_add
    both = [latents(bundle, engine="onnx"), latents(bundle, engine="openvino", inference_precision="f32")]
    assert np.linalg.norm(both[0] - both[1]) < 1e-4 * np.linalg.norm(both[0])


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_an_older_bundle_quantizes(tiny_bundle: Path, tmp_path: Path, schema: int) -> None:
    bundle = aged(tiny_bundle, tmp_path / "bundle", schema)
    before = Bundle.open(bundle).manifest
    ingot.quantize(
        bundle, "int8-dynamic", to="onnx", components=["unet"], prompts=["a cat"], num_inference_steps=1, progress=False
    )
    manifest = Bundle.open(bundle).manifest
    assert manifest.schema == 3  # the first that keeps recipes; of what came later there is nothing here
    graphs = manifest.components["unet"].graphs
    assert graphs[: len(before.components["unet"].graphs)] == before.components["unet"].graphs
    assert graphs[-1].quantization is not None
    assert manifest.quality["onnx int8-dynamic"].graphs["unet"] == "int8-dynamic"
    assert ingot.verify(bundle)
    plain, coarse = latents(bundle), latents(bundle, precision={"unet": "int8-dynamic"})
    far = np.linalg.norm(plain - coarse) / np.linalg.norm(plain)
    assert 1e-4 < far < 0.3  # 8 bits: something, and not much
