"""What one bundle does with a picture: `python -m ingot.benchmarks.tour out/tour`.

Shapes makes a picture; image-to-image makes another of it; inpainting paints a part anew; a LoRA brings a shape that it never
saw. One strip for each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ingot
from ingot.runtimes.schedulers import DPMSolverMultistepScheduler
from ingot.shapes import LORA_DIR

SIDE = 192  # of a picture in a strip: 64 pixels, three times as large
START = "a large red ring on a blue background"
CALL: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 4.0, "progress": False}


def main() -> None:
    """Make the bundle where there is none, and the strips."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/tour")
    bundle = folder / "shapes-bundle"
    if not bundle.exists():
        ingot.export("shapes", bundle, to="onnx")
    with ingot.load(bundle) as pipe:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        start = pipe(START, seed=0, **CALL).images[0]
        strip([start, *image_to_image(pipe, start)]).save(folder / "image-to-image.png")
        strip([start, *inpainting(pipe, start)]).save(folder / "inpainting.png")
        strip(lora(pipe)).save(folder / "lora.png")
    print(f"pictures: {', '.join(str(file) for file in sorted(folder.glob('*.png')))}")


def image_to_image(pipe: Any, start: Image.Image) -> list[Image.Image]:
    """The same picture towards another prompt, by how much of the noise is put back."""
    prompt = "a large green star on a blue background"
    return [pipe(prompt, image=start, strength=share, seed=1, **CALL).images[0] for share in (0.3, 0.6, 0.9)]


def inpainting(pipe: Any, start: Image.Image) -> list[Image.Image]:
    """A mask over the middle, and what two prompts put there."""
    mask = np.zeros((start.height, start.width), np.uint8)
    mask[8:-8, 8:-8] = 255
    prompts = ("a large yellow star on a blue background", "a small white circle on a blue background")
    made = [pipe(prompt, image=start, mask_image=mask, seed=1, **CALL).images[0] for prompt in prompts]
    return [Image.fromarray(mask).convert("RGB"), *made]


def lora(pipe: Any) -> list[Image.Image]:
    """One prompt by the LoRA's scale: none, half, whole, and without it again."""
    prompt, file = "a large red heart on a white background", LORA_DIR / "heart.safetensors"
    made = []
    for scale in (0.0, 0.5, 1.0, 0.0):
        pipe.set_loras([(file, scale)] if scale else [])
        made.append(pipe(prompt, seed=3, **CALL).images[0])
    return made


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, enlarged without smoothing."""
    gap = 8
    sheet = Image.new("RGB", (len(pictures) * (SIDE + gap) - gap, SIDE), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (index * (SIDE + gap), 0))
    return sheet


if __name__ == "__main__":
    main()
