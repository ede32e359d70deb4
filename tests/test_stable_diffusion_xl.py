"""Stable Diffusion XL's base model without PyTorch against diffusers' own pipelines: same seed, same latents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot import InputError
from ingot.runtimes.pipelines.vae import VAE

from .sdxl_runs import (
    TOLERANCE,
    by_diffusers,
    by_ingot,
    eager,
    exported,
    half_mask,
    picture,
    require_equal,
    theirs_of,
    use_scheduler,
)
from .test_deepcache import deep_cached

SMALL = {"num_inference_steps": 4, "height": 64, "width": 64}
TWO = {"prompt": ["a cat", "a dog on the moon"], "num_images_per_prompt": 2}


@pytest.fixture(scope="module")
def bundle(tiny_sdxl: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tiny_sdxl, tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def loaded(bundle: Path) -> Iterator[Any]:
    with ingot.load(bundle) as pipe:
        yield pipe


@pytest.fixture
def pipe(loaded: Any) -> Iterator[Any]:
    kept = loaded.scheduler
    yield loaded
    loaded.scheduler = kept


@pytest.fixture(scope="module")
def every_class(tiny_sdxl: Any) -> dict[str, Any]:
    names = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    return {name: theirs_of(name, tiny_sdxl.folder) for name in names}


@pytest.fixture
def theirs(every_class: dict[str, Any]) -> Iterator[Any]:
    found = every_class["StableDiffusionXLPipeline"]
    kept = found.scheduler
    yield found
    found.scheduler = kept


@pytest.fixture
def of_pictures(every_class: dict[str, Any]) -> Any:
    return every_class["StableDiffusionXLImg2ImgPipeline"]


@pytest.fixture
def of_masks(every_class: dict[str, Any]) -> Any:
    return every_class["StableDiffusionXLInpaintPipeline"]


def test_the_bundle_holds_a_picture_against_diffusers(bundle: Path) -> None:
    parity = ingot.Bundle.open(bundle).manifest.parity["onnx"]
    assert parity.psnr_db is None or parity.psnr_db > 60  # the limit of an export in float32


CALLS: dict[str, dict[str, Any]] = {
    "one prompt": {"prompt": "a cat"},
    "another size": {"prompt": "a cat", "height": 48, "width": 80},
    "a batch of prompts, two pictures each": TWO,
    "a batch at another size": {**TWO, "height": 48, "width": 80, "negative_prompt": ["rain", "fog"]},
    "without guidance": {**TWO, "guidance_scale": 1.0},
    "negative prompt": {"prompt": "a cat", "negative_prompt": "rain"},
    "an empty negative prompt": {"prompt": "a cat", "negative_prompt": ""},
    "second prompts": {"prompt": "a cat", "prompt_2": "on a tree", "negative_prompt": "rain", "negative_prompt_2": "at night"},
    "lists of second prompts": {**TWO, "prompt_2": ["red", "blue"], "negative_prompt": ["a", "b"], "negative_prompt_2": ["c", "d"]},
    "an empty second prompt": {"prompt": "a cat", "prompt_2": ""},
    "sizes and a crop": {**TWO, "original_size": (512, 256), "crops_coords_top_left": (16, 32), "target_size": (1024, 768)},
    "negative sizes": {
        "prompt": "a cat", "crops_coords_top_left": (16, 32), "negative_original_size": (32, 32),
        "negative_crops_coords_top_left": (8, 4), "negative_target_size": (128, 96),
    },
    "rescaled guidance": {"prompt": "a cat", "guidance_scale": 9.0, "guidance_rescale": 0.7},
    "a skipped layer": {"prompt": "a cat", "negative_prompt": "rain", "clip_skip": 1},
    "no layer skipped": {"prompt": "a cat", "clip_skip": 0},
    "the first part": {**TWO, "denoising_end": 0.6},
    "all of it": {"prompt": "a cat", "denoising_end": 1.0},
    "noise levels by hand": {"prompt": "a cat", "sigmas": [10.0, 3.0, 0.5, 0.0], "num_inference_steps": None},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_latents_equal_diffusers(pipe: Any, theirs: Any, name: str) -> None:
    require_equal(pipe, theirs, **{**SMALL, **CALLS[name]})


@pytest.mark.parametrize("name", ["one prompt", "without guidance"])
def test_a_list_of_seeds_equals_a_list_of_generators(pipe: Any, theirs: Any, name: str) -> None:
    use_scheduler(pipe, theirs, "EulerAncestralDiscreteScheduler")
    call = {**SMALL, **CALLS[name], "prompt": ["a cat", "a dog"], "num_images_per_prompt": 1}
    require_equal(pipe, theirs, [3, 4], **call)


def test_defaults_are_diffusers(pipe: Any, theirs: Any, of_pictures: Any, of_masks: Any) -> None:
    """The step count aside, which would only take time."""
    short = {"prompt": "a cat", "num_inference_steps": 4}
    require_equal(pipe, theirs, **short)
    require_equal(pipe, of_pictures, **short, image=picture(64, 96))
    require_equal(pipe, of_masks, **short, image=picture(64, 96), mask_image=half_mask(64, 96))
    assert {task: given["num_inference_steps"] for task, given in pipe.defaults.items()} == dict.fromkeys(
        pipe.defaults, 50
    )


def test_one_step_without_guidance_as_turbo_takes_it(pipe: Any, theirs: Any) -> None:
    use_scheduler(pipe, theirs, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    require_equal(pipe, theirs, **{**SMALL, **TWO, "num_inference_steps": 1}, guidance_scale=0.0)


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_schedulers_of_cosxl_and_playground(pipe: Any, theirs: Any, scheduler: str) -> None:
    options = {"sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0, "prediction_type": "v_prediction"}
    use_scheduler(pipe, theirs, scheduler, **options)
    require_equal(pipe, theirs, **{**SMALL, **TWO})


def test_negative_sizes_hold_for_every_picture_of_a_batch(pipe: Any, theirs: Any) -> None:
    """Each as diffusers makes it alone: in a batch, diffusers gives them to every second row."""
    sizes = {"negative_original_size": (32, 32), "negative_target_size": (128, 96)}
    expected = [
        by_diffusers(theirs, seed, **SMALL, prompt=prompt, **sizes) for seed, prompt in enumerate(TWO["prompt"])
    ]
    together = by_ingot(pipe, [0, 1], **SMALL, prompt=TWO["prompt"], **sizes)
    atol = TOLERANCE * max(1, np.abs(expected).max())
    np.testing.assert_allclose(together, np.concatenate(expected), atol=atol, rtol=0)


def test_an_empty_negative_prompt_is_not_zeros(pipe: Any) -> None:
    """Else the calls above would not tell the rule for no negative prompt from that for an empty one."""
    none, empty = (by_ingot(pipe, **SMALL, prompt="a cat", negative_prompt=text) for text in (None, ""))
    assert np.abs(none - empty).max() > TOLERANCE * np.abs(none).max() * 10


@pytest.mark.parametrize("zeros", [True, False])
def test_embeddings_stand_for_prompts(pipe: Any, theirs: Any, zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a negative prompt, zeros or the empty text stand in, as the checkpoint says."""
    monkeypatch.setattr(pipe, "_zeros", zeros)
    theirs.register_to_config(force_zeros_for_empty_prompt=zeros)
    try:
        plain, pooled = pipe.encode_prompt(["a cat", "a dog"])
        negative, negative_pooled = pipe.encode_prompt(["rain", "fog"])
        given = {"prompt_embeds": plain, "pooled_prompt_embeds": pooled}
        unwanted = {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
        text = require_equal(pipe, theirs, **SMALL, prompt=["a cat", "a dog"], negative_prompt=["rain", "fog"])
        np.testing.assert_array_equal(
            by_ingot(pipe, **SMALL, **given, **unwanted),
            by_ingot(pipe, **SMALL, prompt=["a cat", "a dog"], negative_prompt=["rain", "fog"]),
        )
        assert np.abs(text - require_equal(pipe, theirs, **SMALL, **given)).max() > TOLERANCE
        # pooled ones beside a prompt take the place of its own
        require_equal(pipe, theirs, **SMALL, prompt=["a cat", "a dog"], pooled_prompt_embeds=negative_pooled)
    finally:
        theirs.register_to_config(force_zeros_for_empty_prompt=True)


# Image to image, inpainting

PICTURES: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "a cat", "image": picture(64, 64)},
    "its own size, cut": {"prompt": "a cat", "image": picture(49, 81)},
    "one for four": {**TWO, "image": picture(64, 64)},
    "one for each of four": {**TWO, "image": [picture(64, 64, seed) for seed in range(4)]},
    "without guidance": {**TWO, "image": picture(64, 64), "guidance_scale": 1.0},
    "a crop, which the negative prompt shares": {
        "prompt": "a cat", "image": picture(64, 64), "crops_coords_top_left": (8, 16), "negative_target_size": (32, 32),
    },
    "sizes in a batch": {**TWO, "image": picture(64, 64), "negative_original_size": (16, 16), "target_size": (512, 512)},
    "all of the steps": {"prompt": "a cat", "image": picture(64, 64), "strength": 1.0},
    "an end before the end": {"prompt": "a cat", "image": picture(64, 64), "denoising_end": 0.8},
    "latents for a picture": {**TWO, "image": np.random.RandomState(0).randn(1, 4, 24, 40).astype(np.float32)},
    "latents to begin with": {
        "prompt": "a cat", "image": picture(64, 64), "latents": np.random.RandomState(1).randn(1, 4, 32, 32).astype(np.float32),
    },
    "from another denoiser": {
        "prompt": "a cat", "image": np.random.RandomState(2).randn(1, 4, 32, 32).astype(np.float32), "denoising_start": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_image_to_image_equals_diffusers(pipe: Any, of_pictures: Any, name: str) -> None:
    require_equal(pipe, of_pictures, **{"num_inference_steps": 6, "strength": 0.6, **PICTURES[name]})


def test_each_seed_draws_from_its_own_picture(pipe: Any, of_pictures: Any, of_masks: Any) -> None:
    call = {"prompt": ["a cat", "a dog"], "image": picture(64, 64), "num_inference_steps": 5, "strength": 0.6}
    require_equal(pipe, of_pictures, [3, 4], **call)
    require_equal(pipe, of_masks, [3, 4], **call, mask_image=half_mask(64, 64), height=64, width=64)


MASKED: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "a cat"},
    "another size": {"prompt": "a cat", "height": 48, "width": 80},
    "one for four": {**TWO, "guidance_scale": 4.0},
    "all of the steps": {"prompt": "a cat", "strength": 1.0},
    "a part of the steps": {**TWO, "strength": 0.5, "guidance_scale": 1.0},
    "an end before the end": {"prompt": "a cat", "denoising_end": 0.7},
    "latents from another denoiser": {
        "prompt": "a cat", "image": np.random.RandomState(2).randn(1, 4, 32, 32).astype(np.float32), "denoising_start": 0.4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
def test_inpainting_equals_diffusers(pipe: Any, of_masks: Any, name: str) -> None:
    given = {"image": picture(64, 64), "mask_image": half_mask(64, 64)}
    require_equal(pipe, of_masks, **{**SMALL, **given, **MASKED[name]})


@pytest.mark.parametrize(
    "scheduler", ["HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("share", [0.4, 0.55, 0.8])
def test_two_denoisers_share_the_steps(pipe: Any, theirs: Any, of_pictures: Any, scheduler: str, share: float) -> None:
    use_scheduler(pipe, theirs, scheduler)
    kept, of_pictures.scheduler = of_pictures.scheduler, theirs.scheduler
    try:
        call = {"prompt": "a cat", "num_inference_steps": 6}
        expected = by_diffusers(theirs, **call, height=64, width=64, denoising_end=share)
        left = by_ingot(pipe, **call, height=64, width=64, denoising_end=share)
        np.testing.assert_allclose(left, expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)
        require_equal(pipe, of_pictures, **call, image=expected, denoising_start=share)
    finally:
        of_pictures.scheduler = kept


def test_pictures_of_a_vae_with_means_equal_diffusers(
    pipe: Any, of_pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"latents_mean": [0.5, -0.2, 0.1, 0.3], "latents_std": [1.5, 0.7, 2.0, 1.1]}
    monkeypatch.setattr(pipe, "vae", VAE(pipe.engines, {**pipe.vae.config, **own}))
    of_pictures.vae.register_to_config(**own)
    try:
        call = {"prompt": "a cat", "image": picture(64, 64), "num_inference_steps": 4, "output_type": "np"}
        require_equal(pipe, of_pictures, **call, strength=0.5)
    finally:
        of_pictures.vae.register_to_config(latents_mean=None, latents_std=None)


# What spares work


def unguided_from(step: int) -> Any:
    """A callback by which diffusers stops guiding before a step."""

    def change(pipe: Any, done: int, _: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if done + 1 != step:
            return {}
        pipe._guidance_scale = 0.0
        return {name: value.chunk(2)[1] for name, value in kwargs.items()}

    return change


def test_guidance_ends_with_all_conditions(pipe: Any, theirs: Any) -> None:
    call = {**SMALL, **TWO, "negative_prompt": ["rain", "fog"]}
    expected = by_diffusers(
        theirs,
        **call,
        callback_on_step_end=unguided_from(2),
        callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
    )
    ours = by_ingot(pipe, **call, guidance_end=0.5)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)
    assert np.abs(by_ingot(pipe, **call) - ours).max() > TOLERANCE


def test_deep_cache_keeps_the_conditions(theirs: Any, tiny_sdxl: Any, tmp_path: Path) -> None:
    pipe = eager(theirs, tiny_sdxl.folder, tmp_path, deep_cache=1)
    call = {**SMALL, **TWO, "original_size": (512, 256)}
    with deep_cached(theirs.unet, 1, {0, 2}):
        expected = by_diffusers(theirs, **call)
    ours = by_ingot(pipe, **call, cache_interval=2)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)
    assert np.abs(by_ingot(pipe, **call) - ours).max() > TOLERANCE


def test_conditions_can_be_changed_half_way(pipe: Any) -> None:
    def last(change: bool) -> Any:
        for state in pipe.steps("a cat", **SMALL, seed=0):
            assert {name: value.shape for name, value in state.conditions.items()} == {
                "text_embeds": (1, 32),
                "time_ids": (1, 6),
            }
            if change:
                state.conditions = {**state.conditions, "time_ids": state.conditions["time_ids"] * 2}
        return state.latents

    assert np.abs(last(True) - last(False)).max() > TOLERANCE


def test_quantized(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    ingot.quantize(
        copy, "int8-weights", to="onnx", prompts=["a cat"], num_inference_steps=2, height=64, width=64, progress=False
    )
    quality = ingot.Bundle.open(copy).manifest.quality["onnx int8-weights"]
    assert quality.psnr_db is not None
    with ingot.load(copy, engine="onnx", precision="int8-weights") as quantized, ingot.load(bundle) as floats:
        call = {**SMALL, "prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
        far = np.abs(by_ingot(quantized, **call) - by_ingot(floats, **call)).mean()
    # 8 bits of each weight: not equal, and near (a grey level of 255 is 0.004)
    assert 0 < far < 0.05


# Bad input

NOISE = np.zeros((1, 4, 32, 32), np.float32)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a size of three": ({"original_size": (1, 2, 3)}, r"original_size must be a pair \(height, width\) of whole numbers"),
    "a size of one": ({"target_size": 64}, "target_size must be a pair .*, not 64"),
    "a size in parts": ({"negative_target_size": (64.5, 64)}, r"negative_target_size must be a pair .*, not \(64.5, 64\)"),
    "a size in words": ({"original_size": "64"}, "original_size must be a pair .*, not '64'"),
    "no crop": ({"crops_coords_top_left": None}, r"crops_coords_top_left must be a pair \(top, left\) .*, not None"),
    "half of the negative sizes": ({"negative_target_size": (64, 64)}, "go together: give both or neither"),
    "a score": ({"aesthetic_score": 6.0}, "was not trained with aesthetic scores"),
    "a negative score": ({"negative_aesthetic_score": 2}, "was not trained with aesthetic scores"),
    "an end at the beginning": ({"denoising_end": 0.0}, r"denoising_end must be a share of the denoising between 0 and 1, not 0\.0"),
    "an end past the end": ({"denoising_end": 1.2}, r"denoising_end must be a share .* not 1\.2"),
    "an end in words": ({"denoising_end": "late"}, "denoising_end must be a number, not 'late'"),
    "an end before the first step": ({"denoising_end": 0.01}, r"denoising_end=0\.01 leaves none of 4 steps"),
    "a start without a picture": ({"denoising_start": 0.5}, "denoising_start was given without image"),
    "a start past the end": ({"denoising_start": 1.0, "image": NOISE}, "denoising_start must be a share"),
    "a start after the last step": ({"denoising_start": 0.9999, "image": NOISE}, r"denoising_start=0\.9999 leaves none of 4"),
    "a start behind the end": (
        {"denoising_start": 0.6, "denoising_end": 0.5, "image": NOISE},
        r"denoising_start=0\.6 must be below denoising_end=0\.5",
    ),
    "latents of another size": ({"image": NOISE[..., :8], "height": 64, "width": 64}, "image has latents of 32x8, and"),
    "embeddings alone": (
        {"prompt": None, "prompt_embeds": np.zeros((1, 77, 64))},
        "prompt_embeds was given without pooled_prompt_embeds",
    ),
    "negative embeddings alone": (
        {"negative_prompt_embeds": np.zeros((1, 77, 64))},
        "negative_prompt_embeds was given without negative_pooled_prompt_embeds",
    ),
    "pooled ones of another shape": (
        {"pooled_prompt_embeds": np.zeros((2, 32))},
        r"pooled_prompt_embeds has shape \(2, 32\), not \(1, 32\)",
    ),
    "a second prompt beside embeddings": (
        {"prompt": None, "prompt_2": "b", "prompt_embeds": np.zeros((1, 77, 64)), "pooled_prompt_embeds": np.zeros((1, 32))},
        "give prompt_2 or prompt_embeds, not both",
    ),
    "second prompts that do not count up": ({"prompt_2": ["b", "c"]}, "2 of prompt_2 for 1 prompts"),
    "a second prompt that is no text": ({"prompt_2": 5}, "prompt_2 must be a string or a list of strings, not 5"),
    "a second negative prompt alone": ({"negative_prompt_2": "rain"}, "negative_prompt_2 was given without negative_prompt"),
    "too many layers skipped": ({"clip_skip": 9}, "clip_skip=9"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, message = WRONG[name]
    for engine in (pipe.denoiser, pipe.engines["vae_encoder"]):
        monkeypatch.setattr(engine, "run", lambda _: pytest.fail("a graph ran"))
    with pytest.raises(InputError, match=message):
        pipe(**{"num_inference_steps": 4, "prompt": "a", "progress": False, **call})
