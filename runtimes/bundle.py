"""Opening a bundle: its manifest, and the proof that its files are what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import manifest as manifests
from .errors import BundleError, InputError
from .manifest import ComponentEntry, FileEntry, Graph, Manifest, Quantization

DTYPES = {"float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class Bundle:
    """An open bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, hashes: bool = True) -> Bundle:
        """Open a bundle folder and hold every file's size and sha256 against the manifest.

        `hashes=False` compares sizes only, which spares reading gigabytes. Raises BundleError naming every file that is
        missing, resized, changed, or outside of the bundle.
        """
        folder = Path(path)
        file = folder / manifests.FILE_NAME
        try:
            text = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"{folder} is no bundle: it has no {manifests.FILE_NAME}. `ingot export MODEL -o {folder} --to onnx` makes one"
            ) from error
        except OSError as error:
            raise BundleError(f"{file} cannot be read: {error.strerror}") from error
        bundle = cls(folder, manifests.decode(text))
        problems = [*bundle.structure_problems(), *bundle.file_problems(hashes=hashes)]
        if problems:
            raise BundleError(f"{folder} cannot be trusted: " + "; ".join(problems))
        return bundle

    def component(self, role: str) -> ComponentEntry:
        """The component with this role. Raises BundleError naming those that there are."""
        if role not in self.manifest.components:
            raise BundleError(f"{self.path} has no {role!r}; it has: {', '.join(self.manifest.components)}")
        return self.manifest.components[role]

    def graph(
        self,
        role: str,
        engine: str | None = None,
        precision: str | None = None,
        *,
        form: str | None = None,
        device: str | None = None,
    ) -> Graph:
        """The first graph of a component that fits; one made for certain devices fits these alone. Without a precision a
        quantized graph fits only where it was measured to be the faster: on a processor, not on a GPU beside it.

        Raises InputError naming those that there are.
        """
        graphs = self.component(role).graphs
        found = []
        for graph in graphs:
            wanted = (engine, graph.engine), (precision, graph.precision), (form, graph.form)
            if all(asked in (None, has) for asked, has in wanted) and _for_device(graph, device):
                found.append(graph)
        for graph in found:
            if precision is not None or graph.quantization is None or _measured_on(graph.quantization, device):
                return graph
        if found:
            return found[0]
        asked = " ".join(filter(None, (engine, precision, form and f"for {form}", device and f"on {device}")))
        have = ", ".join(map(describe_graph, graphs))
        raise InputError(f"{role!r} in {self.path} has no graph for {asked}; it has: {have or 'none'}")

    def file(self, name: str) -> Path:
        """Where a file of the manifest lies. Raises BundleError for a name that leaves the bundle."""
        if _leaves(name) or not (self.path / name).resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"the manifest of {self.path} names {name!r}, which leaves the bundle")
        return self.path / name

    def require(self, names: Iterable[str]) -> None:
        """Hash these files. Raises BundleError naming every one that is not what was written."""
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing leaves Python to other threads
            checked = pool.map(
                lambda name: (name, _file_problem(self.file(name), self.manifest.files[name], True)),
                dict.fromkeys(names),  # graphs share files of weights
            )
        problems = [f"{name} {problem}" for name, problem in checked if problem]
        if problems:
            raise BundleError(f"{self.path} cannot be trusted: " + "; ".join(problems))

    def structure_problems(self) -> list[str]:
        """What is wrong inside the manifest: names that leave the bundle, or that have no hash."""
        manifest = self.manifest
        named = [file for entry in manifest.components.values() for graph in entry.graphs for file in graph.files]
        named += [entry.parity_data for entry in manifest.components.values() if entry.parity_data]
        named += manifest.tokenizers.values()
        named += [file for entry in manifest.components.values() for file in entry.extras.values()]
        problems = [f"{name!r} leaves the bundle" for name in sorted({*manifest.files, *named}) if _leaves(name)]
        problems += [f"{name} is used but has no hash" for name in sorted(set(named) - set(manifest.files))]
        problems += [f"{role} has no graph" for role, entry in manifest.components.items() if not entry.graphs]
        for role, entry in manifest.components.items():
            for graph in entry.graphs:
                dtypes = {spec.dtype for spec in (*graph.signature.inputs, *graph.signature.outputs)} - DTYPES
                problems += [f"{role}: {graph.engine} {graph.precision} names no file"] if not graph.files else []
                problems += [f"{role}: unknown dtype {dtype!r}" for dtype in sorted(dtypes)]
        return problems

    def file_problems(self, *, hashes: bool = True) -> list[str]:
        """What is wrong with the files on disk."""
        checked = (
            (name, _file_problem(self.file(name), entry, hashes))
            for name, entry in self.manifest.files.items()
            if not _leaves(name)
        )
        found = [f"{name} {problem}" for name, problem in checked if problem]
        # external weights are found by their names, so a file that nobody hashed could be read as one
        for file in sorted(self.path.rglob("*")):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and name not in self.manifest.files and not _unlisted(name):
                found.append(f"{name} is not in the manifest")
        return found


def _unlisted(name: str) -> bool:
    """The manifest itself, and hidden files such as a desktop leaves anywhere."""
    return name == manifests.FILE_NAME or any(part.startswith(".") for part in PurePosixPath(name).parts)


def describe_graph(graph: Graph) -> str:
    """A graph in a few words: `onnx float32 for onnxruntime`."""
    return f"{graph.engine} {graph.precision}{f' for {graph.form}' if graph.form else ''}"


def _for_device(graph: Graph, device: str | None) -> bool:
    devices = graph.options.get("devices")
    return not devices or device is None or device.lower().partition(":")[0] in devices


def _measured_on(quantization: Quantization, device: str | None) -> bool:
    kind = (device or "cpu").lower().partition(":")[0]
    return quantization.timing is not None and quantization.timing.device == kind


def describe_file(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    with path.open("rb") as stream:
        return FileEntry(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def _leaves(name: str) -> bool:
    parts = PurePosixPath(name)
    return parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name or "\0" in name or not parts.parts


def _file_problem(path: Path, entry: FileEntry, hashes: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry.size:
        return f"has {size} bytes, not {entry.size}"
    try:
        changed = hashes and describe_file(path).sha256 != entry.sha256
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "has another sha256 than when it was written" if changed else None
