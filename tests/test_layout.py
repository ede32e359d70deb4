"""The rules that keep the two halves apart, and the package list, held against the files."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("exporters", "runtimes", "quantization", "benchmarks")
MAKING = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "accelerate", "peft", "safetensors"}
RUNNING = {"numpy", "PIL", "tokenizers", "tqdm", "msgspec"}
# what only an engine's own files may import, besides: {package: the beginnings of their paths}
TOOLCHAINS = {
    "onnxruntime": ("engines/onnx.py", "engines/_onnx"),
    "openvino": ("engines/openvino.py", "engines/_openvino"),
    "coremltools": ("engines/coreml.py", "engines/_coreml"),
    "tensorrt": ("engines/tensorrt.py", "engines/_tensorrt"),
    "cuda": ("engines/_cuda.py",),
    "torch": ("engines/torch.py", "engines/_torch", "devices/"),
    "habana_frameworks": ("devices/hpu.py",),
}
# who may import which of our own folders, besides its own
ALLOWED = {
    "runtimes": set(),
    "exporters": {"runtimes", "shapes"},
    "quantization": {"runtimes", "exporters", "shapes"},
    "benchmarks": {"runtimes", "exporters", "quantization", "shapes"},
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """(module, level) of every import statement, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def third_party(file: Path) -> set[str]:
    return {name.split(".")[0] for name, level in imports(file) if not level} - sys.stdlib_module_names


@pytest.mark.parametrize("file", sources("runtimes"), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_running_needs_only_what_is_a_core_dependency_and_an_engine_its_toolchain(file: Path) -> None:
    place = file.relative_to(ROOT / "runtimes").as_posix()
    own = {package for package, places in TOOLCHAINS.items() if place.startswith(places)}
    assert third_party(file) <= RUNNING | own


def test_no_engine_is_imported_before_it_is_asked_for() -> None:
    files = [file for file in sources("runtimes") if file.parent.name not in ("engines", "devices")]
    assert not [file for file in files if third_party(file) & set(TOOLCHAINS)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_the_folders_they_may(folder: str) -> None:
    for file in sources(folder):
        for name, level in imports(file):
            parts = name.split(".")
            assert level or parts[0] not in FOLDERS, f"{file}: `import {name}` makes a second copy; write ingot.{name}"
            if not level and parts[0] == "ingot" and len(parts) > 1:
                assert parts[1] in ALLOWED[folder] | {folder}, f"{file} imports {name}"
            assert level <= len(file.relative_to(ROOT).parts) - 1, f"{file}: a relative import leaves {folder}"


def test_shapes_and_the_command_line_start_without_torch() -> None:
    for file in [
        *sources("ingot/shapes"),
        ROOT / "ingot" / "cli.py",
        ROOT / "ingot" / "commands.py",
        ROOT / "ingot" / "__init__.py",
    ]:
        assert not {name.split(".")[0] for name, level in imports(file) if not level} & MAKING


def test_package_list_names_every_folder_with_code() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "ingot",
        *(
            "ingot." + file.parent.relative_to(ROOT / "ingot").as_posix().replace("/", ".")
            for file in (ROOT / "ingot").glob("*/**/__init__.py")
        ),
    }
    for folder in FOLDERS:
        found |= {
            "ingot." + file.parent.relative_to(ROOT).as_posix().replace("/", ".")
            for file in (ROOT / folder).rglob("__init__.py")
        }
    assert listed == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_with_code_is_a_package(folder: str) -> None:
    missing = {file.parent for file in sources(folder) if not (file.parent / "__init__.py").exists()}
    assert not missing
