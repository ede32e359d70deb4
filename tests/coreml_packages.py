"""Core ML packages for tests: of Shapes and of tiny pipelines, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import ingot
from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets import coreml as target
from ingot.runtimes.engines import coreml as engine

# Relative L2. In float32 the evaluator adds in another order than torch: 1e-6 measured, up to 7e-6 in Shapes. In half
# precision, every value rounded: 0.8e-3 to 2e-3 measured on these models.
FLOAT32, FLOAT16 = 1e-5, 4e-3
Export = Callable[..., tuple[Component, GraphFile]]


def exporter(new_folder: Callable[[], Path], pipeline: Callable[[str], Any]) -> Export:
    """A function from a tiny pipeline's name, a role and options to the component and its packages, each converted once."""
    components: dict[str, dict[str, Component]] = {}
    graphs: dict[str, GraphFile] = {}

    def get(name: str, role: str, **options: Any) -> tuple[Component, GraphFile]:
        if name not in components:
            pipe = small_ddpm() if name == "ddpm" else pipeline(name)
            components[name] = {component.role: component for component in capture(pipe)}
        key = json.dumps([name, role, options])
        if key not in graphs:
            graphs[key] = target.export(components[name][role], new_folder() / role, **options)
        return components[name][role], graphs[key]

    return get


def export_shapes(bundle: Path) -> Path:
    """Shapes for Core ML in float32: the export itself holds every package and the whole picture against diffusers."""
    return ingot.export(
        "shapes", bundle, to="coreml", dtype="float32", static=True, progress=False, options={"coreml": {"attention": "original"}}
    )  # fmt: skip


def small_ddpm() -> DDPMPipeline:
    """The smallest UNet that has a skip connection over a halving: what is hard about open sizes, and little else."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipe = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def opened(graph: GraphFile) -> Any:
    return target.open_for_parity(graph.path, graph.signature, graph.stored)


def error(component: Component, graph: GraphFile) -> float:
    """The worst relative L2 over the recorded calls that fit."""
    return parity.check(component, opened(graph).run, graph.dtype, signature=graph.signature).rel_l2


def packages(graph: GraphFile) -> list[Path]:
    return [graph.path.parent.parent / name for name in graph.stored["packages"]]


def features(package: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs as a package declares them: name to (dtype, shape)."""
    description = ct.utils.load_spec(str(package)).description

    def arrays(ports: Any) -> dict[str, Any]:
        found = {port.name: port.type.multiArrayType for port in ports}
        return {name: (engine.DTYPES[array.dataType], tuple(array.shape)) for name, array in found.items()}

    return arrays(description.input), arrays(description.output)
