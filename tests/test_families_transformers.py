"""Transformers that read prompts, without PyTorch against diffusers' own pipelines: same seed, same latents.

Tolerance 1e-4 on latents, relative to the largest: noise within 2e-6, a step within 1e-5, over a few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma

import ingot
from ingot import InputError
from ingot.runtimes.pipelines.pixart_sizes import cut_to, nearest, trained_sizes

from . import tiny, tiny_families
from .eager import ATOL, Pair, eager, pair, picture, require_equal

pixart = pair(tiny.pixart)
pixart_alpha = pair(tiny_families.pixart_alpha)
pixart_256 = pair(tiny_families.pixart_256)
sd3 = pair(tiny_families.sd3)
flux = pair(tiny_families.flux)
flux_schnell = pair(tiny_families.flux_schnell)

SMALL, WIDE = {"height": 32, "width": 32}, {"height": 32, "width": 48}
CALLS: dict[str, dict[str, Any]] = {
    "one prompt": SMALL,
    "another size": WIDE,
    "a batch of prompts, two pictures each": {**SMALL, "prompt": ["A Cat ", "a dog"], "num_images_per_prompt": 2},
    "a negative prompt": {**SMALL, "negative_prompt": "rain"},
    "without guidance": {**SMALL, "guidance_scale": 1.0},
    "a list of seeds": {**SMALL, "prompt": ["a cat", "a dog"], "seed": [3, 4]},
}


def pixart_call(call: dict[str, Any]) -> dict[str, Any]:
    return {"num_inference_steps": 4, "use_resolution_binning": False, "clean_caption": False, **call}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("model", ["pixart", "pixart_alpha"])
def test_pixart_equals_diffusers(model: str, name: str, request: pytest.FixtureRequest) -> None:
    require_equal(request.getfixturevalue(model).both(**pixart_call(CALLS[name])))


def test_pixart_alpha_answers_in_one_step_what_it_predicts(pixart_alpha: Pair) -> None:
    """As distilled models want it, with a scheduler that says what they predict."""
    call = pixart_call({**SMALL, "num_inference_steps": 1})
    require_equal(pixart_alpha.both(scheduler="DDIMScheduler", **call))
    require_equal(pixart_alpha.both(scheduler="LCMScheduler", **call))


def test_pixart_cuts_a_prompt_before_its_end_token(pixart_256: Pair, caplog: pytest.LogCaptureFixture) -> None:
    call = {"prompt": "a red cat " * 60, "height": 256, "width": 256, "num_inference_steps": 2}
    require_equal(pixart_256.both(**pixart_call(call)))
    assert "the prompt is longer than 120 tokens; this part of it was cut" in caplog.text


def test_pixart_sigma_cuts_at_its_own_number_of_tokens(pixart: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """300 tokens, where alpha has 120; of a batch each prompt by itself, and the negative one too."""
    call = {
        **SMALL,
        "prompt": ["a red cat " * 200, "a dog"],
        "negative_prompt": "rain at " * 200,
        "num_inference_steps": 2,
    }
    require_equal(pixart.both(**pixart_call(call)))
    assert caplog.text.count("the prompt is longer than 300 tokens; this part of it was cut") == 2


@pytest.mark.parametrize(("height", "width"), [(100, 150), (256, 256), (333, 90)])
def test_pixart_makes_the_nearest_trained_size_and_cuts_it(pixart_256: Pair, height: int, width: int) -> None:
    call = {"prompt": "a cat", "height": height, "width": width, "num_inference_steps": 2, "clean_caption": False}
    with torch.no_grad():
        expected = pixart_256.pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    ours = pixart_256.ours()(**call, seed=0, output_type="np", progress=False).images
    assert ours.shape == (1, height, width, 3)
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.01


def test_trained_sizes_are_those_of_diffusers() -> None:
    tables = {
        32: pipeline_pixart_alpha.ASPECT_RATIO_256_BIN, 64: pipeline_pixart_alpha.ASPECT_RATIO_512_BIN,
        128: pipeline_pixart_alpha.ASPECT_RATIO_1024_BIN, 256: pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN,
    }  # fmt: skip
    choose = pipeline_pixart_alpha.PixArtImageProcessor.classify_height_width_bin
    for sample_size, table in tables.items():
        assert trained_sizes(sample_size) == [(int(h), int(w)) for h, w in table.values()]
        for height, width in [(1, 9), (100, 150), (512, 512), (577, 500), (2000, 490), (768, 1365)]:
            assert nearest(height, width, sample_size) == choose(height, width, table)


@pytest.mark.parametrize("size", [(40, 64), (20, 13), (32, 48), (7, 90)])
def test_cutting_is_torchs_interpolation_and_a_middle(size: tuple[int, int]) -> None:
    pictures = np.random.RandomState(0).standard_normal((2, 3, 32, 48)).astype(np.float32)
    expected = pipeline_pixart_alpha.PixArtImageProcessor.resize_and_crop_tensor(
        torch.from_numpy(pictures), new_width=size[1], new_height=size[0]
    ).numpy()
    # weights of four pixels, each rounded in float32
    np.testing.assert_allclose(cut_to(pictures, size), expected, atol=1e-5, rtol=0)


SD3_CALLS: dict[str, dict[str, Any]] = {
    **CALLS,
    "prompts of each encoder": {
        **SMALL, "prompt_2": "a dog", "prompt_3": "a red cat", "negative_prompt": "rain", "negative_prompt_3": "fog"
    },
    "a layer skipped": {**SMALL, "clip_skip": 1},
    "sigmas of its own": {**SMALL, "num_inference_steps": None, "sigmas": [1.0, 0.6, 0.2]},
}  # fmt: skip


@pytest.mark.parametrize("name", SD3_CALLS)
def test_stable_diffusion_3_equals_diffusers(sd3: Pair, name: str) -> None:
    require_equal(sd3.both(**SD3_CALLS[name]))


@pytest.mark.parametrize(("strength", "steps", "size"), [(0.6, 5, WIDE), (0.5, 5, WIDE), (1.0, 3, {})])
def test_stable_diffusion_3_from_a_picture_equals_diffusers(
    sd3: Pair, strength: float, steps: int, size: dict[str, int]
) -> None:
    """Without a size it is the model's own, not the picture's."""
    call = {"image": picture(48, 64), "strength": strength, "num_inference_steps": steps, **size}
    require_equal(sd3.both("StableDiffusion3Img2ImgPipeline", prompt=["a cat", "a dog"], **call))


@pytest.fixture(scope="module")
def sd3_without_t5(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    found, folder = (
        Pair.__new__(Pair),
        tmp_path_factory.mktemp("sd3"),
    )  # diffusers does not load what it saved without a T5
    found.pipe = tiny_families.sd3_without_t5(folder / "parts")
    found.pipe.set_progress_bar_config(disable=True)
    found.parts = eager(found.pipe, folder / "bundle")
    return found


def test_stable_diffusion_3_without_t5_and_with_shifting_by_size(sd3_without_t5: Pair) -> None:
    assert "text_encoder_3" not in sd3_without_t5.parts["engines"]
    for call in (SMALL, WIDE, {**SMALL, "mu": 0.3}):
        require_equal(sd3_without_t5.both(**call))
    fast, slow = (
        sd3_without_t5.ours()(
            "a cat", seed=0, output_type="latent", progress=False, num_inference_steps=4, mu=mu, **SMALL
        ).images
        for mu in (0.3, 1.2)
    )
    assert np.abs(fast - slow).max() > ATOL


FLUX = {"height": 64, "width": 64}
FLUX_CALLS: dict[str, dict[str, Any]] = {
    "one prompt": FLUX,
    "another size": {"height": 64, "width": 112},
    "a batch of prompts, two pictures each": {**FLUX, "prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
    "more guidance": {**FLUX, "guidance_scale": 9.0},
    "guidance by a negative prompt": {**FLUX, "negative_prompt": "rain", "true_cfg_scale": 3.0},
    "a negative prompt alone": {**FLUX, "negative_prompt": "rain"},
    "a second prompt": {**FLUX, "prompt_2": "a red dog"},
    "sigmas of its own": {**FLUX, "num_inference_steps": None, "sigmas": [1.0, 0.6, 0.2]},
}


@pytest.mark.parametrize("name", FLUX_CALLS)
def test_flux_equals_diffusers(flux: Pair, name: str) -> None:
    require_equal(flux.both(**{"num_inference_steps": 3, **FLUX_CALLS[name]}))


@pytest.mark.parametrize("name", ["one prompt", "another size", "guidance by a negative prompt"])
def test_flux_schnell_equals_diffusers(flux_schnell: Pair, name: str) -> None:
    require_equal(flux_schnell.both(**{"num_inference_steps": 3, **FLUX_CALLS[name]}))


def test_flux_is_told_of_guidance(flux: Pair, flux_schnell: Pair) -> None:
    call = {**FLUX, "num_inference_steps": 2, "seed": 0, "output_type": "latent", "progress": False}
    far = [
        np.abs(np.subtract(*(found.ours()("a cat", guidance_scale=g, **call).images for g in (1.0, 9.0)))).max()
        for found in (flux, flux_schnell)
    ]
    assert far[0] > 1e-3
    assert far[1] == 0


def test_flux_from_a_picture_equals_diffusers(flux: Pair) -> None:
    call = {"image": picture(64, 112), "strength": 0.5, "height": 64, "width": 112, "num_inference_steps": 5}
    require_equal(flux.both("FluxImg2ImgPipeline", **call))


def test_flux_pictures_are_of_the_size_that_was_asked_for(flux: Pair) -> None:
    call = {"prompt": "a cat", "height": 64, "width": 112, "num_inference_steps": 2}
    with torch.no_grad():
        expected = flux.pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images
    pipe = flux.ours()
    np.testing.assert_allclose(
        pipe(**call, seed=0, output_type="np", progress=False).images, expected, atol=ATOL, rtol=0
    )
    latents = pipe(**call, seed=0, output_type="latent", progress=False).images
    np.testing.assert_allclose(pipe.decode(latents, (64, 112)), expected, atol=ATOL, rtol=0)
    with pytest.raises(InputError, match="latents of 28 tokens are of no square picture: give its size"):
        pipe.decode(latents)


@pytest.mark.parametrize("model", ["pixart", "sd3", "flux"])
def test_latents_and_embeddings_stand_for_noise_and_prompt(model: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(model).ours()
    size = {"height": 64, "width": 64, "num_inference_steps": 2}
    call = {"output_type": "latent", "progress": False, "guidance_scale": 1.0, **size}
    if model == "pixart":
        call["use_resolution_binning"] = False
    condition = pipe.condition(pipe.call_type(**size, guidance_scale=1.0), ["a cat"], [""], (64, 64)).positive()
    names = {"encoder_attention_mask": "prompt_attention_mask", "pooled_projections": "pooled_prompt_embeds"}
    given = {names[name]: value.astype(np.float64) for name, value in condition.others.items() if name in names}
    embeds = condition.embeds.astype(np.float64)  # any kind of number will do
    noise = next(pipe.steps("a cat", **{k: v for k, v in call.items() if k not in ("output_type", "progress")}, seed=5))
    latents = np.random.RandomState(0).standard_normal(noise.latents.shape).astype(np.float32)
    text = pipe("a cat", latents=latents, **call).images
    np.testing.assert_array_equal(pipe(prompt_embeds=embeds, latents=latents, **given, **call).images, text)
    with pytest.raises(InputError, match="go together: give both or neither"):
        pipe(prompt_embeds=condition.embeds, **call)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a size off the patch": ("sd3", {"height": 34}, "height=34 is not a multiple of 4, as this model needs; 32 or 36 would do"),
    "a size off the pack": ("flux", {"width": 72}, "width=72 is not a multiple of 16, as this model needs; 64 or 80 would do"),
    "a size off PixArt's patch": ("pixart", {"height": 34}, "height=34 is not a multiple of 4"),
    "sizes that nobody published": (
        "pixart", {"use_resolution_binning": True}, "no sizes are known of a model whose sample_size is 8, but of 32, 64, 128, 256"
    ),
    "a size of zero": ("pixart_256", {"height": -1}, "height must be a whole number of at least 1, not -1"),
    "cleaning": ("pixart", {"clean_caption": True}, "clean the prompt beforehand"),
    "more tokens": ("pixart", {"max_sequence_length": 120}, "max_sequence_length=120: .* was exported for 300 tokens"),
    "a layer of T5": ("pixart", {"clip_skip": 1}, "clip_skip=1 is for models that read prompts with CLIP alone"),
    "chunks of a prompt": (
        "pixart_256", {"prompt": "a red cat " * 60, "long_prompts": True},
        "long_prompts=True is for models that read prompts with CLIP alone",
    ),
    "weights": ("sd3", {"prompt_weighting": True}, "prompt_weighting=True is for models that read prompts with CLIP alone"),
    "a mask alone": ("pixart", {"prompt_attention_mask": np.ones((1, 300))}, "prompt_embeds and prompt_attention_mask go"),
    "a picture for PixArt": ("pixart", {"image": picture(32, 32)}, "does text-to-image, not image-to-image: leave image out"),
    "second prompts that do not count up": ("sd3", {"prompt_2": ["a", "b"]}, "2 of prompt_2 for 1 prompts; give one"),
    "no prompt": ("flux", {"prompt": None}, "give a prompt or prompt_embeds, and not both"),
    "no number": ("flux", {"true_cfg_scale": "much"}, "true_cfg_scale must be a number, not 'much'"),
    "latents that are not packed": ("flux", {"latents": np.zeros((1, 4, 4, 4))}, r"latents has shape \(1, 4, 4, 4\), not \(1, 4, 16\)"),
    "a scheduler's own": ("sd3", {"skip_guidance_layers": [1]}, "unknown argument of StableDiffusion3Pipeline 'skip_guidance_layers'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(name: str, request: pytest.FixtureRequest) -> None:
    model, call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        request.getfixturevalue(model).ours()(
            **{"prompt": "a cat", "height": 32, "width": 32, "progress": False, **call}
        )


@pytest.mark.parametrize(
    ("model", "call"),
    [("pixart_alpha", pixart_call(WIDE)), ("sd3_without_t5", WIDE), ("flux", {"height": 64, "width": 112})],
)
def test_bundles_equal_diffusers(
    model: str, call: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Exported for real, as ONNX graphs; the export itself compares a picture."""
    pipe = request.getfixturevalue(model).pipe
    ingot.export(pipe, tmp_path / "bundle", progress=False)
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 3, "output_type": "latent", **call}
    with torch.no_grad():
        expected = pipe(**call, generator=torch.Generator().manual_seed(1)).images.numpy()
    with ingot.load(tmp_path / "bundle") as ours:
        require_equal((ours(**call, seed=1, progress=False).images, expected))
