"""Parity and speed of TensorRT on its GPU, in one command: `python -m ingot.benchmarks.verify_tensorrt`.

Parity: every graph of Shapes in float32, float16 and bfloat16, its plan built here and held against the torch component as
recorded on the CPU; then the whole bundle, with its picture against diffusers'. Speed: a run of each, and a step of the
UNet of Stable Diffusion XL (2.6 billion random weights) at 1024x1024 with guidance, with and without a CUDA graph, beside
ONNX Runtime's CUDA provider where it is installed. Building plans takes many minutes; needs about 40 GB of memory, 24 GB of
disk and 16 GB on the GPU. Ends with status 1 where TensorRT or a GPU is missing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ingot
from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.checkpoint import load_checkpoint
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets import onnx, tensorrt
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import Engine, engine, open_with
from ingot.runtimes.errors import EngineError, ParityError

from .torch_forms import latents_of
from .verify_cuda import SDXL, TINY, sdxl_unet

Arrays = dict[str, Any]


def main(given: Sequence[str] | None = None) -> int:
    """Print the tables; the exit status: 1 without a GPU, 2 where a graph or the picture misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a UNet of a few layers in place of SDXL's")
    arguments = parser.parse_args(given)
    missing = absent()
    if missing:
        print(f"nothing was measured: {missing}")
        return 1
    print(", ".join(f"{name}: {value}" for name, value in engine("tensorrt").report().items()))
    with tempfile.TemporaryDirectory() as folder:
        passed = verify_shapes(Path(folder), arguments.dtypes, arguments.rounds)
        passed &= verify_bundle(Path(folder) / "bundle", arguments.dtypes[0])
        measure(Path(folder), TINY if arguments.tiny else SDXL, arguments.dtypes[-2:], arguments.rounds)
    return 0 if passed else 2


def absent() -> str | None:
    """What is missing to build and run a plan here."""
    driver = any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")) or shutil.which("nvidia-smi")
    missing = [] if driver else ["there is no NVIDIA GPU with a driver here"]
    try:
        if not engine("tensorrt").devices() and driver:
            missing.append("CUDA shows no NVIDIA GPU here")
    except EngineError as error:
        missing.append(str(error))
    return "; ".join(missing) or None


def verify_shapes(folder: Path, dtypes: Sequence[str], rounds: int) -> bool:
    """Every graph of Shapes, at every precision."""
    print("\n| Shapes | precision | build, s | files, MB | relative L2 | limit | run, ms | with a CUDA graph, ms |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    passed = True
    for component in capture(load_checkpoint("shapes").pipe):
        for dtype in dtypes:
            passed &= _verify_one(component, folder / dtype / component.role, dtype, rounds)
    return passed


def _verify_one(component: Component, folder: Path, dtype: str, rounds: int) -> bool:
    graph, seconds = timed(lambda: tensorrt.export(component, folder, dtype=dtype, plan=True))
    opened = tensorrt.open_for_parity(graph.path, graph.signature, graph.stored)
    try:
        certificate = parity.check(component, opened.run, graph.dtype, signature=graph.signature)
        found = f"{certificate.rel_l2:.1e} | {certificate.limit:.0e}"
    except ParityError as error:
        found = f"{error} | missed"
    opened.close()
    inputs = {name: tensor.numpy() for name, tensor in component.calls[0].inputs.items()}
    took = [step(opening(graph, cuda_graph=captured), inputs, rounds) for captured in (False, True)]
    print(
        f"| {component.role} | {graph.dtype} | {seconds:.0f} | {_megabytes(graph):.1f} | {found} | "
        f"{took[0]['median'] * 1e3:.2f} | {took[1]['median'] * 1e3:.2f} |",
        flush=True,
    )
    return "missed" not in found


def verify_bundle(folder: Path, dtype: str) -> bool:
    """`ingot export shapes --to tensorrt`, which holds the picture against diffusers' too."""
    try:
        ingot.export("shapes", folder, to="tensorrt", dtype=dtype, progress=False)
    except ParityError as error:
        print(f"\nthe bundle in {dtype}: {error}")
        return False
    picture = Bundle.open(folder).manifest.parity["tensorrt"]
    print(f"\nthe bundle in {dtype}: picture {picture.psnr_db} dB from diffusers' (limit {picture.limit_db} dB)")
    return True


def measure(folder: Path, sizes: dict[str, Any], dtypes: Sequence[str], rounds: int) -> None:
    """Seconds of a step of the UNet; each engine by itself, as two of them may not fit the GPU together."""
    component = sdxl_unet(sizes)
    inputs = latents_of(component, sizes["latents"])
    parameters = sum(parameter.numel() for parameter in component.source.parameters()) / 1e6
    print(
        f"\nUNet of {parameters:,.0f} M parameters, {sizes['latents']}x{sizes['latents']} latents, batch 2, {rounds} runs\n"
    )
    print("| engine | precision | build, s | files, MB | open, s | first run, s | step, s: median | least | most |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for dtype in dtypes:
        graph, seconds = timed(partial(tensorrt.export, component, folder / dtype / "unet", dtype=dtype, plan=True))
        for captured in (False, True):
            name = f"TensorRT{', CUDA graph' if captured else ''}"
            _row(name, graph, f"{seconds:.0f}", step(opening(graph, cuda_graph=captured), inputs, rounds))
    if "cuda" in engine("onnx").devices():
        written = onnx.export(component, folder / "onnx" / "unet", dtype="float16")
        options = {"device": "cuda"}
        run = step(lambda: open_with("onnx", written.path, written.signature, {}, options), inputs, rounds)
        _row("ONNX Runtime, CUDA", written, "-", run)


def opening(graph: GraphFile, **options: Any) -> Callable[[], Engine]:
    """How to open a graph's plan."""
    return lambda: open_with("tensorrt", graph.path, graph.signature, graph.stored, options)


def step(opening: Callable[[], Engine], inputs: Arrays, rounds: int) -> dict[str, float]:
    """Seconds to open, of the first run, and of runs after a second one, which captures the graph."""
    opened, open_s = timed(opening)
    _, first_s = timed(lambda: opened.run(inputs))
    opened.run(inputs)
    seconds = [timed(lambda: opened.run(inputs))[1] for _ in range(rounds)]
    opened.close()
    return {
        "open": open_s, "first": first_s, "median": statistics.median(seconds), "least": min(seconds), "most": max(seconds),
    }  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds that it took."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _row(name: str, graph: GraphFile, build: str, found: dict[str, float]) -> None:
    print(
        f"| {name} | {graph.dtype} | {build} | {_megabytes(graph):.0f} | {found['open']:.2f} | {found['first']:.3f} | "
        f"{found['median']:.4f} | {found['least']:.4f} | {found['most']:.4f} |",
        flush=True,
    )


def _megabytes(graph: GraphFile) -> float:
    return sum(file.stat().st_size for file in (graph.path, *graph.extra_files)) / 1e6


if __name__ == "__main__":
    sys.exit(main())
