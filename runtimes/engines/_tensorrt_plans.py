"""Where plans are kept, and which of them may run here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..signature import Signature
from ._cuda import Gpu
from ._tensorrt_options import BuildOptions, profile

PLAN = "model.plan"


def cache_folder(given: str | Path | None = None) -> Path:
    """Where plans that are built here go: what the caller says, else `$INGOT_CACHE/tensorrt`, else
    `~/.cache/ingot/tensorrt`."""
    if given is not None:
        return Path(given)
    root = os.environ.get("INGOT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "ingot") / "tensorrt"


def identity(gpu: Gpu, version: str) -> dict[str, str]:
    """What a plan is tied to, as a manifest keeps it."""
    return {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "tensorrt": version,
        "platform": f"{sys.platform} {platform.machine()}",
    }


def cache_key(
    graph: Path, signature: Signature, options: BuildOptions, here: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """The name of a cached plan, and what it stands for: the graph's bytes, the build options, the shapes that they come
    to with what they leave out, GPU and version. Raises InputError for sizes that the graph cannot have."""
    meaning = {
        **here,
        "build": options.plain(),
        "profile": profile(signature, options.sizes),
        "graph": {file.name: _digest(file) for file in graph_files(graph)},
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest(), meaning


def graph_files(graph: Path) -> list[Path]:
    """A graph and the files that may hold its weights, its own and those that it shares with other graphs."""
    beside = (graph.with_name(graph.name + "_data"), graph.with_name("shared.onnx_data"))
    return [graph, *(file for file in beside if file.exists())]


def write(file: Path, content: bytes) -> None:
    """Put a file in place whole or not at all, whichever process or thread else writes it at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".new", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        Path(fresh).replace(file)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def timing_file(folder: Path, here: Mapping[str, str]) -> Path:
    """The timing cache of a GPU and version, which all builds add to."""
    name = hashlib.sha256(json.dumps(dict(here), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"timing-{name}.cache"


def require_fit(stored: Mapping[str, Any], here: Mapping[str, str], bundle: Path) -> None:
    """Raise EngineError for a plan that was built for another GPU, TensorRT or platform, saying what to run."""
    build = stored.get("build") or {}
    problems = [
        f"{what} {stored.get(key)}, here is {here[key]}"
        for key, what, fits in (
            ("gpu", "the GPU", _same_gpu(stored, here, build.get("hardware_compatibility", "none"))),
            ("tensorrt", "TensorRT", _same_version(stored, here, bool(build.get("version_compatible")))),
            ("platform", "the platform", stored.get("platform") == here["platform"]),
        )
        if not fits
    ]
    if problems:
        raise EngineError(
            f"the TensorRT plan in {bundle} was built for {'; for '.join(problems)}: `ingot add {bundle} --to tensorrt` "
            "on this machine makes one that fits, and the engine's option rebuild=true builds one for this run and its cache"
        )


def _same_gpu(stored: Mapping[str, Any], here: Mapping[str, str], level: str) -> bool:
    """By TensorRT's rules: the same model of GPU, unless the plan was built for more."""
    wanted, found = str(stored.get("compute_capability")), here["compute_capability"]
    if level == "ampere_plus":
        return int(found.split(".")[0]) >= 8
    if level == "same_compute_capability":
        return wanted == found
    return (stored.get("gpu"), wanted) == (here["gpu"], found)


def _same_version(stored: Mapping[str, Any], here: Mapping[str, str], compatible: bool) -> bool:
    """The very same, unless the plan is version-compatible: then the same major version, this one or a later."""
    wanted, found = str(stored.get("tensorrt")), here["tensorrt"]
    if not compatible or wanted == found:
        return wanted == found
    numbers = [[int(part) for part in version.split(".") if part.isdigit()] for version in (wanted, found)]
    return numbers[0][:1] == numbers[1][:1] and numbers[0] <= numbers[1]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
