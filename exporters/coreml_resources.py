"""The folder that Apple's Swift package ml-stable-diffusion opens, made from a bundle with Core ML graphs.

    Resources/  merges.txt  vocab.json  TextEncoder.mlmodelc  Unet.mlmodelc (or UnetChunk1, UnetChunk2)  VAEDecoder.mlmodelc
                VAEEncoder.mlmodelc  SafetyChecker.mlmodelc  controlnet/ControlNet.mlmodelc

The names are its `ResourceURLs`. It reads compiled models, which Apple's `coremlcompiler` makes on a Mac: anywhere else the
packages are laid out with a script beside them that compiles them in place.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines._coreml import require_names, stored_packages
from ingot.runtimes.errors import ExportError, InputError

from .atomic import atomic_folder
from .coreml_names import SAFETY_SCORES
from .coreml_safety import ROLE as SAFETY_CHECKER

CONTROLNETS = "controlnet"
SCRIPT = "compile.sh"
VOCABULARY = ("merges.txt", "vocab.json")


@dataclass(frozen=True)
class Resources:
    """What was written: whether the models in it are `compiled`, and what a user has to know or to do, in sentences."""

    folder: Path
    compiled: bool
    notes: tuple[str, ...]


def resources(bundle_folder: str | Path, output: str | Path, *, overwrite: bool = False) -> Resources:
    """Write the Resources folder of a bundle, compiled where `xcrun` is, and return what is left to do.

    Raises InputError for a bundle without Core ML graphs or an output that is there already, EngineError for packages with
    names that a bundle's have not, ExportError when the compiler fails.
    """
    bundle = Bundle.open(bundle_folder)
    packages = list(_packages(bundle))
    vocabulary = _vocabulary(bundle)
    final, xcrun = Path(output), shutil.which("xcrun")
    if final.exists() and overwrite and (final / VOCABULARY[0]).is_file():
        shutil.rmtree(final)
    with atomic_folder(final) as folder:
        for file in vocabulary:
            shutil.copy(file, folder)
        for package in packages:
            place = folder / CONTROLNETS if package.stem.startswith("ControlNet") else folder
            place.mkdir(exist_ok=True)
            _compile(xcrun, package, place) if xcrun else shutil.copytree(package, place / package.name)
        if not xcrun:
            _write_script(folder)
    return Resources(final, xcrun is not None, tuple(_notes(bundle, final, xcrun is not None)))


def _packages(bundle: Bundle) -> Iterator[Path]:
    """Every package of the bundle, and the safety checker's, which is no component."""
    found = False
    for role, entry in bundle.manifest.components.items():
        for graph in entry.graphs if role != SAFETY_CHECKER else ():
            if graph.engine == "coreml":
                found = True
                folder = bundle.file(graph.files[0]).parent.parent
                yield from (folder / name for name in stored_packages(graph.options).packages)
                break
    if not found:
        engines = sorted({graph.engine for entry in bundle.manifest.components.values() for graph in entry.graphs})
        raise InputError(
            f"{bundle.path} has no Core ML graphs, it has {', '.join(engines)}: `ingot add {bundle.path} --to coreml` adds them"
        )
    more = sorted((bundle.path / SAFETY_CHECKER).glob("*.mlpackage"))
    more = [package for package in more if package.stem != SAFETY_SCORES]
    require_names(package.name for package in more)
    yield from more


def _vocabulary(bundle: Bundle) -> list[Path]:
    """The byte pairs of the first tokenizer; SDXL's second has the same ones and pads otherwise, which Swift knows."""
    for name in bundle.manifest.tokenizers.values():
        files = [bundle.file(name).parent / one for one in VOCABULARY]
        if all(file.is_file() for file in files):
            return files
    raise InputError(f"{bundle.path} has no tokenizer of byte pairs, which Apple's Swift package needs")


def _compile(xcrun: str, package: Path, folder: Path) -> None:
    done = subprocess.run(
        [xcrun, "coremlcompiler", "compile", str(package), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode or not (folder / f"{package.stem}.mlmodelc").is_dir():
        raise ExportError(f"coremlcompiler could not compile {package.name}: {(done.stderr or done.stdout).strip()}")


def _write_script(folder: Path) -> None:
    lines = [
        "#!/bin/sh",
        "# Compiles the packages in place; run it on a Mac with Xcode.",
        "set -e",
        'cd "$(dirname "$0")"',
    ]
    for package in sorted([*folder.glob("*.mlpackage"), *(folder / CONTROLNETS).glob("*.mlpackage")]):
        name = package.relative_to(folder)
        quoted, place = shlex.quote(name.as_posix()), shlex.quote(name.parent.as_posix())
        lines += [f"xcrun coremlcompiler compile {quoted} {place}", f"rm -r -- {quoted}"]
    script = folder / SCRIPT
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)


def _notes(bundle: Bundle, final: Path, compiled: bool) -> Iterator[str]:
    if not compiled:
        yield f"there is no xcrun here, so {final} holds .mlpackage files: run `sh {final}/{SCRIPT}` on a Mac with Xcode"
    for role, entry in bundle.manifest.components.items():
        for graph in entry.graphs:
            open_dims = {dim for spec in graph.signature.inputs for dim in spec.shape if isinstance(dim, str)}
            if graph.engine == "coreml" and open_dims:
                yield f"{role} takes several sizes; the Swift package uses the one that it was recorded at"
