"""T2I-Adapters without PyTorch against diffusers' own pipelines: same seed, same latents.

Tolerance on latents 1e-4, relative to the largest, as for ControlNets. The engines are the captured torch components.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ingot import InputError

from .eager import Pair, pair, picture, require_equal
from .tiny_controls import t2i_adapter, two_adapters, xl_adapter

one = pair(t2i_adapter)
two = pair(two_adapters)
xl = pair(xl_adapter)

A, B = picture(64, 64, seed=1), picture(64, 64, seed=2)
PROMPTS = ["a cat", "a red dog"]
ONE: dict[str, dict[str, Any]] = {
    "one prompt": {"image": A},
    "another size, a scale": {"image": picture(48, 80, seed=1), "adapter_conditioning_scale": 0.4},
    # as in diffusers, which pairs the pictures' features with the prompts in another order
    "prompts with a picture each, two of each": {"prompt": PROMPTS, "image": [A, B], "num_images_per_prompt": 2},
    "without guidance": {"image": A, "guidance_scale": 1.0, "num_images_per_prompt": 2},
}


@pytest.mark.parametrize("name", ONE)
def test_latents_equal_diffusers(t2i_adapter: Pair, name: str) -> None:
    require_equal(t2i_adapter.both(**ONE[name]))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_two_grey_adapters_equal_diffusers(two_adapters: Pair, guidance: float) -> None:
    pictures = [A.convert("L"), B.convert("L")]
    require_equal(two_adapters.both(image=pictures, adapter_conditioning_scale=[0.5, 1.5], guidance_scale=guidance))


XL: dict[str, dict[str, Any]] = {
    "the middle block's features too": {"image": A},
    "half of the steps, two of each": {
        "image": picture(48, 80, seed=1), "adapter_conditioning_factor": 0.5, "num_images_per_prompt": 2,
    },
    "none of the steps": {"image": A, "adapter_conditioning_factor": 0.0, "guidance_scale": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", XL)
def test_stable_diffusion_xl_equals_diffusers(xl_adapter: Pair, name: str) -> None:
    require_equal(xl_adapter.both(**XL[name]))


SECOND_ORDER: dict[str, dict[str, Any]] = {
    "all of the steps": {},
    "half of the steps": {"adapter_conditioning_factor": 0.5},
    "an early end": {"denoising_end": 0.6},
}


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_as_many_evaluations_are_steered_as_in_diffusers_where_a_step_has_several(
    xl_adapter: Pair, scheduler: str, name: str
) -> None:
    require_equal(xl_adapter.both(scheduler=scheduler, image=A, **SECOND_ORDER[name]))


def test_a_picture_is_read_once(t2i_adapter: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runs = t2i_adapter.parts["engines"]["adapter"], []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda inputs: runs.append(1) or run(inputs))
    call = {"image": A, "num_inference_steps": 4, "output_type": "latent", "progress": False}
    t2i_adapter.ours()("a cat", **call)
    assert len(runs) == 1
    t2i_adapter.ours()("a cat", adapter_conditioning_scale=0.0, **call)
    assert len(runs) == 1


def test_prompts_may_share_a_picture(t2i_adapter: Pair) -> None:
    """Which diffusers does not take."""
    pipe, call = (
        t2i_adapter.ours(),
        {"num_inference_steps": 2, "output_type": "latent", "progress": False, "seed": [1, 2]},
    )
    shared, each = (pipe(PROMPTS, image=image, **call).images for image in (A, [A, A]))
    np.testing.assert_allclose(shared, each, atol=1e-4, rtol=0)  # float32 by batches of other sizes


def test_without_a_picture_the_model_is_the_plain_one(t2i_adapter: Pair) -> None:
    require_equal(t2i_adapter.both("StableDiffusionPipeline", height=64, width=48))
    with pytest.raises(InputError, match=r"steers by a picture: .*pipeline='StableDiffusionPipeline'"):
        t2i_adapter.ours()("a cat")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an alpha channel": ({"image": A.convert("RGBA")}, r"control_image has an alpha channel \(RGBA\)"),
    "an array of another size": (
        {"image": np.zeros((32, 64, 3), np.uint8), "height": 64, "width": 64},
        "control_image is an array of 32x64 pixels, not 64x64",
    ),
    "pictures that do not count up": ({"prompt": PROMPTS, "image": [A, B, A]}, "3 control pictures for 2 prompts"),
    "scales that do not count up": (
        {"image": A, "adapter_conditioning_scale": [1.0, 0.5]},
        "adapter_conditioning_scale has 2 numbers for 1 models",
    ),
    "more than all of the steps": (
        {"image": A, "adapter_conditioning_factor": 1.5},
        r"adapter_conditioning_factor must be a share of the steps, from 0 to 1, not 1\.5",
    ),
    "a ControlNet's interval": (
        {"image": A, "control_guidance_end": 0.5},
        "control_guidance_end: this bundle has no ControlNet; export a pipeline with one",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(t2i_adapter: Pair, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        t2i_adapter.ours()(**{"prompt": "a cat", "progress": False, **call})


def test_sizes_must_divide_as_the_adapter_does(xl_adapter: Pair) -> None:
    with pytest.raises(InputError, match="width=66 is not a multiple of 4, as this model needs; 64 or 68 would do"):
        xl_adapter.ours()("a cat", image=A, height=64, width=66)


def test_a_grey_adapter_takes_no_array_in_colours(two_adapters: Pair) -> None:
    colours = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(InputError, match=r"reads grey pictures, an array \(height, width, 1\)"):
        two_adapters.ours()("a cat", image=[colours, colours])
