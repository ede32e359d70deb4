"""Several bundles in `ingot bench`, and graphs of several kinds in one: names, schemes, sizes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

import ingot
from ingot.benchmarks.harness import grid, request
from ingot.runtimes.errors import InputError


@pytest.fixture
def half(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle with a second denoiser in its manifest, of float16 and of the static size 16x32 latents."""
    path = shutil.copytree(tiny_bundle, tmp_path / "new" / "b")
    manifest = json.loads((path / "ingot.json").read_text())
    graphs = manifest["components"]["unet"]["graphs"]
    graphs.append(copy.deepcopy(graphs[0]) | {"precision": "float16"})
    factor = ingot.load(tiny_bundle).vae_scale_factor
    text = json.dumps(graphs[-1])
    for name, number in (("height", 16), ("width", 32)):
        text = text.replace(f'"{name}/{factor}"', str(number))
    graphs[-1] = json.loads(text)
    (path / "ingot.json").write_text(json.dumps(manifest))
    return path


def own_size(bundle: Path) -> tuple[int, int]:
    """What the static denoiser takes, in pixels."""
    factor = ingot.load(bundle, precision="float32").vae_scale_factor
    return 16 * factor, 32 * factor


def test_paths_are_told_apart_by_their_shortest_ends() -> None:
    assert grid.told_apart(["/x/b"]) == [""]
    assert grid.told_apart(["/x/a", "/x/b"]) == ["a", "b"]
    assert grid.told_apart(["/x/old/b", "/x/new/b"]) == ["old/b", "new/b"]
    assert grid.told_apart(["/b", "/x/b"]) == ["//b", "x/b"]


def test_bundles_of_equal_names_are_told_apart(
    tiny_bundle: Path, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "old" / "b")
    monkeypatch.chdir(tmp_path)
    names = [one.name for one in request.make(["old/b", "new/b"], sizes=[own_size(half)]).contestants]
    assert names == ["old/b onnx float32", "new/b onnx float32", "new/b onnx float16"]
    (one,) = request.make(["old/b", "new/b"], contestant=["r: bundle=./new/../new/b"]).contestants
    assert one.model == str(half)


def test_a_scheme_needs_to_be_in_one_of_the_bundles(tiny_bundle: Path, half: Path) -> None:
    (one,) = request.make([tiny_bundle, half], schemes=["float16"], sizes=[own_size(half)]).contestants
    assert one.model == str(half)
    with pytest.raises(InputError, match=r"--schemes: there is no int4; there is .*float32, float16"):
        request.make([tiny_bundle, half], schemes=["float16", "int4"])


def test_only_the_graph_that_runs_decides_about_sizes(tiny_bundle: Path, half: Path) -> None:
    factor = ingot.load(tiny_bundle).vae_scale_factor
    assert len(request.make([half], schemes=["float32"], sizes=[(64, 64)]).jobs) == 1
    with pytest.raises(InputError, match=f"onnx float16 with the static size {16 * factor}x{32 * factor}"):
        request.make([half], schemes=["float16"], sizes=[(64, 64)])
