"""ControlNets without PyTorch against diffusers' own pipelines: same seed, same latents.

Tolerance on latents 1e-4, relative to the largest: float32 on both sides, over a few steps (numerics of the acceptance of every
family). The engines are the captured torch components; that graphs compute the same is every export's own proof.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ingot import InputError, commands
from ingot.cli import main
from ingot.runtimes.signature import Signature, TensorSpec

from .eager import Pair, mask, pair, picture, require_equal, running
from .tiny_controls import control_net, inpainting_net, pooling_net, two_nets, xl_net

one = pair(control_net)
two = pair(two_nets)
pooling = pair(pooling_net)
inpainting = pair(inpainting_net)
xl = pair(xl_net)

A, B = picture(64, 64, seed=1), picture(64, 64, seed=2)
PROMPTS = ["a cat", "a red dog"]
TEXT: dict[str, dict[str, Any]] = {
    "one prompt": {"image": A},
    "another size": {"image": picture(48, 80, seed=1)},
    "a size that the picture does not have": {"image": A, "height": 48, "width": 80},
    "prompts with a picture each, two of each": {"prompt": PROMPTS, "image": [A, B], "num_images_per_prompt": 2},
    "prompts that share a picture": {"prompt": PROMPTS, "image": A, "num_images_per_prompt": 2},
    "without guidance": {"image": A, "guidance_scale": 1.0},
    "a scale": {"image": A, "controlnet_conditioning_scale": 0.4},
    "an interval": {"image": A, "control_guidance_start": 0.2, "control_guidance_end": 0.7},
    "guess mode": {"image": A, "guess_mode": True, "guidance_scale": 3.0},
    "guess mode without guidance": {"image": A, "guess_mode": True, "guidance_scale": 1.0},
    "a grey picture": {"image": A.convert("L")},
}


@pytest.mark.parametrize("name", TEXT)
def test_latents_equal_diffusers(control_net: Pair, name: str) -> None:
    require_equal(control_net.both(**TEXT[name]))


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "image to image": ("StableDiffusionControlNetImg2ImgPipeline", {"image": B, "control_image": A}),
    "image to image, more of it": (
        "StableDiffusionControlNetImg2ImgPipeline",
        {"image": B, "control_image": A, "strength": 0.5, "control_guidance_end": 0.5, "num_images_per_prompt": 2},
    ),
    "inpainting": ("StableDiffusionControlNetInpaintPipeline", {"image": B, "mask_image": mask(64, 64), "control_image": A}),
    "inpainting, prompts with a picture each": (
        "StableDiffusionControlNetInpaintPipeline",
        {
            "prompt": PROMPTS, "image": [B, A], "mask_image": [mask(64, 64), mask(64, 64, 8)], "control_image": [A, B],
            "num_images_per_prompt": 2, "strength": 0.8, "guess_mode": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_pictures_to_start_from_equal_diffusers(control_net: Pair, name: str) -> None:
    class_name, call = TASKS[name]
    require_equal(control_net.both(class_name, **call))


def test_inpainting_takes_the_pictures_size(control_net: Pair) -> None:
    call = {"image": picture(48, 64, seed=2), "mask_image": mask(48, 64), "control_image": picture(48, 64, seed=1)}
    latents = control_net.both("StableDiffusionControlNetInpaintPipeline", **call)
    assert latents[0].shape[2:] == (24, 32)
    require_equal(latents)


def test_a_checkpoint_made_for_inpainting_gives_its_net_the_latents_alone(inpainting_net: Pair) -> None:
    require_equal(inpainting_net.both(image=B, mask_image=mask(64, 64), control_image=A))


TWO: dict[str, dict[str, Any]] = {
    "one scale": {"image": [A, B], "controlnet_conditioning_scale": 0.6},
    "scales and intervals of their own": {
        "image": [A, B], "controlnet_conditioning_scale": [0.5, 1.5], "control_guidance_start": [0.0, 0.4],
        "control_guidance_end": [0.6, 1.0],
    },
    "lists of pictures for each prompt": {"prompt": PROMPTS, "image": [[A, B], [B, A]], "num_images_per_prompt": 2},
    "guess mode": {"image": [A, B], "guess_mode": True},
    "without guidance": {"image": [A, B], "guidance_scale": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_two_nets_equal_diffusers(two_nets: Pair, name: str) -> None:
    require_equal(two_nets.both(**TWO[name]))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_net_of_means_equals_diffusers(pooling_net: Pair, guidance: float) -> None:
    require_equal(pooling_net.both(image=A, guidance_scale=guidance))


XL: dict[str, tuple[str | None, dict[str, Any]]] = {
    "text to image": (None, {"image": [A, B], "controlnet_conditioning_scale": [0.5, 1.0], "original_size": (90, 70)}),
    "prompts, two of each": (None, {"prompt": PROMPTS, "image": [A, B], "num_images_per_prompt": 2, "guidance_scale": 1.0}),
    "guess mode": (None, {"image": [picture(48, 80), picture(48, 80, seed=3)], "guess_mode": True}),
    "image to image": ("StableDiffusionXLControlNetImg2ImgPipeline", {"image": B, "control_image": [A, B]}),
    "inpainting": (
        "StableDiffusionXLControlNetInpaintPipeline",
        {"image": B, "mask_image": mask(64, 64), "control_image": [A, B], "control_guidance_end": 0.8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", XL)
def test_stable_diffusion_xl_equals_diffusers(xl_net: Pair, name: str) -> None:
    class_name, call = XL[name]
    require_equal(xl_net.both(class_name, **call))


def test_without_a_picture_the_model_is_the_plain_one(control_net: Pair) -> None:
    latents = control_net.both("StableDiffusionPipeline", height=64, width=48, num_images_per_prompt=2)
    require_equal(latents)
    with pytest.raises(InputError, match=r"steers by a picture: .*pipeline='StableDiffusionPipeline'"):
        control_net.ours()("a cat")


def runs_of(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each run of an engine from now on."""
    rows, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda inputs: rows.append(len(inputs["sample"])) or run(inputs))
    return rows


CALLS_OF_NETS = {
    "both": ({}, [[2] * 4, [2] * 4]),
    "a scale of 0": ({"controlnet_conditioning_scale": [0.0, 1.0]}, [[], [2] * 4]),
    "intervals": ({"control_guidance_start": [0.5, 0.0], "control_guidance_end": [1.0, 0.25]}, [[2, 2], [2]]),
    "guess mode": ({"guess_mode": True}, [[1] * 4, [1] * 4]),
}


@pytest.mark.parametrize("name", CALLS_OF_NETS)
def test_a_net_runs_only_where_it_says_something(two_nets: Pair, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, expected = CALLS_OF_NETS[name]
    rows = [runs_of(two_nets.parts["engines"][role], monkeypatch) for role in ("controlnet", "controlnet_2")]
    two_nets.ours()("a cat", control_image=[A, B], num_inference_steps=4, output_type="latent", progress=False, **call)
    assert rows == expected


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an array of another size": (
        {"image": np.zeros((32, 64, 3), np.uint8), "height": 64, "width": 64},
        r"control_image is an array of 32x64 pixels, not 64x64",
    ),
    "an alpha channel": ({"image": A.convert("RGBA")}, r"control_image has an alpha channel \(RGBA\)"),
    "no picture": ({"control_image": "edges.png"}, "control_image must be a PIL image"),
    "pictures that do not count up": (
        {"prompt": PROMPTS, "image": [A, B, A]},
        "3 control pictures for 2 prompts; give one, or one for each",
    ),
    "scales that do not count up": (
        {"image": A, "controlnet_conditioning_scale": [1.0, 0.5]},
        "controlnet_conditioning_scale has 2 numbers for 1 models",
    ),
    "a text as scale": ({"image": A, "controlnet_conditioning_scale": "1"}, "must be a number, not '1'"),
    "an interval that ends before it starts": (
        {"image": A, "control_guidance_start": 0.6, "control_guidance_end": 0.4},
        r"control_guidance_start=0\.6 and control_guidance_end=0\.4 must be shares of the steps",
    ),
    "an interval past the end": (
        {"image": A, "control_guidance_end": 1.5},
        r"control_guidance_end=1\.5 must be shares",
    ),
    "a scale without a picture": (
        {"controlnet_conditioning_scale": 0.5},
        "controlnet_conditioning_scale without control_image, the picture to steer by",
    ),
    "an adapter's scale": (
        {"image": A, "adapter_conditioning_scale": 0.5},
        "adapter_conditioning_scale: this bundle has no T2I-Adapter; export a pipeline with one, such as StableDiffusionAdapter",
    ),
    "a picture as prompt": (
        {"image": A, "ip_adapter_image": A},
        r"ip_adapter_image: this bundle's denoiser was not made for pictures as prompts; export a pipeline after its load_ip_adapter",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(control_net: Pair, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        control_net.ours()(**{"prompt": "a cat", "progress": False, **call})


def test_two_nets_want_two_pictures(two_nets: Pair) -> None:
    pipe = two_nets.ours()
    with pytest.raises(InputError, match="control_image has 1 pictures for 2 nets; give a list of one for each"):
        pipe("a cat", image=A)
    with pytest.raises(InputError, match=r"control_image has lists of \[1\] pictures for 2 nets"):
        pipe(PROMPTS, image=[[A], [B]])
    with pytest.raises(InputError, match="control_guidance_end has 3 numbers for 2 models"):
        pipe("a cat", image=[A, B], control_guidance_end=[0.5, 1.0, 1.0])


def test_a_bundle_without_nets_says_what_to_export(control_net: Pair) -> None:
    parts = {
        **control_net.parts,
        "engines": {r: e for r, e in control_net.parts["engines"].items() if r != "controlnet"},
    }
    with pytest.raises(
        InputError, match="neither ControlNet nor T2I-Adapter: export a pipeline with one, such as Stable"
    ):
        running(parts, "StableDiffusionPipeline")("a cat", control_image=A)


def test_a_shape_is_told_by_the_arrays_beside_it() -> None:
    dims = {
        "sample": ("batch", 4, "height/8", "width/8"),
        "deep": ("batch", 320, "height/32", "2*width/8"),
        "odd": ("frames",),
    }
    signature = Signature(tuple(TensorSpec(name, "float32", shape) for name, shape in dims.items()), ())
    given = {"sample": np.empty((2, 4, 65, 64))}
    # 65 rows halve to 33, and these to 17, as strided convolutions do
    assert signature.shape_beside("deep", given) == (2, 320, 17, 128)
    assert signature.shape_beside("sample", given) == (2, 4, 65, 64)
    with pytest.raises(InputError, match="'odd': nothing given tells frames"):
        signature.shape_beside("odd", given)


def test_the_command_line_hands_control_pictures_on(
    two_nets: Pair, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    pipe = two_nets.ours()
    honest = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda latents: decoded.append(latents) or honest(latents))
    monkeypatch.setattr(commands, "load", lambda *_, **__: pipe)
    monkeypatch.setattr(commands.saving, "output_of", lambda asked, *_, **__: asked)  # there is no bundle to ask
    for name, image in (("a", A), ("b", B)):
        image.save(tmp_path / f"{name}.png")
    base = ["generate", "bundle", "a cat", "--steps", "2", "--size", "64", "--quiet", "-o", str(tmp_path / "o.png")]
    pictures = ["--control-image", str(tmp_path / "a.png"), "--control-image", str(tmp_path / "b.png")]
    assert main([*base, *pictures, "--control-scale", "0.5", "--control-scale", "1.5"]) == 0
    call = {
        "num_inference_steps": 2,
        "height": 64,
        "width": 64,
        "seed": [0],
        "output_type": "latent",
        "progress": False,
    }
    same = pipe("a cat", control_image=[A, B], controlnet_conditioning_scale=[0.5, 1.5], **call).images
    np.testing.assert_array_equal(decoded[0], same)
    assert main([*base, "--control-image", str(tmp_path / "none.png")]) == 1
