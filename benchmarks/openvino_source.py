"""Which way to OpenVINO: from the traced program or from ONNX? `python -m ingot.benchmarks.openvino_source [WORK_FOLDER]`.

A UNet of 128 and 256 channels with attention on both levels, random weights, latents of 32x32, a batch of 2. Each way converts
it in a process of its own, after the trace that they share; then the graphs run in turns, A B C A B C, on one thread. Seconds are of
the processor, so that what else the machine does counts little. Linux only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.openvino_graph import build
from ingot.exporters.targets import onnx
from ingot.exporters.trace import graph_signature, trace
from ingot.runtimes.metrics import compare
from ingot.shapes import MODEL_DIR

SOURCES = ("program", "decomposed", "onnx-20", "onnx-23")
ROUNDS = 9


def main() -> None:
    """Convert each way, run the graphs in turns, print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        figures = {source: _in_a_process(source, work) for source in SOURCES}
        for precision in _precisions():
            _run_in_turns(work, precision, figures)
    print("\n| |" + "|".join(SOURCES) + "|\n|---|" + "---|" * len(SOURCES))
    for name in next(iter(figures.values())):
        print(f"| {name} | " + " | ".join(f"{figures[source][name]:.4g}" for source in SOURCES) + " |")


def convert(source: str, work: Path) -> dict[str, float]:
    """Write the UNet as an OpenVINO model in `work/source`, with what it took."""
    component = mid_size_unet()
    program = trace(component)
    signature = graph_signature(component)
    folder = work / source
    folder.mkdir(parents=True, exist_ok=True)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use now
    before, began = _memory("VmRSS"), time.process_time()
    if source.startswith("onnx"):
        file = onnx.export(component, folder, opset=int(source.partition("-")[2]), external_bytes=0)
        model = ov.Core().read_model(file.path)
    else:
        model = build(program, signature, quick=source == "program")
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    seconds, peak = time.process_time() - began, _memory("VmHWM")
    call = component.calls[-1]
    batch = {spec.name: _to_size(call.inputs[spec.name].numpy()) for spec in signature.inputs}
    expected = component.run({name: torch.from_numpy(array) for name, array in batch.items()})
    arrays: Any = {**batch, "expected": expected["out_sample"].numpy()}
    np.savez(work / "call.npz", **arrays)
    kinds = [node.get_type_name() for node in model.get_ops()]
    return {
        "conversion, s": seconds,
        "memory above the model's, MiB": peak - before,
        "operations": sum(kind not in ("Constant", "Parameter", "Result") for kind in kinds),
        ".xml, kB": (folder / "openvino_model.xml").stat().st_size / 1e3,
        ".bin, MB": (folder / "openvino_model.bin").stat().st_size / 1e6,
    }


def mid_size_unet() -> Component:
    """The UNet as the pipeline calls it, recorded."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256), layers_per_block=2, cross_attention_dim=64, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8, sample_size=32)
    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    ))  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return next(component for component in capture(pipe) if component.role == "unet")


def _to_size(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An input of the recording at the benchmark's own size."""
    generator = np.random.default_rng(0)
    shape = {0: (), 3: (2, *array.shape[1:]), 4: (2, 4, 32, 32)}[array.ndim]
    return array if array.ndim == 0 else generator.standard_normal(shape, dtype=np.float32)


def _in_a_process(source: str, work: Path) -> dict[str, float]:
    code = "import json, sys, pathlib; from ingot.benchmarks.openvino_source import convert; "
    code += "print(json.dumps(convert(sys.argv[1], pathlib.Path(sys.argv[2]))))"
    done = subprocess.run([sys.executable, "-c", code, source, str(work)], stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _precisions() -> list[str]:
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["f32", *(["bf16"] if "BF16" in able else [])]


def _run_in_turns(work: Path, precision: str, figures: dict[str, dict[str, float]]) -> None:
    call = dict(np.load(work / "call.npz"))
    expected = call.pop("expected")
    graphs = {}
    for source in SOURCES:
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
        graphs[source] = ov.Core().compile_model(work / source / "openvino_model.xml", "CPU", settings)
        found = graphs[source](call)[0]
        figures[source][f"relative L2 from torch, {precision}"] = compare(expected, found).rel_l2
    times: dict[str, list[float]] = {source: [] for source in SOURCES}
    for _ in range(ROUNDS):
        for source, graph in graphs.items():
            began = time.process_time()
            graph(call)
            times[source].append(time.process_time() - began)
    for source, seconds in times.items():
        figures[source][f"a run in {precision}, median ms"] = 1000 * statistics.median(seconds)
        figures[source][f"a run in {precision}, least ms"] = 1000 * min(seconds)


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
