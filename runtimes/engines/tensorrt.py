"""TensorRT: a plan on the NVIDIA GPU that it was built for. Never run on hardware by us: see the README's table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal

from ..errors import EngineError, InputError
from ..signature import Signature
from ._cuda import Gpu, gpus, use
from ._tensorrt_build import LOG, Progress, build, trt
from ._tensorrt_options import BuildOptions, build_options
from ._tensorrt_plans import cache_folder, cache_key, identity, require_fit, timing_file, write
from ._tensorrt_run import TensorRTEngine

PARITY_OPTIONS: dict[str, Any] = {}  # a plan computes as it was built

_log = logging.getLogger("ingot")


def open_graph(
    file: Path,
    signature: Signature,
    *,
    stored: Mapping[str, Any] = MappingProxyType({}),
    device: str | None = None,
    cuda_graph: bool | None = None,
    weight_streaming_budget: int | Literal["auto"] | None = None,
    sizes: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    rebuild: bool = False,
    trust_plan: bool = False,
    progress: Progress | None = None,
) -> TensorRTEngine:
    """Open the plan of an ONNX graph: the bundle's own where it has one, else one from the cache, built when it is not
    there yet, which takes minutes.

    `device` is cuda or cuda:N. `cuda_graph` launches a run as one captured graph from the second run with equal shapes on:
    None where that works, True or an error, False never. `weight_streaming_budget` is the bytes of weights that stay on
    the GPU of a plan built to stream them, or "auto". `sizes` replaces the bundle's ranges (`{"height": [512, 1024, 1536]}`)
    for a plan that is built here. `cache` is a folder in place of `$INGOT_CACHE/tensorrt`. `rebuild` does not use the
    bundle's own plan. `trust_plan` opens a bundle's version-compatible plan, which is refused without it: every TensorRT
    plan holds machine code for the GPU, and a version-compatible one holds code for the CPU too. Other plans of a bundle,
    with GPU code only, are opened without it.

    Raises InputError for an unknown device and for options that do not fit, EngineError for a plan that was built for
    another GPU or TensorRT, and with TensorRT's own words when it refuses.
    """
    gpu = _gpu(device)
    use(gpu)
    here = identity(gpu, trt.__version__)
    bundle = file.parent.parent
    if stored.get("plan") and not rebuild and sizes is None:
        require_fit(stored, here, bundle)
        options = build_options(stored.get("build") or {})
        plan = _deserialize(_own_plan(file, stored), options.version_compatible, trust_plan)
    else:
        given = dict(stored.get("build") or {})
        options = build_options({**given, "sizes": {**(given.get("sizes") or {}), **(sizes or {})}})
        plan = _cached(file, signature, options, here, cache_folder(cache), progress)
    return TensorRTEngine(plan, signature, gpu, cuda_graph=cuda_graph, weight_streaming_budget=weight_streaming_budget)


def devices() -> list[str]:
    """`cuda`, and `cuda:1` and so on where there are more; none without a GPU."""
    return ["cuda" if gpu.index == 0 else f"cuda:{gpu.index}" for gpu in gpus()]


def report() -> dict[str, str]:
    """TensorRT's version and the GPUs."""
    found = {f"cuda:{gpu.index}": f"{gpu.name}, compute capability {gpu.compute_capability}" for gpu in gpus()}
    return {"version": trt.__version__, **(found or {"devices": "none: it needs an NVIDIA GPU and its driver"})}


def build_plan(
    graph: Path,
    signature: Signature,
    options: BuildOptions,
    *,
    device: str | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, dict[str, str]]:
    """A plan for this machine's GPU, and what it is tied to. Timings of earlier builds are used and kept in the cache."""
    gpu = _gpu(device)
    use(gpu)
    here = identity(gpu, trt.__version__)
    return _built(graph, signature, options, here, cache_folder(cache), progress), here


def _gpu(device: str | None) -> Gpu:
    found = gpus()
    kind, _, number = (device or "cuda").lower().partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise InputError(f"unknown device {device!r} for TensorRT; it has: {', '.join(devices()) or 'none here'}")
    if not found:
        raise EngineError("TensorRT needs an NVIDIA GPU and its driver; this machine shows none")
    if int(number or 0) >= len(found):
        raise InputError(f"there is no device {device!r} here; TensorRT has: {', '.join(devices())}")
    return found[int(number or 0)]


def _own_plan(file: Path, stored: Mapping[str, Any]) -> Path:
    name = PurePosixPath(str(stored["plan"]))
    plan = file.with_name(name.name)
    if name.name != str(name) or not plan.exists():
        raise EngineError(f"{file.parent} has no plan {str(name)!r}; rebuild=true builds one from {file.name}")
    return plan


def _cached(
    graph: Path,
    signature: Signature,
    options: BuildOptions,
    here: dict[str, str],
    folder: Path,
    progress: Progress | None,
) -> Any:
    """The plan of this graph, these options, this GPU and version, from the cache or built into it."""
    key, meaning = cache_key(graph, signature, options, here)
    plan = folder / f"{key}.plan"
    if plan.exists():
        try:
            return _deserialize(plan, options.version_compatible, True)
        except EngineError as error:
            _log.warning("building the plan of %s again: %s", graph, error)
    else:
        _log.warning("building a TensorRT plan of %s for %s: minutes, once", graph, here["gpu"])
    write(plan, _built(graph, signature, options, here, folder, progress))
    write(plan.with_suffix(".json"), json.dumps(meaning, indent=1).encode())
    return _deserialize(plan, options.version_compatible, True)


def _built(
    graph: Path,
    signature: Signature,
    options: BuildOptions,
    here: dict[str, str],
    folder: Path,
    progress: Progress | None,
) -> bytes:
    timings = timing_file(folder, here)
    plan, timing = build(
        graph, signature, options, timing=timings.read_bytes() if timings.exists() else b"", progress=progress
    )
    write(timings, timing)
    return plan


def _deserialize(plan: Path, version_compatible: bool, trusted: bool) -> Any:
    if version_compatible and not trusted:
        raise EngineError(
            f"{plan} is a version-compatible plan, which carries machine code that runs on the CPU: trust_plan=true opens "
            "one from a source that you trust, rebuild=true builds one here"
        )
    runtime = trt.Runtime(LOG)
    runtime.engine_host_code_allowed = version_compatible
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise LOG.error(f"TensorRT {trt.__version__} cannot open {plan}")
    return engine
