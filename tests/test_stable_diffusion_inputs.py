"""Pictures and masks that Stable Diffusion's tasks are given: what is taken, and what is refused, saying what would do."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter

import ingot
from ingot import InputError
from ingot.runtimes.errors import BundleError
from ingot.runtimes.images import to_mask
from ingot.runtimes.pipelines.crop import filled, region

from . import tiny
from .eager import Pair, mask, pair, picture, running

# diffusers asks for float32 under autocast before it estimates depth, and torch says that it has none
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

sd, inpaint, pix2pix = pair(tiny.sd), pair(tiny.inpaint), pair(tiny.pix2pix)
depth, upscaler, variation = pair(tiny.depth), pair(tiny.upscaler), pair(tiny.variation)

INPAINT = "StableDiffusionInpaintPipeline"


def blot(height: int, width: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask of one rectangle: left, top, right, bottom."""
    made = Image.new("L", (width, height))
    made.paste(255, box)
    return made


def arrays(*images: Any) -> list[Any]:
    return [np.asarray(image) for image in images]


def test_arrays_and_pictures_are_the_same_input(sd: Pair) -> None:
    call = {"num_inference_steps": 2, "strength": 0.5, "seed": 0, "output_type": "latent", "progress": False}
    image, white = picture(32, 32), mask(32, 32)
    ours = sd.ours(INPAINT)
    size = {"height": 32, "width": 32}
    expected = ours("a cat", image=image, mask_image=white, **size, **call).images
    pixels, whites = arrays(image, white)
    for form in (
        {"image": pixels, "mask_image": whites},
        {"image": pixels.astype(np.float32) / 255, "mask_image": whites > 0},
        {"image": [image], "mask_image": whites.astype(np.float64) / 255},
        {"image": pixels[None], "mask_image": white.convert("RGB")},
    ):
        np.testing.assert_allclose(
            ours("a cat", **form, **size, **call).images, expected, atol=1e-6, rtol=0
        )  # u / 255 in two dtypes


def test_what_lies_outside_of_the_mask_stays(sd: Pair) -> None:
    ours, white = sd.ours(INPAINT), mask(32, 32)
    image = picture(32, 32)
    made = ours(
        "a cat",
        image=image,
        mask_image=white,
        height=32,
        width=32,
        num_inference_steps=2,
        seed=0,
        output_type="latent",
        progress=False,
    )
    kept = ours.vae.encode(
        2 * np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255 - 1, ingot.Generator(0)
    )
    outside = 1 - to_mask(white, (32, 32))[:, :, ::2, ::2]
    np.testing.assert_allclose(
        made.images * outside, kept * outside, atol=1e-5, rtol=0
    )  # the encoder, run twice in float32


CROPS: dict[str, dict[str, Any]] = {
    "a corner": {"image": picture(60, 90), "mask_image": mask(60, 90), "padding_mask_crop": 4},
    "a wide strip": {"image": picture(50, 90), "mask_image": blot(50, 90, (5, 20, 80, 26)), "padding_mask_crop": 0},
    "wider than high pictures hold": {
        "image": picture(90, 40),
        "mask_image": blot(90, 40, (15, 10, 20, 85)),
        "padding_mask_crop": 2,
    },
    "with soft edges": {
        "image": picture(60, 60),
        "mask_image": blot(60, 60, (20, 20, 40, 40)).filter(ImageFilter.GaussianBlur(3)),
        "padding_mask_crop": 8,
    },
    "in another shape": {
        "image": picture(60, 60),
        "mask_image": blot(60, 60, (1, 30, 9, 39)),
        "padding_mask_crop": 3,
        "width": 64,
    },
}


@pytest.mark.parametrize("name", CROPS)
def test_a_cut_out_part_is_painted_as_in_diffusers(sd: Pair, name: str) -> None:
    call = {"num_inference_steps": 3, "strength": 0.8, "height": 32, "width": 32, **CROPS[name]}
    expected = sd.theirs(INPAINT)("a cat", **call, generator=torch.Generator().manual_seed(0)).images[0]
    ours = sd.ours(INPAINT)("a cat", **call, seed=0, progress=False).images[0]
    assert ours.size == call["image"].size
    # a value on a rounding edge may fall to either side; where the mask is grey, diffusers rounds twice more
    far = np.abs(np.asarray(ours).astype(int) - np.asarray(expected))
    assert far.max() <= 3
    assert (far > 1).mean() < 0.02
    as_array = sd.ours(INPAINT)("a cat", **call, seed=0, output_type="np", progress=False).images[0]
    np.testing.assert_array_equal(np.rint(as_array * 255), np.asarray(ours))


def test_what_is_cut_out_is_what_diffusers_cuts_out() -> None:
    processor, rng = VaeImageProcessor(), np.random.RandomState(0)
    for _ in range(200):
        width, height, tall, wide = (int(side) for side in rng.randint(8, 60, 4))
        left, top = int(rng.randint(width)), int(rng.randint(height))
        box = left, top, int(rng.randint(left + 1, width + 1)), int(rng.randint(top + 1, height + 1))
        white, padding = blot(height, width, box), int(rng.randint(10))
        found = region(white, (tall, wide), padding)
        assert found == processor.get_crop_region(white, wide, tall, pad=padding)
        part = picture(height, width).crop(found)
        np.testing.assert_array_equal(
            filled(part, (tall, wide)), processor.resize(part, tall, wide, resize_mode="fill")
        )


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a mask without a picture": ("sd", {"mask_image": mask(32, 32)}, "mask_image was given without image"),
    "an alpha channel": ("sd", {"image": picture(32, 32).convert("RGBA")}, r"alpha channel \(RGBA\).*convert\('RGB'\)"),
    "a mask with one": (
        "sd",
        {"image": picture(32, 32), "mask_image": mask(32, 32).convert("LA")},
        r"mask_image has an alpha channel \(LA\)",
    ),
    "an array of another size": (
        "sd",
        {"image": np.zeros((16, 32, 3), np.uint8), "height": 32, "width": 32},
        "image is an array of 16x32 pixels, not 32x32",
    ),
    "a mask array of another size": (
        "sd",
        {"image": picture(32, 32), "mask_image": np.zeros((16, 16)), "height": 32, "width": 32},
        "mask_image is an array of 16x16 pixels, not 32x32",
    ),
    "no picture at all": ("sd", {"image": "cat.png"}, "image must be a PIL image, an array .* not str"),
    "an empty list": ("sd", {"image": []}, "image is an empty list"),
    "values out of range": (
        "sd",
        {"image": np.full((32, 32, 3), 2.0)},
        r"floats in 0\.\.1, not float64 in 2\.0\.\.2\.0",
    ),
    "pictures of two sizes": ("sd", {"image": arrays(picture(32, 32), picture(16, 16))}, "16x16 pixels, not 32x32"),
    "pictures that do not divide": ("sd", {"image": [picture(32, 32)] * 2}, "2 of image for 1 pictures"),
    "masks that do not divide": (
        "sd",
        {"prompt": ["a"] * 3, "image": picture(32, 32), "mask_image": [mask(32, 32)] * 2},
        "2 of mask_image for 3 pictures",
    ),
    "strength above 1": (
        "sd",
        {"image": picture(32, 32), "strength": 1.5},
        "strength must be a share from 0 to 1, not 1.5",
    ),
    "strength below 0": ("sd", {"image": picture(32, 32), "strength": -0.1}, "strength must be a share from 0 to 1"),
    "no step left": (
        "sd",
        {"image": picture(32, 32), "strength": 0.1},
        "strength=0.1 leaves none of 5 steps: more steps, or .* 0.2",
    ),
    "a word as strength": (
        "sd",
        {"image": picture(32, 32), "strength": "much"},
        "strength must be a number, not 'much'",
    ),
    "strength without a picture": ("sd", {"strength": 0.5}, "text-to-image .* starts from noise"),
    "an unknown argument": (
        "sd",
        {"image_strength": 0.5},
        "unknown argument of StableDiffusionPipeline 'image_strength'; available: .*strength",
    ),
    "another family's argument": (
        "sd",
        {"noise_level": 5},
        "unknown argument of StableDiffusionPipeline 'noise_level'",
    ),
    "a margin without a mask": ("sd", {"image": picture(32, 32), "padding_mask_crop": 4}, "give image and mask_image"),
    "a margin below 0": (
        "sd",
        {"image": picture(32, 32), "mask_image": mask(32, 32), "padding_mask_crop": -1},
        "padding_mask_crop must be a whole number of pixels, from 0 on, not -1",
    ),
    "a margin around an array": (
        "sd",
        {"image": np.asarray(picture(32, 32)), "mask_image": mask(32, 32), "padding_mask_crop": 4},
        "padding_mask_crop wants image as one PIL image, not ndarray",
    ),
    "a margin around nothing": (
        "sd",
        {"image": picture(32, 32), "mask_image": Image.new("L", (32, 32)), "padding_mask_crop": 4},
        "mask_image is black",
    ),
    "a mask of another size to cut by": (
        "sd",
        {"image": picture(32, 32), "mask_image": mask(16, 32), "padding_mask_crop": 4},
        r"mask of the picture's size \(32, 32\), not \(32, 16\)",
    ),
    "text alone for inpainting": (
        "inpaint",
        {},
        "takes 9 channels, and text-to-image .* it wants image and mask_image",
    ),
    "a picture alone for inpainting": ("inpaint", {"image": picture(32, 32)}, "takes 9 channels, and image-to-image"),
    "text alone for editing": ("pix2pix", {}, "does image-to-image, not text-to-image: give image"),
    "a mask for editing": ("pix2pix", {"image": picture(32, 32), "mask_image": mask(32, 32)}, "leave mask_image out"),
    "strength for editing": ("pix2pix", {"image": picture(32, 32), "strength": 0.5}, "starts from noise, and has none"),
    "a picture's guidance in words": (
        "pix2pix",
        {"image": picture(32, 32), "image_guidance_scale": "1"},
        "image_guidance_scale must be a number",
    ),
    "too much noise": (
        "upscaler",
        {"image": picture(32, 32), "noise_level": 351},
        "noise_level must be a whole number from 0 to 350, not 351",
    ),
    "half a level": ("upscaler", {"image": picture(32, 32), "noise_level": 0.5}, "noise_level must be a whole number"),
    "a text for variations": ("variation", {"image": picture(32, 32)}, "takes no prompt: leave it out"),
    "depth of no picture": ("depth", {}, "does image-to-image, not text-to-image: give image"),
    "depths that do not divide": (
        "depth",
        {"image": picture(32, 32), "depth_map": np.random.RandomState(0).rand(2, 8, 8)},
        "2 of depth_map for 1 pictures",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(request: pytest.FixtureRequest, name: str) -> None:
    checkpoint, call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(checkpoint).ours()(
            **{"prompt": "a", "num_inference_steps": 5, "progress": False, **call}
        )


def test_a_bundle_without_an_encoder_cannot_read_pictures(sd: Pair) -> None:
    blind = running({**sd.parts, "engines": {r: e for r, e in sd.parts["engines"].items() if r != "vae_encoder"}})
    with pytest.raises(InputError, match="no vae_encoder to read it"):
        blind("a cat", image=picture(32, 32), progress=False)


def test_an_upscaler_without_its_second_scheduler_is_refused(upscaler: Pair) -> None:
    bundle = upscaler.parts["bundle"]
    assert bundle.manifest.schedulers["low_res_scheduler"]["_class_name"] == "DDPMScheduler"
    poorer = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, schedulers={}))
    with pytest.raises(BundleError, match="needs a low_res_scheduler"):
        running({**upscaler.parts, "bundle": poorer})
