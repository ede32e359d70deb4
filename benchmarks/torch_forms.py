"""The forms in which torch runs a graph, side by side: `python -m ingot.benchmarks.torch_forms [--rounds 5]`.

A UNet of 128 and 256 channels (random weights) on latents of 32x32, a batch of 2 (one prompt with guidance), on the CPU:
diffusers' own module, the exported program, the program compiled when it is opened, and AOTInductor's package. Each is
opened anew; then all take turns, so that whatever else the machine does falls on all alike. OMP_NUM_THREADS sets the
threads. Compiling takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.runtimes.engines.torch import TorchEngine, open_graph
from ingot.runtimes.metrics import compare
from ingot.shapes import MODEL_DIR

SIZES = {"mid": (128, 256), "tiny": (32, 64)}
Arrays = dict[str, np.ndarray]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="mid")
    arguments = parser.parse_args()
    component = unet(SIZES[arguments.size])
    inputs = latents_of(component, 32)
    with tempfile.TemporaryDirectory() as folder:
        program = export(component, Path(folder) / "program")
        package = export(component, Path(folder) / "package", format="aoti")
        rows = measure(component, inputs, program, package, arguments.rounds)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} interleaved rounds\n")
    print(
        "| form | files, MB | open, s | first run, s | step, s: median | least | most | relative L2 |\n|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        print("| " + " | ".join(row) + " |")


def unet(channels: tuple[int, int]) -> Component:
    """The denoiser of Shapes' pipeline with another UNet in it."""
    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=pipe.unet.config.in_channels,
        out_channels=pipe.unet.config.out_channels,
        block_out_channels=channels,
        layers_per_block=2,
        cross_attention_dim=pipe.unet.config.cross_attention_dim,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    return next(component for component in capture(pipe) if component.role == "unet")


def latents_of(component: Component, size: int, batch: int = 2) -> Arrays:
    """Seeded inputs: `height` and `width` come out as `size` latents, whatever the model divides them by."""
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for spec in component.signature.inputs:
        shape = [dim if isinstance(dim, int) else batch if "batch" in dim else size for dim in spec.shape]
        made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made | {"timestep": np.asarray(500.0, np.float32)}


def measure(
    component: Component, inputs: Arrays, program: GraphFile, package: GraphFile, rounds: int
) -> list[tuple[str, ...]]:
    """A row for each form: name, megabytes, seconds to open, of the first run and of the later ones, how far off."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    expected = {name: tensor.numpy() for name, tensor in component.run(tensors).items()}
    opened: dict[str, tuple[Callable[[], Any], float, float]] = {
        "diffusers, eager": (lambda: component.run(tensors), 0.0, 0.0)
    }
    sizes = {"diffusers, eager": 0.0}
    for name, graph, options in (
        ("exported", program, {}),
        ("exported, channels last", program, {"channels_last": True}),
        ("exported, compiled", program, {"compile": "default"}),
        ("AOTInductor", package, {}),
    ):
        opened[name] = open_and_run(graph, inputs, options)
        sizes[name] = sum(file.stat().st_size for file in (graph.path, *graph.extra_files)) / 1e6
    seconds = interleaved({name: run for name, (run, _, _) in opened.items()}, rounds)
    return [
        (
            name, f"{sizes[name]:.1f}", f"{opening:.2f}", f"{first:.2f}", f"{statistics.median(seconds[name]):.3f}",
            f"{min(seconds[name]):.3f}", f"{max(seconds[name]):.3f}", f"{far_off(expected, run()):.1e}",
        )
        for name, (run, opening, first) in opened.items()
    ]  # fmt: skip


def open_and_run(
    graph: GraphFile, inputs: Arrays, options: Mapping[str, Any], device: str = "cpu"
) -> tuple[Callable[[], Any], float, float]:
    """The graph as a call, the seconds to open it, and those of its first run."""
    began = time.perf_counter()
    engine: TorchEngine = open_graph(graph.path, graph.signature, stored=graph.stored, device=device, **options)
    ready = time.perf_counter()
    engine.run(inputs)
    return lambda: engine.run(inputs), ready - began, time.perf_counter() - ready


def interleaved(forms: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form's runs, all forms in turn; one more round before is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, run in forms.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in seconds.items()}


def far_off(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """The worst relative L2 over the outputs."""
    return max(compare(np.asarray(array), np.asarray(found[name])).rel_l2 for name, array in expected.items())


if __name__ == "__main__":
    main()
