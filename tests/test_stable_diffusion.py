"""Stable Diffusion without PyTorch against diffusers' own pipeline: same seed, same latents, same pictures.

Tolerance on latents 1e-4 absolute: float32 graphs, whose rounding differs from torch's, over a few steps (numerics of the
acceptance of every family).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ingot
from ingot import InputError
from ingot.runtimes import schedulers

ATOL = 1e-4


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Any:
    return ingot.load(tiny_bundle)


@pytest.fixture(scope="module")
def theirs(tiny_sd: Any) -> Any:
    """diffusers' pipeline as loaded: in memory it would still know which scheduler options nobody gave."""
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(tiny_sd.folder, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def diffusers_latents(
    theirs: Any, scheduler: str | None = None, seeds: int | list[int] = 0, **call: Any
) -> NDArray[np.float32]:
    import diffusers
    import torch

    kept = theirs.scheduler
    if scheduler:
        theirs.scheduler = getattr(diffusers, scheduler).from_config(kept.config)
    several = isinstance(seeds, list)
    made = [torch.Generator().manual_seed(s) for s in (seeds if several else [seeds])]
    generators = made if several else made[0]
    latents: NDArray[np.float32] = theirs(**call, generator=generators, output_type="latent").images.numpy()
    theirs.scheduler = kept
    return latents


CALLS: dict[str, dict[str, Any]] = {
    "one prompt": {"prompt": "a cat"},
    "another size": {"prompt": "a cat", "height": 48, "width": 80},
    "a batch of prompts, two pictures each": {"prompt": ["a cat", "a dog on the moon"], "num_images_per_prompt": 2},
    "negative prompt": {"prompt": "a cat", "negative_prompt": "rain"},
    "negative prompts": {"prompt": ["a cat", "a dog"], "negative_prompt": ["rain", "fog"]},
    "without guidance": {"prompt": "a cat", "guidance_scale": 1.0},
    "rescaled guidance": {"prompt": "a cat", "guidance_scale": 9.0, "guidance_rescale": 0.7},
    "eta": {"prompt": "a cat", "eta": 0.5},
    "a prompt that is cut": {"prompt": "a cat " * 60},
}


@pytest.mark.parametrize("name", CALLS)
def test_latents_equal_diffusers(pipe: Any, theirs: Any, name: str) -> None:
    call = {"num_inference_steps": 4, "height": 64, "width": 64, **CALLS[name]}
    expected = diffusers_latents(theirs, "DDIMScheduler", **call)
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    ours = pipe(**call, seed=0, output_type="latent", progress=False).images
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("scheduler", schedulers.SCHEDULERS)
def test_every_scheduler_equals_diffusers(pipe: Any, theirs: Any, scheduler: str) -> None:
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 6, "height": 64, "width": 64}
    expected = diffusers_latents(theirs, scheduler, **call)
    pipe.scheduler = schedulers.from_config({**pipe.scheduler.config, "_class_name": scheduler})
    ours = pipe(**call, seed=0, output_type="latent", progress=False).images
    # relative to the largest latent: a random UNet drives some samplers far from 1
    np.testing.assert_allclose(ours, expected, atol=ATOL * max(1, np.abs(expected).max()), rtol=0)


def test_a_list_of_seeds_equals_a_list_of_generators(pipe: Any, theirs: Any) -> None:
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 3, "height": 64, "width": 64}
    expected = diffusers_latents(theirs, "EulerAncestralDiscreteScheduler", seeds=[3, 4], **call)
    pipe.scheduler = schedulers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    ours = pipe(**call, seed=[3, 4], output_type="latent", progress=False).images
    np.testing.assert_allclose(ours, expected, atol=ATOL * max(1, np.abs(expected).max()), rtol=0)


def test_pictures_equal_diffusers(pipe: Any, theirs: Any) -> None:
    import torch

    call = {"prompt": "a cat", "num_inference_steps": 2, "height": 64, "width": 64}
    expected = np.asarray(theirs(**call, generator=torch.Generator().manual_seed(5)).images[0])
    pipe.scheduler = schedulers.from_config({**theirs.scheduler.config, "_class_name": type(theirs.scheduler).__name__})
    ours = np.asarray(pipe(**call, seed=5, progress=False).images[0])
    # a value that lies on a rounding edge may fall to either side
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert (ours != expected).mean() < 0.01


def test_steps_yield_states_that_can_be_changed(pipe: Any) -> None:
    seen = []
    for state in pipe.steps("a cat", num_inference_steps=4, height=64, width=64, seed=0):
        seen.append((state.step, state.num_steps))
        if state.step == 1:
            state.guidance_scale = 1.0
    assert [step for step, _ in seen] == list(range(len(seen)))
    unchanged = pipe(
        "a cat", num_inference_steps=4, height=64, width=64, seed=0, output_type="latent", progress=False
    ).images
    assert np.abs(state.latents - unchanged).max() > ATOL
    assert pipe.decode(state.denoised).shape == (1, 64, 64, 3)


def test_guidance_may_start_half_way(pipe: Any) -> None:
    def run(change: bool) -> NDArray[np.float32]:
        for state in pipe.steps("a cat", num_inference_steps=3, height=64, width=64, seed=0, guidance_scale=1.0):
            if change:
                state.guidance_scale = 7.5
        return state.latents

    assert np.abs(run(True) - run(False)).max() > ATOL


def test_a_change_of_latents_half_way_is_that_of_diffusers(pipe: Any, theirs: Any) -> None:
    def halve(_: Any, step: int, __: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] / 2} if step == 1 else {}

    call = {"prompt": "a cat", "num_inference_steps": 4, "height": 64, "width": 64, "callback_on_step_end": halve}
    expected = diffusers_latents(theirs, "DDIMScheduler", **call)
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    ours = pipe(**call, seed=0, output_type="latent", progress=False).images
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)


def test_callback_sees_every_step_and_its_last_word_counts(pipe: Any) -> None:
    calls = []

    def zero(_: Any, step: int, timestep: float, kwargs: dict[str, Any]) -> dict[str, Any]:
        calls.append((step, timestep))
        return {"latents": np.zeros_like(kwargs["latents"])}

    made = pipe(
        "a cat",
        num_inference_steps=3,
        height=64,
        width=64,
        seed=0,
        output_type="latent",
        progress=False,
        callback_on_step_end=zero,
    )
    assert len(calls) >= 3
    assert not made.images.any()


def test_embeddings_stand_for_a_prompt(pipe: Any) -> None:
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0, "output_type": "latent", "progress": False}
    text = pipe("a cat", negative_prompt="rain", **call).images
    embeds, negative = pipe.encode_prompt(["a cat"]), pipe.encode_prompt(["rain"])
    np.testing.assert_array_equal(pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, **call).images, text)


def test_threads_share_a_pipeline_without_mixing(pipe: Any) -> None:
    call = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent", "progress": False}
    alone = [pipe("a cat", seed=s, **call).images for s in range(3)]
    together: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda s=s: together.update({s: pipe("a cat", seed=s, **call).images}))
        for s in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in range(3):
        np.testing.assert_array_equal(together[s], alone[s])


def test_without_a_seed_two_calls_differ(pipe: Any) -> None:
    call = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "latent", "progress": False}
    assert np.abs(pipe("a cat", **call).images - pipe("a cat", **call).images).max() > 0.1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number as prompt": ({"prompt": 3}, "prompt must be a string or a list of strings, not 3"),
    "an empty list": ({"prompt": []}, "prompt must be a string"),
    "no prompt": ({}, "give a prompt or prompt_embeds"),
    "bytes in the list": ({"prompt": ["a", b"b"]}, "list of strings"),
    "a size off the factor": (
        {"prompt": "a", "height": 63},
        r"height=63 is not a multiple of \d+, .*; \d+ or \d+ would do",
    ),
    "a size of zero": ({"prompt": "a", "width": 0}, "width must be a whole number of at least 1"),
    "a float size": ({"prompt": "a", "width": 64.0}, "width must be a whole number"),
    "no steps": (
        {"prompt": "a", "num_inference_steps": 0},
        "num_inference_steps must be a whole number of at least 1, not 0",
    ),
    "too many steps": ({"prompt": "a", "num_inference_steps": 5000}, "5000"),
    "no pictures": ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt"),
    "an output type": (
        {"prompt": "a", "output_type": "pt"},
        "unknown output_type 'pt'; available: latent, np, pil|available: pil, np, latent",
    ),
    "seeds that do not count up": ({"prompt": "a", "seed": [1, 2]}, "2 seeds or generators for 1 pictures"),
    "a text as seed": ({"prompt": "a", "seed": "x"}, "seed must be a whole number or a list"),
    "negative prompts that do not count up": (
        {"prompt": "a", "negative_prompt": ["b", "c"]},
        "2 negative prompts for 1 prompts",
    ),
    "latents of another shape": (
        {"prompt": "a", "latents": np.zeros((1, 4, 3, 3))},
        r"latents has shape \(1, 4, 3, 3\), not",
    ),
    "another library's generator": (
        {"prompt": "a", "generator": np.random.default_rng(0)},
        "not Generator; or give seed=|ingot.Generator",
    ),
    "a generator and a seed": (
        {"prompt": "a", "seed": 1, "generator": ingot.Generator(1)},
        "seed and generator were both given",
    ),
    "no guidance": ({"prompt": "a", "guidance_scale": None}, "guidance_scale must be a number, not None"),
    "endless guidance": ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale must be a number, not inf"),
    "a callback's unknown wish": (
        {"prompt": "a", "callback_on_step_end_tensor_inputs": ["latent"]},
        "a callback cannot ask for or change latent; available: latents",
    ),
    "embeddings of another shape": (
        {"prompt_embeds": np.zeros((1, 5, 32))},
        r"prompt_embeds has shape \(1, 5, 32\), not \(1, 77, 32\)",
    ),
    "both prompt and embeddings": ({"prompt": "a", "prompt_embeds": np.zeros((1, 77, 32))}, "not both"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(pipe: Any, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        pipe(**{"height": 64, "width": 64, "progress": False, **call})


def test_a_thing_that_is_no_scheduler_is_refused(pipe: Any, theirs: Any) -> None:
    with pytest.raises(InputError, match=r"not builtins\.dict"):
        pipe.scheduler = {}
    with pytest.raises(InputError, match=r"of ingot\.runtimes\.schedulers is needed, not diffusers\."):
        pipe.scheduler = theirs.scheduler


def test_an_unknown_scheduler_names_the_known(pipe: Any) -> None:
    with pytest.raises(InputError, match="unknown scheduler 'WonderScheduler'; available: DDIMScheduler"):
        schedulers.from_config({**pipe.scheduler.config, "_class_name": "WonderScheduler"})
