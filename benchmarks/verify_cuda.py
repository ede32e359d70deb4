"""Parity and speed on a GPU, in one command: `python -m ingot.benchmarks.verify_cuda`.

Parity: every graph of Shapes, in float32 without TF32 and in bfloat16, opened on the GPU and held against the torch
component as recorded on the CPU. Speed: the UNet of Stable Diffusion XL (2.6 billion random weights) in bfloat16 at
1024x1024 with guidance, as exported, with channels last, and compiled; by estimate 40 GB of memory and 12 GB on the GPU.
Not yet run on a GPU. Ends with status 1 where there is no such device. `--device cpu --tiny` goes the same way anywhere,
with a UNet of a few layers: it tests this script, not a GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ingot.exporters import parity
from ingot.exporters.capture import capture
from ingot.exporters.checkpoint import load_checkpoint
from ingot.exporters.component import Component
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.exporters.trace import in_precision
from ingot.runtimes.engines.torch import devices, open_graph, report
from ingot.shapes import MODEL_DIR

from .torch_forms import far_off, interleaved, latents_of, open_and_run

# What stable-diffusion-xl-base-1.0 publishes in its configs: UNet, and the two text encoders' widths.
SDXL: dict[str, Any] = {
    "channels": (320, 640, 1280), "layers": 2, "heads": (5, 10, 20), "depths": (1, 2, 10), "text": (768, 1280), "time": 256,
    "vae": (128, 256, 512, 512), "latents": 128,
}  # fmt: skip
TINY: dict[str, Any] = {
    "channels": (32, 64, 64), "layers": 1, "heads": (2, 4, 4), "depths": (1, 1, 1), "text": (32, 32), "time": 8,
    "vae": (32, 64), "latents": 16,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "exported": {},
    "exported, channels last": {"channels_last": True},
    "compiled, default": {"compile": "default", "channels_last": True},
    "compiled, max-autotune": {"compile": "max-autotune", "channels_last": True},
}


def main() -> int:
    """Print both tables; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a UNet of a few layers, at 16x16 latents")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.device not in devices():
        kind = arguments.device.partition(":")[0]
        print(
            f"there is no {kind.upper()} device here, so nothing was measured: torch {torch.__version__} has "
            f"{', '.join(devices())} ({report().get(kind, 'unknown kind')})"
        )
        return 1
    print(f"torch {torch.__version__}, {arguments.device}: {report()[arguments.device.partition(':')[0]]}")
    with tempfile.TemporaryDirectory() as folder:
        verify_shapes(Path(folder), arguments.device)
        sizes = TINY if arguments.tiny else SDXL
        forms = dict(list(FORMS.items())[:2]) if arguments.tiny else FORMS
        measure(Path(folder), arguments.device, sizes, forms, arguments.rounds)
    return 0


def verify_shapes(folder: Path, device: str) -> None:
    """Every graph of Shapes on the device, against its recorded calls. Raises ParityError past the limit."""
    print(
        "\n| Shapes, relative L2 | float32 (limit 1e-4) | bfloat16 (limit 1e-1) | run in float32, ms | in bfloat16, ms |"
    )
    print("|---|---|---|---|---|")
    for component in capture(load_checkpoint("shapes").pipe):
        far, took = [], []
        inputs = {name: tensor.numpy() for name, tensor in component.calls[0].inputs.items()}
        for dtype in ("float32", "bfloat16"):
            graph = export(component, folder / dtype / component.role, dtype=dtype)
            engine = open_graph(graph.path, graph.signature, stored=graph.stored, device=device, tf32=False)
            far.append(parity.check(component, engine.run, dtype, signature=graph.signature).rel_l2)
            took.append(statistics.median(interleaved({dtype: partial(engine.run, inputs)}, 10)[dtype]) * 1e3)
            engine.close()
        print(f"| {component.role} | {far[0]:.1e} | {far[1]:.1e} | {took[0]:.1f} | {took[1]:.1f} |", flush=True)


def measure(folder: Path, device: str, sizes: dict[str, Any], forms: dict[str, dict[str, Any]], rounds: int) -> None:
    """Seconds of a step of the UNet in bfloat16, each form by itself: two of them may not fit the GPU together.

    The first form is held against the torch component in float32 on the CPU, the others against the first.
    """
    component = sdxl_unet(sizes)
    graph = export(component, folder / "sdxl", dtype="bfloat16")
    inputs = latents_of(component, sizes["latents"])
    print(
        f"\nUNet of {sum(p.numel() for p in component.source.parameters()) / 1e6:,.0f} M parameters, bfloat16, "
        f"{graph.path.stat().st_size / 1e9:.2f} GB, {sizes['latents']}x{sizes['latents']} latents, batch 2, {rounds} runs\n"
    )
    parity_far = parity_of(component, graph, device)
    print("| form | open, s | first run, s | step, s: median | least | most | relative L2 | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    expected: dict[str, Any] = {}
    for name, options in forms.items():
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)
        run, opening, first = open_and_run(graph, inputs, options, device)
        seconds = interleaved({name: run}, rounds)[name]
        far = far_off(expected, run()) if expected else parity_far
        expected = expected or run()
        peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.startswith("cuda") else "-"
        print(
            f"| {name} | {opening:.2f} | {first:.2f} | {statistics.median(seconds):.4f} | {min(seconds):.4f} | "
            f"{max(seconds):.4f} | {far:.1e} | {peak} |",
            flush=True,
        )
        del run
        torch.compiler.reset()


def parity_of(component: Component, graph: GraphFile, device: str) -> float:
    """How far the graph is from the recorded calls in float32, printed beside how far diffusers' own module in bfloat16 is.

    Random weights may put both past a certificate's limit: the tiny UNet's module is 8.4e-2 off by itself on a recording
    whose latents are 0.01, and its graph exactly as far. So the graph may be as far as the limit, or a quarter farther
    than the module. Raises ParityError beyond both.
    """
    own = in_precision(component.module, graph.dtype)

    def eager(arrays: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            found = own.named_outputs(*(torch.from_numpy(arrays[spec.name]) for spec in graph.signature.inputs))
        return {spec.name: tensor.numpy() for spec, tensor in zip(graph.signature.outputs, found.values(), strict=True)}

    module = parity.check(component, eager, graph.dtype, signature=graph.signature, limit=math.inf).rel_l2
    limit = max(parity.LIMITS[graph.dtype], 1.25 * module)
    engine = open_graph(graph.path, graph.signature, stored=graph.stored, device=device)
    far = parity.check(component, engine.run, graph.dtype, signature=graph.signature, limit=limit).rel_l2
    engine.close()
    print(f"relative L2 to float32: graph {far:.2e}, diffusers' module in {graph.dtype} on the CPU {module:.2e}\n")
    return far


def sdxl_unet(sizes: dict[str, Any]) -> Component:
    """The denoiser of a Stable Diffusion XL with random weights. Shapes' tokenizer stands in for CLIP's, offline."""
    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    wide, first = sizes["text"]
    depth = len(sizes["channels"])
    unet = UNet2DConditionModel(
        sample_size=sizes["latents"], block_out_channels=sizes["channels"], layers_per_block=sizes["layers"],
        attention_head_dim=sizes["heads"], transformer_layers_per_block=sizes["depths"], use_linear_projection=True,
        norm_num_groups=32 if sizes["channels"][0] % 32 == 0 else 16, cross_attention_dim=wide + first,
        addition_embed_type="text_time", addition_time_embed_dim=sizes["time"],
        projection_class_embeddings_input_dim=6 * sizes["time"] + first,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (depth - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (depth - 1), "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=sizes["vae"], latent_channels=4, sample_size=sizes["latents"] * 8,
        down_block_types=("DownEncoderBlock2D",) * len(sizes["vae"]), up_block_types=("UpDecoderBlock2D",) * len(sizes["vae"]),
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae, unet=unet.eval(), text_encoder=CLIPTextModel(_text(wide, words)),
        text_encoder_2=CLIPTextModelWithProjection(_text(first, words)), tokenizer=words, tokenizer_2=words,
        scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return next(component for component in capture(pipe) if component.role == "unet")


def _text(width: int, words: CLIPTokenizer) -> CLIPTextConfig:
    """Two layers: the UNet sees the width only."""
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
