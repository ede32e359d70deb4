"""Where a graph's time goes, by kind of operator: `python -m ingot.benchmarks.profile_graph BUNDLE [--role unet] [--engine onnx]`.

The engine's own profiler over a few calls after the first, for every precision of the engine in the bundle, or for
`--precision` alone. ONNX Runtime by its operators; OpenVINO by its layers' kinds and the kernels that it chose.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.runtimes.bundle import Bundle, describe_graph
from ingot.runtimes.errors import InputError
from ingot.runtimes.manifest import Graph

CALLS = 2
LEAST_SHARE = 0.01  # kinds of less are summed up as the rest


def main() -> None:
    """Profile what was asked for, print a table for each graph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--role", default="unet")
    parser.add_argument("--engine", default="onnx", choices=sorted(PROFILERS))
    parser.add_argument("--precision", help="default: all of the engine")
    parser.add_argument("--latents", type=int, default=64, help="side of the latents")
    parser.add_argument("--rows", type=int, default=2)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, hashes=False)
    graphs = [graph for graph in bundle.component(options.role).graphs if graph.engine == options.engine]
    for graph in graphs:
        if options.precision in (None, graph.precision):
            times = PROFILERS[options.engine](bundle, graph, inputs(graph, options.rows, options.latents))
            print("\n".join(table(f"{options.role} {describe_graph(graph)}", times)), flush=True)


def inputs(graph: Graph, rows: int, side: int) -> dict[str, NDArray[Any]]:
    """Seeded noise of so many rows; a fixed timestep."""
    generator = np.random.default_rng(0)
    found = {}
    for spec in graph.signature.inputs:
        shape = [dim if isinstance(dim, int) else rows if "batch" in dim else side for dim in spec.shape]
        drawn = np.full(shape, 500) if spec.name == "timestep" else generator.standard_normal(shape)
        found[spec.name] = drawn.astype(spec.dtype)
    return found


def by_onnx(bundle: Bundle, graph: Graph, fed: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Seconds a call by operator, from ONNX Runtime's trace of kernels."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = ort.InferenceSession(str(bundle.file(graph.files[0])), options, providers=["CPUExecutionProvider"])
        for _ in range(CALLS + 1):
            session.run(None, dict(fed))
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [one for one in events if one["cat"] == "Node" and one["name"].endswith("_kernel_time")]
    starts = sorted(one["ts"] for one in events if one["name"] == "model_run")
    times: Counter[str] = Counter()
    for one in kernels:
        if one["ts"] >= starts[1]:  # the first call makes buffers
            times[one["args"]["op_name"]] += one["dur"] / 1e6 / CALLS
    return dict(times)


def by_openvino(bundle: Bundle, graph: Graph, fed: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Seconds a call by layer and kernel, from OpenVINO's counters of the last call."""
    import openvino as ov

    compiled = ov.Core().compile_model(str(bundle.file(graph.files[0])), "CPU", {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    for _ in range(CALLS):
        request.infer(dict(fed))
    times: Counter[str] = Counter()
    for one in request.profiling_info:
        if one.status == ov.ProfilingInfo.Status.EXECUTED:
            times[f"{one.node_type} {one.exec_type}"] += one.real_time.total_seconds()
    return dict(times)


PROFILERS: Mapping[str, Any] = {"onnx": by_onnx, "openvino": by_openvino}


def table(name: str, times: Mapping[str, float]) -> list[str]:
    """Markdown: the kinds by their share. Raises InputError where the engine told nothing."""
    whole = sum(times.values())
    if not whole:
        raise InputError(f"{name}: the engine's profiler told nothing")
    lines = [f"\n{name}: {whole:.2f} s in kernels\n", "| kind | s a call | share |", "|---|---|---|"]
    rest = 0.0
    for kind, seconds in sorted(times.items(), key=lambda item: -item[1]):
        if seconds < LEAST_SHARE * whole:
            rest += seconds
        else:
            lines.append(f"| {kind} | {seconds:.3f} | {seconds / whole:.0%} |")
    return [*lines, f"| the rest | {rest:.3f} | {rest / whole:.0%} |"]


if __name__ == "__main__":
    main()
