"""Latent consistency models without PyTorch against diffusers' own pipelines: same seed, same latents within 1e-4 (`eager`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ingot import InputError
from ingot.runtimes import schedulers
from ingot.runtimes.noise import Generator

from . import tiny
from .eager import ATOL, Pair, pair, picture, require_equal

lcm, sd = pair(tiny.lcm), pair(tiny.sd)

IMG2IMG = "LatentConsistencyModelImg2ImgPipeline"
CALLS: dict[str, dict[str, Any]] = {
    "one prompt": {},
    "another size": {"size": (24, 40)},
    "a batch of prompts, two pictures each": {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
    "another guidance": {"guidance_scale": 2.0},
    "without guidance": {"guidance_scale": 1.0},
    "distilled otherwise": {"original_inference_steps": 100, "num_inference_steps": 8},
    "one step": {"num_inference_steps": 1},
    "a schedule": {"timesteps": [999, 759, 499, 259], "num_inference_steps": None},
    "a seed for each": {"prompt": ["a cat", "a dog"], "seed": [3, 4]},
}


@pytest.mark.parametrize("name", CALLS)
def test_text_to_image_equals_diffusers(lcm: Pair, name: str) -> None:
    call = {"num_inference_steps": 4, **CALLS[name]}
    height, width = call.pop("size", (32, 32))
    require_equal(lcm.both(**call, height=height, width=width))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_image_to_image_equals_diffusers(lcm: Pair, name: str, strength: float) -> None:
    call = {"num_inference_steps": 4, **CALLS[name]}
    height, width = call.pop("size", (32, 32))
    require_equal(lcm.both(IMG2IMG, **call, image=picture(height, width), strength=strength))


def test_latents_stand_for_the_noise_and_for_the_picture(lcm: Pair) -> None:
    import torch

    given = Generator(5).randn((1, 4, 16, 16))
    for name, more in ((None, {"height": 32, "width": 32}), (IMG2IMG, {"image": picture(32, 32)})):
        call = {"prompt": "a cat", "num_inference_steps": 3, "output_type": "latent", **more}
        expected = lcm.theirs(name)(
            **call, latents=torch.from_numpy(given), generator=torch.Generator().manual_seed(0)
        ).images
        ours = lcm.ours(name)(**call, latents=given, seed=0, progress=False).images
        require_equal((ours, expected.detach().numpy()))


def test_the_plain_pipelines_take_the_same_unet(lcm: Pair) -> None:
    call = {"num_inference_steps": 4, "guidance_scale": 5.0}
    require_equal(lcm.both("StableDiffusionPipeline", **call, height=32, width=32))
    require_equal(lcm.both("StableDiffusionImg2ImgPipeline", **call, image=picture(32, 32), strength=0.5))


@pytest.mark.parametrize("guidance_scale", [1.0, 1.8])
def test_a_plain_unet_runs_in_a_few_consistent_steps(sd: Pair, guidance_scale: float) -> None:
    """As with LCM-LoRA fused into it: the plain pipeline, the doubled batch, LCM's scheduler."""
    call = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "scheduler": "LCMScheduler"}
    require_equal(sd.both(**call, height=32, width=32))
    require_equal(sd.both("StableDiffusionImg2ImgPipeline", **call, image=picture(32, 32), strength=0.6))


def test_a_step_costs_one_row_whatever_the_guidance(lcm: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, unet = [], lcm.parts["engines"]["unet"]
    run = unet.run
    monkeypatch.setattr(unet, "run", lambda inputs: rows.append(len(inputs["sample"])) or run(inputs))
    lcm.ours()("a cat", num_inference_steps=2, guidance_scale=8.0, height=32, width=32, progress=False)
    assert rows == [1, 1]


def test_the_last_prediction_is_the_picture(lcm: Pair) -> None:
    ours = lcm.ours()
    call = {"num_inference_steps": 3, "height": 32, "width": 32, "seed": 0}
    states = [(state.latents, state.denoised) for state in ours.steps("a cat", **call)]
    assert np.abs(states[0][0] - states[0][1]).max() > ATOL  # noised again between the steps
    made = ours("a cat", **call, output_type="latent", progress=False).images
    np.testing.assert_array_equal(made, states[-1][1])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a negative prompt": ({"negative_prompt": "rain"}, "leave the negative prompt out"),
    "more steps than were distilled": ({"num_inference_steps": 60}, "60 steps are more than the 50 timesteps"),
    "more than the strength leaves": (
        {"image": picture(32, 32), "num_inference_steps": 20, "strength": 0.2},
        r"20 steps are more than the 10 timesteps that original_inference_steps=50 and strength=0\.2 leave",
    ),
    "no strength": ({"image": picture(32, 32), "strength": 0.0}, "strength must be above 0 and at most 1"),
    "a mask": (
        {"image": picture(32, 32), "mask_image": picture(32, 32)},
        "does text-to-image and image-to-image, not inpainting",
    ),
    "guidance for a part of the steps": ({"guidance_end": 0.5}, "for guidance by a doubled batch; this model has none"),
    "no whole number": ({"original_inference_steps": 2.5}, "original_inference_steps"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(lcm: Pair, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        lcm.ours()("a cat", progress=False, **call)


def test_another_scheduler_is_refused(lcm: Pair) -> None:
    ours = lcm.ours()
    ours.scheduler = schedulers.DDIMScheduler.from_config(ours.scheduler.config)
    with pytest.raises(InputError, match="runs with an LCMScheduler, not DDIMScheduler"):
        ours("a cat", progress=False)
