"""Stable Diffusion XL's refiner, its inpainting checkpoint and InstructPix2Pix without PyTorch against diffusers' own
pipelines: same seed, same latents. The refiner's is a bundle, whose export holds a picture against diffusers on the way; the
other two run torch's own modules, since their graphs differ from the base model's in a number of channels alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ingot
from ingot import InputError
from ingot.exporters.picture import SEED, reference_picture
from ingot.runtimes.metrics import image_psnr

from . import tiny
from .conftest import Tiny
from .sdxl_runs import TOLERANCE, by_ingot, eager, exported, half_mask, picture, require_equal, theirs_of

TWO = {"prompt": ["a cat", "a dog on the moon"], "num_images_per_prompt": 2}


@dataclass(frozen=True)
class Pair:
    """A bundle's pipeline and diffusers' own."""

    ours: Any
    theirs: Any


def saved(build: Callable[[Path], Any], folder: Path) -> tuple[Any, Path]:
    """diffusers' pipeline, loaded, and its checkpoint."""
    made = build(folder / "parts")
    made.save_pretrained(folder / "checkpoint")
    return theirs_of(type(made).__name__, folder / "checkpoint"), folder / "checkpoint"


@pytest.fixture(scope="module")
def refiner_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("refiner")
    theirs, checkpoint = saved(tiny.sdxl_refiner, folder)
    return theirs, exported(Tiny(theirs, checkpoint), folder, to="torch")


@pytest.fixture(scope="module")
def refiner(refiner_bundle: tuple[Any, Path]) -> Iterator[Pair]:
    theirs, bundle = refiner_bundle
    with ingot.load(bundle) as ours:
        yield Pair(ours, theirs)


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("inpaint")
    theirs, checkpoint = saved(tiny.sdxl_inpaint, folder)
    return Pair(eager(theirs, checkpoint, folder), theirs)


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("edit")
    theirs, checkpoint = saved(tiny.sdxl_edit, folder)
    return Pair(eager(theirs, checkpoint, folder), theirs)


def test_the_refiners_bundle_holds_a_picture_against_diffusers(refiner_bundle: tuple[Any, Path]) -> None:
    parity = ingot.Bundle.open(refiner_bundle[1]).manifest.parity["torch"]
    assert parity.psnr_db is None or parity.psnr_db > 60  # the limit of an export in float32


@pytest.mark.parametrize("whose", ["inpaint", "edit"])
def test_the_picture_of_an_export_is_one_that_both_can_make(whose: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(whose)
    reference = reference_picture(made.theirs, None, 1)
    assert reference is not None
    assert "image" in reference.arguments
    ours = made.ours(**reference.arguments, seed=[SEED], progress=False).images
    assert image_psnr(reference.picture, ours) > 60  # the limit of an export in float32


# The refiner

LEFT = np.random.RandomState(2).randn(1, 4, 32, 32).astype(np.float32)
REFINED: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "a cat", "image": picture(64, 64)},
    "another size": {"prompt": "a cat", "image": picture(48, 80)},
    "one for four": {**TWO, "image": picture(64, 64), "negative_prompt": ["rain", "fog"]},
    "without guidance": {**TWO, "image": picture(64, 64), "guidance_scale": 1.0},
    "scores": {**TWO, "image": picture(64, 64), "aesthetic_score": 7.5, "negative_aesthetic_score": 1.0},
    "sizes and crops": {
        **TWO, "image": picture(64, 64), "original_size": (256, 128), "crops_coords_top_left": (8, 16),
        "negative_original_size": (32, 16), "negative_crops_coords_top_left": (4, 2),
    },
    "a skipped layer": {"prompt": "a cat", "image": picture(64, 64), "clip_skip": 1},
    "what the base left": {**TWO, "image": LEFT, "denoising_start": 0.5},
    "a part of it": {"prompt": "a cat", "image": LEFT, "denoising_start": 0.4, "denoising_end": 0.8},
}  # fmt: skip


@pytest.mark.parametrize("name", REFINED)
def test_a_refiner_equals_diffusers(refiner: Pair, name: str) -> None:
    require_equal(refiner.ours, refiner.theirs, **{"num_inference_steps": 6, "strength": 0.6, **REFINED[name]})


def test_a_refiner_paints_into_a_picture(refiner: Pair, refiner_bundle: tuple[Any, Path]) -> None:
    """diffusers' inpainting class over the refiner's components."""
    import diffusers

    parts = {
        n: part for n, part in refiner.theirs.components.items() if n not in ("image_encoder", "feature_extractor")
    }
    theirs = diffusers.StableDiffusionXLInpaintPipeline(
        **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    theirs.set_progress_bar_config(disable=True)
    masked = {"image": picture(64, 64), "mask_image": half_mask(64, 64), "height": 64, "width": 64}
    call = {**TWO, **masked, "num_inference_steps": 4}
    expected = require_equal(refiner.ours, theirs, **call)
    with ingot.load(refiner_bundle[1], pipeline="StableDiffusionXLInpaintPipeline") as ours:
        np.testing.assert_allclose(by_ingot(ours, **call), expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


# Inpainting with nine channels

MASKED: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "a cat"},
    "another size": {"prompt": "a cat", "height": 48, "width": 80},
    "one for four": {**TWO, "negative_prompt": ["rain", "fog"]},
    "all of the steps": {**TWO, "strength": 1.0},
    "a part of the steps, without guidance": {**TWO, "strength": 0.5, "guidance_scale": 1.0},
    "an end before the end": {"prompt": "a cat", "denoising_end": 0.7},
    "from another denoiser": {"prompt": "a cat", "denoising_start": 0.4},
}


@pytest.mark.parametrize("name", MASKED)
def test_inpainting_equals_diffusers(inpaint: Pair, name: str) -> None:
    call = {
        "num_inference_steps": 4,
        "height": 64,
        "width": 64,
        "image": picture(64, 64),
        "mask_image": half_mask(64, 64),
    }
    require_equal(inpaint.ours, inpaint.theirs, **{**call, **MASKED[name]})


# InstructPix2Pix

EDITED: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "make it red"},
    "another size": {"prompt": "make it red", "height": 48, "width": 80},
    "one for four": {**TWO, "negative_prompt": ["rain", "fog"], "crops_coords_top_left": (8, 16)},
    "two guidances": {**TWO, "guidance_scale": 3.0, "image_guidance_scale": 2.5},
    "rescaled guidance": {"prompt": "make it red", "guidance_rescale": 0.7},
    "without guidance": {**TWO, "guidance_scale": 1.0},
    "without guidance by the picture": {"prompt": "make it red", "image_guidance_scale": 0.5},
    "latents for a picture": {"prompt": "make it red", "image": LEFT},
    "an end before the end": {"prompt": "make it red", "denoising_end": 0.7},
}


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_equals_diffusers(edit: Pair, name: str) -> None:
    call = {"num_inference_steps": 4, "height": 64, "width": 64, "image": picture(64, 64)}
    require_equal(edit.ours, edit.theirs, **{**call, **EDITED[name]})


def test_the_default_size_of_an_edit_is_the_models(edit: Pair) -> None:
    require_equal(edit.ours, edit.theirs, prompt="make it red", num_inference_steps=2, image=picture(64, 96))


def test_cosxl_takes_scaled_latents(edit: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit.ours, "_scaled", True)
    monkeypatch.setattr(edit.theirs, "is_cosxl_edit", True)
    call = {"prompt": "make it red", "num_inference_steps": 4, "height": 64, "width": 64, "image": picture(64, 64)}
    require_equal(edit.ours, edit.theirs, **call)


# Bad input

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a second prompt": (
        "refiner",
        {"prompt_2": "b", "image": LEFT},
        "prompt_2 is for models with two text encoders, .* give prompt",
    ),
    "a second negative prompt": (
        "refiner",
        {"negative_prompt": "a", "negative_prompt_2": "b", "image": LEFT},
        "negative_prompt_2 is for models with two text encoders, .* give negative_prompt",
    ),
    "a score in words": (
        "refiner",
        {"aesthetic_score": "high", "image": LEFT},
        "aesthetic_score must be a number, not 'high'",
    ),
    "no picture to paint into": ("inpaint", {}, "takes 9 channels, .* it wants image and mask_image"),
    "latents that cannot be masked": (
        "inpaint",
        {"image": LEFT, "mask_image": half_mask(64, 64), "height": 64, "width": 64},
        "image was given as latents, which cannot be masked for this model",
    ),
    "nothing to edit": ("edit", {}, "does image-to-image, not text-to-image: give image"),
    "an edit of a part": ("edit", {"image": LEFT, "mask_image": half_mask(64, 64)}, "leave mask_image out"),
    "an edit from the middle": (
        "edit",
        {"image": LEFT, "denoising_start": 0.5, "height": 64, "width": 64},
        r"denoising_start=0\.5: an edit starts from noise",
    ),
    "no picture guidance": (
        "edit",
        {"image": LEFT, "image_guidance_scale": "much", "height": 64, "width": 64},
        "image_guidance_scale must be a number, not 'much'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(name: str, request: pytest.FixtureRequest) -> None:
    whose, call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(whose).ours(**{"prompt": "a", "num_inference_steps": 4, "progress": False, **call})
