"""What the loop costs outside the engines: `python -m ingot.benchmarks.loop_overhead [BUNDLE] [--size 512]`.

Stable Diffusion 1.5's sizes (77 tokens of 768 numbers, latents of an eighth of the picture), guidance 7.5, on one core. The
engines are Ingot's own for ONNX Runtime around a session that answers at once with arrays made before, so that everything
else is real: checks, casts, batches, guidance, the scheduler. Prints milliseconds a step for each scheduler and batch, then what
a picture costs once, all in processor time, which other work on the machine changes little. The bundle, by default Shapes cast
into a temporary folder, gives the tokenizer alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import ingot
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines.onnx import OnnxEngine
from ingot.runtimes.images import to_pil, to_unit
from ingot.runtimes.noise import Generator
from ingot.runtimes.pipelines.base import Parts
from ingot.runtimes.pipelines.stable_diffusion import StableDiffusion
from ingot.runtimes.schedulers import from_config
from ingot.runtimes.signature import Signature, TensorSpec
from ingot.runtimes.tokenizer import Tokenizer

SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIM": {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1},
    "Euler": {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1},
    "Euler ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", "steps_offset": 1},
    "DPM++ 2M": {"_class_name": "DPMSolverMultistepScheduler"},
    "DPM++ 2M SDE Karras": {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True,
    },
    "UniPC": {"_class_name": "UniPCMultistepScheduler"},
    "PNDM": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    "LCM": {"_class_name": "LCMScheduler"},
}  # fmt: skip
TRAINED: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPT = "a photograph of a lighthouse on a cliff above a stormy sea, dramatic light, highly detailed"
TOKENS, WIDTH, FACTOR = 77, 768, 8


class Session:
    """Stands for an inference session: answers with arrays that it has made before."""

    def __init__(self, answers: Callable[[Mapping[str, NDArray[Any]]], list[tuple[int, ...]]]) -> None:
        self._answers = answers
        self._made: dict[tuple[tuple[int, ...], ...], list[NDArray[Any]]] = {}

    def run(self, _: list[str], fed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As ONNX Runtime's; the outputs' shapes follow from the inputs'."""
        shapes = tuple(self._answers(fed))
        if shapes not in self._made:
            self._made[shapes] = [Generator(0).randn(shape) for shape in shapes]
        return self._made[shapes]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--calls", type=int, default=15)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(options.bundle or ingot.export("shapes", Path(folder) / "shapes"), hashes=False)
        tokenizer = Tokenizer(bundle.file(next(iter(bundle.manifest.tokenizers.values()))))
    pipe = pipeline(tokenizer)
    print(f"\n| ms a step outside the engines, {options.size}x{options.size} | batch | median | least | most | first |")
    print("|---|---|---|---|---|---|")
    for name, config in SCHEDULERS.items():
        pipe.scheduler = from_config(TRAINED | config)
        for batch in options.batch:
            first, later = timed(pipe, options.size, batch, options.steps, options.calls)
            print(
                f"| {name} | {batch} | {statistics.median(later):.3f} | {min(later):.3f} | {max(later):.3f} | {first:.3f} |"
            )
    print("\n| once, ms | median | least | most |\n|---|---|---|---|")
    for name, values in once(pipe, tokenizer, options.size, options.calls).items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


def pipeline(tokenizer: Tokenizer) -> StableDiffusion:
    """Stable Diffusion 1.5 without its graphs."""
    latents, embeds = ("batch", 4, "height/8", "width/8"), ("batch", TOKENS, WIDTH)
    unet = Signature(
        (
            TensorSpec("sample", "float32", latents),
            TensorSpec("timestep", "float32", ()),
            TensorSpec("encoder_hidden_states", "float32", embeds),
        ),
        (TensorSpec("out_sample", "float32", latents),),
    )
    text = Signature(
        (TensorSpec("input_ids", "int64", ("batch", TOKENS)),), (TensorSpec("last_hidden_state", "float32", embeds),)
    )
    decoder = Signature(
        (TensorSpec("latent_sample", "float32", latents),),
        (TensorSpec("sample", "float32", ("batch", 3, "height", "width")),),
    )
    engines = {
        "text_encoder": OnnxEngine(Session(lambda fed: [(len(fed["input_ids"]), TOKENS, WIDTH)]), text),
        "unet": OnnxEngine(Session(lambda fed: [fed["sample"].shape]), unet),
        "vae_decoder": OnnxEngine(Session(_decoded), decoder),
    }
    vae = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "scaling_factor": 0.18215}
    configs: dict[str, dict[str, Any]] = {"unet": {"sample_size": 64, "in_channels": 4}, "vae_decoder": vae}
    scheduler = from_config(TRAINED | SCHEDULERS["DDIM"])
    return StableDiffusion(Parts("StableDiffusionPipeline", engines, {"tokenizer": tokenizer}, scheduler, configs))


def _decoded(fed: Mapping[str, NDArray[Any]]) -> list[tuple[int, ...]]:
    rows, _, height, width = fed["latent_sample"].shape
    return [(rows, 3, height * FACTOR, width * FACTOR)]


def timed(pipe: StableDiffusion, size: int, batch: int, steps: int, calls: int) -> tuple[float, list[float]]:
    """Milliseconds: from a call to its first step's end, the median; and the median step after it, of each call."""
    firsts, later = [], []
    for _ in range(calls + 1):
        marks = [time.process_time()]
        run = pipe.steps(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=7.5,
            height=size,
            width=size,
            num_images_per_prompt=batch,
            seed=0,
        )
        for _ in run:
            marks.append(time.process_time())
        spans = [(end - begin) * 1e3 for begin, end in pairwise(marks)]
        firsts.append(spans[0])
        later.append(statistics.median(spans[1:]))
    return statistics.median(firsts[1:]), later[1:]  # the first call is a warm-up


def once(pipe: StableDiffusion, tokenizer: Tokenizer, size: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds of what is done once a picture."""
    latents = (1, 4, size // FACTOR, size // FACTOR)
    decoded = Generator(0).randn((1, 3, size, size))
    pictures = to_unit(decoded)
    tasks: dict[str, Callable[[], object]] = {
        "the prompt's tokens": lambda: tokenizer([PROMPT]),
        "first noise": lambda: Generator(0).randn(latents),
        "the decoder's answer to 0..1": lambda: to_unit(decoded),
        "0..1 to a PIL picture": lambda: to_pil(pictures),
        "20 steps of DPM++ 2M, with all of these": lambda: pipe(PROMPT, num_inference_steps=20, seed=0, progress=False),
    }
    pipe.scheduler = from_config(TRAINED | SCHEDULERS["DPM++ 2M"])
    found: dict[str, list[float]] = {}
    for name, task in tasks.items():
        task()
        for _ in range(calls):
            began = time.process_time()
            task()
            found.setdefault(name, []).append((time.process_time() - began) * 1e3)
    return found


if __name__ == "__main__":
    main()
