"""`make demo`: cast Shapes, verify it, make eight pictures with ONNX Runtime and with diffusers, and compare them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import ingot
from ingot.runtimes.images import grid
from ingot.runtimes.metrics import image_psnr
from ingot.shapes import MODEL_DIR, score

PROMPTS = [
    "a large red ring on a blue background",
    "a small yellow star at the left on a purple background",
    "a medium white cross at the top on a green background",
    "a large black triangle on an orange background",
    "a medium purple circle at the right on a yellow background",
    "a small blue square at the bottom on a white background",
    "a large green star on a black background",
    "a medium orange ring at the left on a red background",
]
STEPS, GUIDANCE, SEEDS = 20, 4.0, list(range(len(PROMPTS)))


def main() -> None:
    """Run the demo into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    folder.mkdir(parents=True, exist_ok=True)
    bundle = ingot.export("shapes", folder / "shapes-bundle", overwrite=True, command="make demo")
    for line in ingot.verify(bundle, deep=True):
        print(line)
    ours = with_ingot(bundle)
    theirs = with_diffusers()
    for name, pictures in (("onnxruntime", ours), ("diffusers", theirs)):
        grid(pictures, columns=4).resize((1024, 512), Image.Resampling.NEAREST).save(folder / f"{name}.png")
        print(
            f"{name}: {folder / f'{name}.png'}; the checker finds right: "
            + ", ".join(f"{k} {v:.0%}" for k, v in score(PROMPTS, pictures).items())
        )
    psnr = image_psnr(*(np.stack([np.asarray(p) for p in ps]).astype(np.float32) / 255 for ps in (theirs, ours)))
    print(f"PSNR of the two grids: {'they are equal' if np.isinf(psnr) else f'{psnr:.1f} dB'}")


def with_ingot(bundle: Path) -> list[Image.Image]:
    """Eight pictures by the bundle, without PyTorch in the loop."""
    from ingot.runtimes.schedulers import DPMSolverMultistepScheduler

    pipe = ingot.load(bundle)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pictures: list[Image.Image] = pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=SEEDS).images
    return pictures


def with_diffusers() -> list[Image.Image]:
    """The same eight by diffusers, float32."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pictures: list[Image.Image] = pipe(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds
    ).images
    return pictures


if __name__ == "__main__":
    main()
