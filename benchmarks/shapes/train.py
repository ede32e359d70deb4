"""Train Shapes from nothing: `python -m ingot.benchmarks.shapes.train WORK_FOLDER [--save MODEL_FOLDER]`.

Autoencoder, text encoder, denoiser, then the measured quality. Every stage saves as it goes and resumes; the settings lie
in config.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from .common import CONFIG
from .quality import BAR, generate, table
from .text import train_text_encoder
from .tokenizer import save_tokenizer
from .unet import train_unet
from .vae import pictures, psnr, train_vae


def main() -> None:
    """Run every stage that is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="where unfinished training lives")
    parser.add_argument("--save", type=Path, help="where the finished checkpoint goes")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe = train_all(arguments.work)
    if arguments.save:
        save(pipe, arguments.save)
        print(f"saved to {arguments.save}")


def train_all(work: Path) -> StableDiffusionPipeline:
    """The trained pipeline, with its quality printed."""
    vae = train_vae(work)
    tokenizer = save_tokenizer(work / "tokenizer")
    encoder = train_text_encoder(work, tokenizer)
    scheduler = DDPMScheduler(**CONFIG["scheduler"])

    def assemble(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        return build_pipeline(vae, tokenizer, encoder, unet)

    def progress(unet: UNet2DConditionModel) -> str:
        return table(*generate(assemble(unet), count=50), bar=None)

    pipe = assemble(train_unet(work, vae, tokenizer, encoder, scheduler, progress))
    print(f"autoencoder, 300 held-out pictures: {psnr(vae, pictures(300, seed=1, held_out=True)):.2f} dB")
    print(table(*generate(pipe, count=300), bar=BAR))
    return pipe


def build_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A plain diffusers pipeline around the parts."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**CONFIG["scheduler"], **CONFIG["sampling"]),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write the checkpoint in the published layout: safetensors, float16 but for the small text encoder.

    transformers 5 loads a model in the dtype of its file, diffusers in float32: with a float16 text encoder a plain
    `from_pretrained` makes a pipeline whose parts do not fit each other.

    transformers 5 writes `CLIPTextModel` without the `text_model.` prefix and only `tokenizer.json`; readers with
    transformers 4 then start from random text weights with only a warning. So both are written as checkpoints have them.
    """
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(folder)
    save_tokenizer(folder / "tokenizer")
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    names = {key: value.float().contiguous() for key, value in pipe.text_encoder.state_dict().items()}
    prefixed = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in names.items()}
    save_file(prefixed, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes them for the owner alone
    # only the options that were chosen, as published checkpoints have it: another scheduler then keeps its own defaults
    chosen = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": diffusers.__version__,
        **CONFIG["scheduler"],
        **CONFIG["sampling"],
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(chosen))
    for config in folder.rglob("*config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
