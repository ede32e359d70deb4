"""`ingot resources`: the folder that Apple's Swift package reads, and the script that compiles it on a Mac."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ingot.exporters.coreml_resources import SCRIPT, _write_script, resources
from ingot.exporters.mil import open_package
from ingot.runtimes.errors import EngineError, ExportError, InputError
from ingot.runtimes.manifest import FILE_NAME


def test_the_resources_folder(coreml_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    made = resources(coreml_shapes, tmp_path / "Resources")
    names = sorted(path.name for path in made.folder.iterdir())
    models = ["TextEncoder", "Unet", "VAEDecoder", "VAEEncoder"]
    assert names == [*(f"{name}.mlpackage" for name in models), "compile.sh", "merges.txt", "vocab.json"]
    assert not made.compiled
    assert made.notes == (
        f"there is no xcrun here, so {made.folder} holds .mlpackage files: run `sh {made.folder}/compile.sh` on a Mac with Xcode",
    )
    script = (made.folder / "compile.sh").read_text()
    assert [line for line in script.splitlines() if "Unet" in line] == [
        "xcrun coremlcompiler compile Unet.mlpackage .",
        "rm -r -- Unet.mlpackage",
    ]
    assert open_package(made.folder / "Unet.mlpackage").operations
    with pytest.raises(InputError, match="exists"):
        resources(coreml_shapes, tmp_path / "Resources")


EVIL = "$(touch stolen); touch stolen;'.mlpackage"


def test_the_script_runs_nothing_that_a_name_says(tmp_path: Path) -> None:
    made, programs = tmp_path / "made", tmp_path / "programs"
    for package in (made / EVIL, made / "controlnet" / EVIL, made / "Unet.mlpackage" / EVIL):
        package.mkdir(parents=True)
    programs.mkdir()
    (programs / "xcrun").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (programs / "xcrun").chmod(0o755)
    _write_script(made)
    done = subprocess.run(
        ["/bin/sh", str(made / SCRIPT)], env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    packages = (("Unet.mlpackage", "."), (EVIL, "."), (f"controlnet/{EVIL}", "controlnet"))
    expected = sorted(f"coremlcompiler|compile|{name}|{place}|" for name, place in packages)
    assert sorted(f"coremlcompiler|{one}" for one in done.stdout.split("coremlcompiler|")[1:]) == expected
    assert sorted(path.name for path in made.rglob("*")) == [SCRIPT, "controlnet"]


@pytest.mark.parametrize("name", ["../../../outside.mlpackage", "/etc", EVIL])
def test_resources_copy_nothing_from_outside_of_a_bundle(coreml_shapes: Path, tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(coreml_shapes, tmp_path / "bundle")
    manifest = bundle / FILE_NAME
    changed = json.loads(manifest.read_text())
    for entry in changed["components"].values():
        entry["graphs"][0]["options"]["packages"] = [name]
    manifest.write_text(json.dumps(changed))
    with pytest.raises(EngineError, match="no name of a Core ML package in a bundle"):
        resources(bundle, tmp_path / "Resources")
    assert not (tmp_path / "Resources").exists()


def test_the_safety_checkers_package_has_a_packages_name(coreml_shapes: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(coreml_shapes, tmp_path / "bundle")
    (bundle / "safety_checker" / EVIL).mkdir(parents=True)
    with pytest.raises(EngineError, match="no name of a Core ML package in a bundle"):
        resources(bundle, tmp_path / "Resources")


COMPILER = """#!/bin/sh
# stands in for Apple's: one folder for each package
[ "$1 $2" = "coremlcompiler compile" ] || exit 2
[ -z "$FAIL" ] || { echo "no such op" >&2; exit 1; }
/bin/mkdir -p "$4/$(/usr/bin/basename "$3" .mlpackage).mlmodelc"
"""


def test_resources_are_compiled_where_xcrun_is(
    coreml_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xcrun").write_text(COMPILER)
    (tmp_path / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    made = resources(coreml_shapes, tmp_path / "Resources")
    assert made.compiled
    assert made.notes == ()
    assert sorted(path.name for path in made.folder.glob("*.ml*")) == [
        f"{name}.mlmodelc" for name in ("TextEncoder", "Unet", "VAEDecoder", "VAEEncoder")
    ]
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ExportError, match=r"could not compile TextEncoder.mlpackage: no such op"):
        resources(coreml_shapes, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_script_compiles_in_place(coreml_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", "/nowhere")
        made = resources(coreml_shapes, tmp_path / "Resources")
    (tmp_path / "xcrun").write_text(COMPILER)
    (tmp_path / "xcrun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    subprocess.run(["sh", str(made.folder / "compile.sh")], check=True)
    assert not list(made.folder.glob("*.mlpackage"))
    assert len(list(made.folder.glob("*.mlmodelc"))) == 4


def test_resources_of_a_bundle_without_core_ml(coreml_shapes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(coreml_shapes, tmp_path / "other")
    manifest = (other / "ingot.json").read_text().replace('"engine": "coreml"', '"engine": "onnx"')
    (other / "ingot.json").write_text(manifest)
    with pytest.raises(InputError, match=r"no Core ML graphs, it has onnx: `ingot add .* --to coreml` adds them"):
        resources(other, tmp_path / "Resources")
