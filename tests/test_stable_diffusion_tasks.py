"""Stable Diffusion's tasks without PyTorch against diffusers' own pipelines: same seed, same latents within 1e-4 (`eager`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ingot
from ingot import InputError
from ingot.runtimes import schedulers
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.images import resize_cubic, to_pictures
from ingot.runtimes.pipelines.depth_to_image import estimator_pixels

from . import tiny
from .eager import ATOL, Pair, mask, pair, picture, require_equal, running

# diffusers asks for float32 under autocast before it estimates depth, and torch says that it has none
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

sd, sd2, sd_distilled = pair(tiny.sd), pair(tiny.sd2), pair(tiny.sd_distilled)
inpaint, pix2pix, depth, upscaler = pair(tiny.inpaint), pair(tiny.pix2pix), pair(tiny.depth), pair(tiny.upscaler)
variation = pair(tiny.variation)

IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
# What every task is called with, beside its picture.
CALLS: dict[str, dict[str, Any]] = {
    "one prompt": {},
    "another size": {"size": (24, 40)},
    "a batch of prompts, two pictures each": {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
    "negative prompt": {"negative_prompt": "rain"},
    "without guidance": {"guidance_scale": 1.0},
    "ancestral": {"scheduler": "EulerAncestralDiscreteScheduler"},
    "a seed for each": {"prompt": ["a cat", "a dog"], "seed": [3, 4]},
}


def sized(name: str) -> tuple[dict[str, Any], int, int]:
    call = dict(CALLS[name])
    height, width = call.pop("size", (32, 32))
    return call, height, width


@pytest.mark.parametrize("name", CALLS)
def test_image_to_image_equals_diffusers(sd: Pair, name: str) -> None:
    call, height, width = sized(name)
    require_equal(sd.both(IMG2IMG, image=picture(height + 1, width), strength=0.6, **call))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("made_for_it", [False, True])
def test_inpainting_equals_diffusers(sd: Pair, inpaint: Pair, name: str, made_for_it: bool) -> None:
    call, height, width = sized(name)
    call |= {"image": picture(height, width), "mask_image": mask(height, width), "height": height, "width": width}
    require_equal((inpaint if made_for_it else sd).both(INPAINT, **call, strength=0.7))


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.2])
@pytest.mark.parametrize("made_for_it", [False, True])
def test_inpainting_at_any_strength(sd: Pair, inpaint: Pair, strength: float, made_for_it: bool) -> None:
    call = {"image": picture(38, 26), "mask_image": mask(32, 32, 2), "height": 32, "width": 32, "strength": strength}
    require_equal((inpaint if made_for_it else sd).both(INPAINT, **call))


# diffusers' flow matching adds no noise by timestep, and its UnCLIP takes other betas than Stable Diffusion's.
HALF_WAY = [name for name in schedulers.SCHEDULERS if not name.startswith(("FlowMatch", "UnCLIP"))]


@pytest.mark.parametrize("scheduler", HALF_WAY)
def test_every_scheduler_begins_half_way_as_in_diffusers(sd: Pair, scheduler: str) -> None:
    call = {"image": picture(32, 32), "strength": 0.7, "num_inference_steps": 5, "scheduler": scheduler}
    require_equal(sd.both(IMG2IMG, **call))
    require_equal(sd.both(INPAINT, **call, mask_image=mask(32, 32), height=32, width=32))


@pytest.mark.parametrize("name", CALLS)
def test_depth_to_image_equals_diffusers(depth: Pair, name: str) -> None:
    call, height, width = sized(name)
    require_equal(depth.both(image=picture(height, width), strength=0.6, **call))


def test_a_depth_map_stands_for_the_estimator(depth: Pair) -> None:
    image, given = picture(32, 24), np.random.RandomState(0).rand(1, 40, 30).astype(np.float32)
    ours, _ = depth.both(image=image)
    theirs = depth.pipe(
        "a cat", image=image, depth_map=torch.from_numpy(given), num_inference_steps=5, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images.numpy()  # fmt: skip
    call = {"image": image, "num_inference_steps": 5, "output_type": "latent", "seed": 0, "progress": False}
    require_equal((depth.ours()("a cat", **call, depth_map=given).images, theirs))
    require_equal((depth.ours()("a cat", **call, depth_map=given[0]).images, theirs))
    assert np.abs(ours - theirs).max() > ATOL


def test_without_map_and_estimator_depth_is_asked_for(depth: Pair) -> None:
    ours = running(
        {**depth.parts, "engines": {r: e for r, e in depth.parts["engines"].items() if r != "depth_estimator"}}
    )
    with pytest.raises(InputError, match=r"depth_map is needed, an array \(height, width\).*no depth_estimator"):
        ours("a cat", image=picture(32, 32), progress=False)
    with pytest.raises(InputError, match="depth_map is the same everywhere"):
        ours("a cat", image=picture(32, 32), depth_map=np.ones((8, 8)), progress=False)
    with pytest.raises(InputError, match=r"depth_map must be an array .* not of shape \(4,\)"):
        ours("a cat", image=picture(32, 32), depth_map=[1, 2, 3, 4], progress=False)


@pytest.mark.parametrize(
    "options", [{}, {"keep_aspect_ratio": True, "ensure_multiple_of": 16}, {"resample": 2, "do_normalize": False}]
)
def test_estimators_see_what_transformers_shows_them(options: dict[str, Any]) -> None:
    from transformers import DPTImageProcessor

    processor = DPTImageProcessor(**{"size": {"height": 48, "width": 64}, **options})
    image = picture(50, 90)
    expected = processor(images=[image], return_tensors="np").pixel_values
    ours = estimator_pixels(to_pictures(image), processor.to_dict())
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)  # one rounding of values about 1


@pytest.mark.parametrize("size", [(8, 12), (31, 17), (24, 36)])
def test_cubic_resizing_is_that_of_torch(size: tuple[int, int]) -> None:
    planes = np.random.RandomState(0).randn(2, 1, 24, 36).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(planes), size=size, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_cubic(planes, size), expected.numpy(), atol=1e-5, rtol=0)  # float32, 16 products


EDITS: dict[str, dict[str, Any]] = {
    **CALLS,
    "two guidances": {"guidance_scale": 5.0, "image_guidance_scale": 2.5},
    "too little of the picture's for any": {"image_guidance_scale": 0.5},
}


@pytest.mark.parametrize("name", EDITS)
def test_editing_equals_diffusers(pix2pix: Pair, name: str) -> None:
    call = dict(EDITS[name])
    height, width = call.pop("size", (32, 32))
    require_equal(pix2pix.both(image=picture(height, width), **call))


def test_the_pictures_guidance_may_change_half_way(pix2pix: Pair) -> None:
    def run(scale: float) -> Any:
        for state in pix2pix.ours().steps("a cat", image=picture(32, 32), num_inference_steps=3, seed=0):
            state.image_guidance_scale = scale
        return state.latents

    assert np.abs(run(1.5) - run(3.0)).max() > ATOL


VARIED: dict[str, dict[str, Any]] = {
    "one picture": {},
    "another size": {"height": 24, "width": 40},
    "a batch of pictures, two of each": {"image": [picture(32, 32), picture(40, 36, 1)], "num_images_per_prompt": 2},
    "without guidance": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("name", VARIED)
def test_variations_equal_diffusers(variation: Pair, name: str) -> None:
    require_equal(variation.both(**{"image": picture(50, 40), "prompt": None, **VARIED[name]}))


UPSCALED: dict[str, dict[str, Any]] = {
    "one prompt": {},
    "another size": {"image": picture(23, 40)},
    "a batch of prompts": {"prompt": ["a cat", "a dog"], "image": [picture(32, 32), picture(32, 32, 1)]},
    "two pictures each": {"num_images_per_prompt": 2},
    "negative prompt": {"negative_prompt": "rain"},
    "without guidance": {"guidance_scale": 1.0},
    "without noise": {"noise_level": 0},
    "with much of it": {"noise_level": 300, "scheduler": "EulerDiscreteScheduler"},
    "a seed for each": {"prompt": ["a cat", "a dog"], "image": [picture(32, 32), picture(32, 32, 1)], "seed": [3, 4]},
}


@pytest.mark.parametrize("name", UPSCALED)
def test_upscaling_equals_diffusers(upscaler: Pair, name: str) -> None:
    require_equal(upscaler.both(**{"image": picture(32, 32), **UPSCALED[name]}))


def test_a_small_picture_for_several_prompts_is_repeated(upscaler: Pair) -> None:
    made = upscaler.ours()(
        ["a cat", "a dog"], image=picture(16, 16), num_inference_steps=1, seed=[0, 1], output_type="np", progress=False
    )
    assert made.images.shape == (2, 32, 32, 3)  # diffusers refuses it


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: CALLS[name] for name in ("one prompt", "another size", "negative prompt", "without guidance")},
    "a batch": {"prompt": ["a cat", "a dog on the moon"], "num_images_per_prompt": 2},
    "another scheduler": {"scheduler": "DPMSolverMultistepScheduler"},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("checkpoint", ["sd2", "sd_distilled"])
def test_other_checkpoints_equal_diffusers(request: pytest.FixtureRequest, checkpoint: str, name: str) -> None:
    call = dict(VARIANTS[name])
    height, width = call.pop("size", (32, 32))
    require_equal(request.getfixturevalue(checkpoint).both(**call, height=height, width=width))


def test_stable_diffusion_2_does_the_other_tasks(sd2: Pair) -> None:
    require_equal(sd2.both(IMG2IMG, image=picture(32, 32), strength=0.5))
    require_equal(sd2.both(INPAINT, image=picture(32, 32), mask_image=mask(32, 32), height=32, width=32, strength=0.5))


def test_export_holds_the_picture_against_diffusers(tmp_path: Path) -> None:
    """The whole way, by torch's graphs, which are the quickest to make, for the task that needs most: a further scheduler,
    latents of the given picture's size, a noise level."""
    pipe = tiny.upscaler(tmp_path / "parts")
    pipe.set_progress_bar_config(disable=True)
    path = ingot.export(pipe, tmp_path / "bundle", to="torch", progress=False)
    parity = Bundle.open(path).manifest.parity["torch"]
    assert (parity.height, parity.width) == (64, 64)  # 32 pixels, enlarged as many times as the latents are
    with ingot.load(path) as ours:
        made = ours("a cat", image=picture(16, 16), num_inference_steps=2, seed=0, output_type="np", progress=False)
    assert made.images.shape == (1, 32, 32, 3)
