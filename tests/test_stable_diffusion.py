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
from PIL import Image

import ingot
from ingot import InputError
from ingot.cli import main
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


def a_picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))


def test_a_text_to_image_bundle_serves_the_other_tasks(pipe: Any, theirs: Any, tiny_bundle: Path) -> None:
    import diffusers

    half = np.zeros((64, 64), dtype=np.uint8)
    half[:, :30] = 255
    call = {"prompt": ["a cat", "a dog"], "num_inference_steps": 4, "image": a_picture(64, 64), "strength": 0.7}
    tasks: dict[str, dict[str, Any]] = {
        "StableDiffusionImg2ImgPipeline": {},
        "StableDiffusionInpaintPipeline": {"mask_image": Image.fromarray(half), "height": 64, "width": 64},
    }
    for name, more in tasks.items():
        other = getattr(diffusers, name).from_pipe(theirs)
        other.set_progress_bar_config(disable=True)
        expected = diffusers_latents(other, "DDIMScheduler", **call, **more)
        pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
        for ours in (pipe, ingot.load(tiny_bundle, pipeline=name)):
            made = ours(**call, **more, seed=0, output_type="latent", progress=False).images
            np.testing.assert_allclose(made, expected, atol=ATOL, rtol=0)


def test_the_command_line_takes_a_picture_and_a_mask(tiny_bundle: Path, tmp_path: Path, capsys: Any) -> None:
    image, half = a_picture(64, 96), Image.new("L", (96, 64))
    half.paste(255, (0, 0, 40, 64))
    image.save(tmp_path / "cat.png")
    half.save(tmp_path / "mask.png")
    command = ["generate", str(tiny_bundle), "a cat", "--steps", "4", "--strength", "0.5", "--seed", "3", "--quiet"]
    call = {"num_inference_steps": 4, "strength": 0.5, "seed": 3, "progress": False}
    pipe = ingot.load(tiny_bundle)
    for options, more in (([], {}), (["--mask", str(tmp_path / "mask.png")], {"mask_image": half})):
        size = {"height": 64, "width": 96} if more else {}  # inpainting makes the model's own size, as in diffusers
        sized = ["--size", "64x96"] if more else []
        out = tmp_path / "out.png"
        assert main([*command, "--image", str(tmp_path / "cat.png"), *options, *sized, "-o", str(out)]) == 0
        expected = pipe("a cat", image=image, **more, **size, **call).images[0]
        np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    capsys.readouterr()
    (tmp_path / "text.png").write_text("no picture")
    for options, message in (
        (["--image", str(tmp_path / "none.png")], "cannot read a picture from"),
        (["--image", str(tmp_path / "text.png")], "cannot read a picture from"),
        (["--mask", str(tmp_path / "mask.png")], "mask_image was given without image"),
        ([], "strength=0.5: text-to-image of StableDiffusionPipeline starts from noise"),
    ):
        assert main([*command, *options, "-o", str(tmp_path / "no.png")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


# diffusers' pipeline cannot run with the others: they noise otherwise, or are for other models
USUAL = [name for name in schedulers.SCHEDULERS if not name.startswith(("FlowMatch", "UnCLIP"))]


@pytest.mark.parametrize("scheduler", USUAL)
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
    embeds = pipe.encode_prompt(["a cat"]).astype(np.float64)  # any kind of number will do
    negative = pipe.encode_prompt(["rain"]).astype(np.float64)
    np.testing.assert_array_equal(pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, **call).images, text)


def guided_between(first: int, last: int) -> Any:
    """A callback by which diffusers guides the steps `first` to `last` only, of a call that begins as the first is."""
    embeds: dict[str, Any] = {}

    def change(pipe: Any, step: int, _: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        import torch

        given = kwargs["prompt_embeds"]
        embeds.setdefault("both", given if len(given) == 2 else torch.cat([pipe.unguided_embeds, given]))
        wanted = first <= step + 1 <= last
        pipe._guidance_scale = 7.5 if wanted else 0.0
        return {"prompt_embeds": embeds["both"] if wanted else embeds["both"].chunk(2)[1]}

    return change


@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0.0, 0.5, (0, 1)), (0.0, 0.99, (0, 3)), (0.4, 1.0, (2, 4)), (0.21, 0.8, (2, 3))]
)
def test_guidance_in_an_interval_is_that_of_diffusers(
    pipe: Any, theirs: Any, start: float, end: float, steps: tuple[int, int]
) -> None:
    """Five steps; which of them are guided is diffusers' rule for control_guidance_start and _end."""
    call = {"prompt": "a cat", "negative_prompt": "rain", "num_inference_steps": 5, "height": 64, "width": 64}
    first, last = steps
    assert [i for i in range(5) if not (i / 5 < start or (i + 1) / 5 > end)] == list(range(first, last + 1))
    theirs.unguided_embeds = theirs.encode_prompt("rain", "cpu", 1, False)[0]
    expected = diffusers_latents(
        theirs,
        "DDIMScheduler",
        **call,
        guidance_scale=7.5 if first == 0 else 0.0,
        callback_on_step_end=guided_between(first, last),
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    ours = pipe(**call, guidance_start=start, guidance_end=end, seed=0, output_type="latent", progress=False).images
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)


def test_outside_its_interval_guidance_costs_nothing(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, run = [], pipe.denoiser.run
    monkeypatch.setattr(pipe.denoiser, "run", lambda inputs: rows.append(len(inputs["sample"])) or run(inputs))
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    call = {"num_inference_steps": 4, "height": 64, "width": 64, "output_type": "latent", "progress": False}
    pipe("a cat", guidance_start=0.25, guidance_end=0.75, **call)
    assert rows == [1, 2, 2, 1]


def test_a_text_is_encoded_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"num_inference_steps": 1, "height": 64, "width": 64, "seed": 0, "output_type": "latent", "progress": False}
    with ingot.load(tiny_bundle) as fresh:
        runs, run = [], fresh.text_encoder.run
        monkeypatch.setattr(fresh.text_encoder, "run", lambda inputs: runs.append(1) or run(inputs))
        first = fresh(["a cat", "a dog", "a cat"], **call).images
        assert len(runs) == 3  # two texts, and the empty one that stands for no negative prompt
        np.testing.assert_array_equal(fresh(["a cat", "a dog", "a cat"], **call).images, first)
        fresh("a dog", negative_prompt="a cat", **call)
        assert len(runs) == 3
        fresh("a dog", negative_prompt="rain", **call)
        assert len(runs) == 4


def test_kept_embeddings_are_not_the_callers_to_change(pipe: Any) -> None:
    given = pipe.encode_prompt(["a cat"])
    given[:] = 0
    assert pipe.encode_prompt(["a cat"]).any()
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 0}
    before = [state.latents for state in pipe.steps("a cat", **call)][-1]
    for state in pipe.steps("a cat", **call):
        state.prompt_embeds[:] = 0
    np.testing.assert_array_equal([state.latents for state in pipe.steps("a cat", **call)][-1], before)


def tiny_vae(**changes: Any) -> Any:
    """A tiny autoencoder with random weights that reach past [0, 1], for latents of half a picture's sides."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(7)
    blocks = {f"{side}_block_out_channels": (16, 16) for side in ("encoder", "decoder")} | {
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    }
    return AutoencoderTiny(**{**blocks, "latent_channels": 4, "scaling_factor": 0.7, **changes})


def test_another_vae_decodes_as_in_diffusers(tiny_sd: Any, theirs: Any, tmp_path: Path) -> None:
    import torch

    tiny_vae().save_pretrained(tmp_path / "vae")
    ingot.export(tiny_sd.folder, tmp_path / "bundle", to="torch", vae=tmp_path / "vae", progress=False)
    call = {"prompt": "a cat", "num_inference_steps": 2, "height": 64, "width": 64}
    kept, theirs.vae = theirs.vae, tiny_vae()
    expected = theirs(**call, generator=torch.Generator().manual_seed(5), output_type="np").images
    theirs.vae = kept
    with ingot.load(tmp_path / "bundle") as pipe:
        ours = pipe(**call, seed=5, output_type="np", progress=False).images
        assert pipe._vae_config["_class_name"] == "AutoencoderTiny"
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)
    assert expected.std() > 0.01
    with pytest.raises(InputError, match="vae_decoder"):  # the checkpoint's own, which the bundle was not made with
        ingot.add(tmp_path / "bundle", to="openvino", progress=False)


def test_a_vae_that_does_not_fit_is_refused(tiny_sd: Any, tmp_path: Path) -> None:
    wide = tiny_vae(
        latent_channels=8, encoder_block_out_channels=(16,) * 3, decoder_block_out_channels=(16,) * 3,
        num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3,
    )  # fmt: skip
    call = {"to": "torch", "progress": False}
    with pytest.raises(
        InputError,
        match="AutoencoderTiny does not fit this model: 8 channels of latents where the model has 4; 4 pixels to a side of one "
        "where the model has 2",
    ):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", vae=wide, **call)
    with pytest.raises(InputError, match=r"holds no autoencoder: a diffusers folder with a config\.json"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", vae=tmp_path, **call)
    with pytest.raises(InputError, match="holds UNet2DConditionModel, not an autoencoder"):
        ingot.export(tiny_sd.folder, tmp_path / "bundle", vae=tiny_sd.folder / "unet", **call)
    assert not (tmp_path / "bundle").exists()


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
    "guidance in words": ({"prompt": "a", "guidance_scale": "much"}, "guidance_scale must be a number, not 'much'"),
    "endless guidance": ({"prompt": "a", "guidance_scale": float("inf")}, "guidance_scale must be a number, not inf"),
    "guidance that ends before it starts": (
        {"prompt": "a", "guidance_start": 0.5, "guidance_end": 0.5},
        r"guidance_start=0\.5 and guidance_end=0\.5 must be shares of the steps, from 0 to 1, the first below the second",
    ),
    "guidance past the end": ({"prompt": "a", "guidance_end": 1.5}, r"guidance_end=1\.5 must be shares"),
    "guidance from nowhere": ({"prompt": "a", "guidance_start": None}, "guidance_start must be a number, not None"),
    "caching without the shallow graph": ({"prompt": "a", "cache_interval": 2}, "export it with --deep-cache 0"),
    "no interval": ({"prompt": "a", "cache_interval": 0}, "cache_interval must be a whole number of at least 1, not 0"),
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
    with pytest.raises(
        InputError, match="unknown scheduler 'WonderScheduler'; available: CMStochasticIterativeScheduler"
    ):
        schedulers.from_config({**pipe.scheduler.config, "_class_name": "WonderScheduler"})
