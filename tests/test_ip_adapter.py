"""IP-Adapters without PyTorch against diffusers' own pipeline: same seed, same latents.

Tolerance on latents 1e-4, relative to the largest, as for ControlNets. The engines are the captured torch components.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from ingot import InputError
from ingot.exporters.capture import capture
from ingot.exporters.deepcache import FEATURES
from ingot.exporters.ip_adapter import SCALE, adapters
from ingot.runtimes.engines import run_in_batches
from ingot.runtimes.image_processor import ClipImageProcessor
from ingot.runtimes.signature import Signature, TensorSpec

from .eager import Pair, eager, picture, require_equal
from .tiny_controls import ip_adapter, ip_adapter_plus, two_ip_adapters

A, B = picture(40, 64, seed=1), picture(30, 20, seed=2)
PROMPTS = ["a cat", "a red dog"]


class Prompted(Pair):
    """A checkpoint as it is in memory: diffusers does not save a UNet with its IP-Adapters."""

    def __init__(self, build: Any, folder: Any) -> None:
        self.pipe = build(folder / "parts")
        self.parts = eager(self.pipe, folder / "bundle")

    def theirs(self, class_name: str | None = None) -> Any:
        """The pipeline, with the scale that it was exported with."""
        self.pipe.set_ip_adapter_scale([0.7] * adapters(self.pipe.unet))
        return super().theirs(class_name)


@pytest.fixture(scope="module", params=[ip_adapter, ip_adapter_plus], ids=["embedding", "hidden states"])
def single(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    return Prompted(request.param, tmp_path_factory.mktemp("ip"))


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    return Prompted(two_ip_adapters, tmp_path_factory.mktemp("ip2"))


SINGLE: dict[str, dict[str, Any]] = {
    "one prompt": {"height": 64, "width": 64},
    "another size, two prompts, two of each": {
        "prompt": PROMPTS,
        "height": 48,
        "width": 80,
        "num_images_per_prompt": 2,
    },
    "without guidance": {"height": 64, "width": 64, "guidance_scale": 1.0, "num_images_per_prompt": 2},
}


@pytest.mark.parametrize("name", SINGLE)
def test_latents_equal_diffusers(single: Prompted, name: str) -> None:
    require_equal(single.both(ip_adapter_image=A, **SINGLE[name]))


SCALES: dict[str, Any] = {
    "a number": 0.3,
    "none": 0.0,
    "parts": {"up": 0.9},
    "blocks": {"down": {"block_0": [0.4]}, "up": {"block_1": 1.5}},
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_at_run_time_equal_diffusers(single: Prompted, name: str) -> None:
    theirs, ours = single.theirs(), single.ours()
    call = {"prompt": "a cat", "ip_adapter_image": B, "num_inference_steps": 3, "height": 64, "width": 64}
    theirs.set_ip_adapter_scale(SCALES[name])
    expected = theirs(**call, generator=torch.Generator().manual_seed(3), output_type="latent").images.numpy()
    call |= {"seed": 3, "output_type": "latent", "progress": False}
    require_equal((ours(**call, ip_adapter_scale=SCALES[name]).images, expected))
    ours.set_ip_adapter_scale(SCALES[name])
    require_equal((ours(**call).images, expected))


def test_two_adapters_equal_diffusers(double: Prompted) -> None:
    require_equal(double.both(ip_adapter_image=[A, B], height=64, width=64, num_images_per_prompt=2))
    theirs = double.theirs()
    theirs.set_ip_adapter_scale([0.2, {"down": 1.0}])
    call = {"prompt": "a cat", "ip_adapter_image": [A, B], "num_inference_steps": 3, "height": 64, "width": 64}
    expected = theirs(**call, generator=torch.Generator().manual_seed(3), output_type="latent").images.numpy()
    call |= {"seed": 3, "output_type": "latent", "progress": False, "ip_adapter_scale": [0.2, {"down": 1.0}]}
    require_equal((double.ours()(**call).images, expected))


def test_embeddings_stand_for_pictures(single: Prompted) -> None:
    theirs, ours = single.theirs(), single.ours()
    tensors = theirs.prepare_ip_adapter_image_embeds(A, None, "cpu", 1, True)
    call = {"prompt": "a cat", "num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"}
    expected = theirs(
        **call, ip_adapter_image_embeds=tensors, generator=torch.Generator().manual_seed(0)
    ).images.numpy()
    arrays = [tensor.detach().numpy() for tensor in tensors]
    require_equal((ours(**call, ip_adapter_image_embeds=arrays, seed=0, progress=False).images, expected))


def test_without_a_picture_the_model_is_the_plain_one(single: Prompted) -> None:
    """Which diffusers does with a scale of 0 and any picture."""
    theirs = single.theirs()
    theirs.set_ip_adapter_scale(0.0)
    call = {"prompt": "a cat", "num_inference_steps": 3, "height": 64, "width": 64, "output_type": "latent"}
    expected = theirs(**call, ip_adapter_image=A, generator=torch.Generator().manual_seed(0)).images.numpy()
    require_equal((single.ours()(**call, seed=0, progress=False).images, expected))


def test_a_picture_to_start_from_goes_with_one_as_prompt(single: Prompted) -> None:
    call = {"image": picture(64, 64, seed=4), "ip_adapter_image": A, "strength": 0.6}
    require_equal(single.both("StableDiffusionImg2ImgPipeline", **call))


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (16, 16), (9, 50), (301, 17)])
def test_pictures_are_prepared_as_transformers_does(size: tuple[int, int]) -> None:
    theirs = CLIPImageProcessor(size=20, crop_size={"height": 20, "width": 18})
    image = picture(*size, seed=5)
    # bit for bit: the same operations of PIL and NumPy in the same order
    expected = np.asarray(theirs(image, return_tensors="np").pixel_values)
    np.testing.assert_array_equal(ClipImageProcessor(theirs.to_dict())(image), expected)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "pictures that do not count up": (
        {"ip_adapter_image": [A, B]},
        "ip_adapter_image has 2 pictures for 1 IP-Adapters; give a list of one for each",
    ),
    "several pictures for one": (
        {"ip_adapter_image": [[A, B]]},
        "several pictures for one IP-Adapter; this bundle's take one",
    ),
    "an alpha channel": ({"ip_adapter_image": A.convert("RGBA")}, "ip_adapter_image has an alpha channel"),
    "no picture": ({"ip_adapter_image": "cat.png"}, "ip_adapter_image must be a PIL image"),
    "both": (
        {"ip_adapter_image": A, "ip_adapter_image_embeds": []},
        "ip_adapter_image or ip_adapter_image_embeds, not both",
    ),
    "embeddings of another shape": (
        {"ip_adapter_image_embeds": [np.zeros((2, 1, 5))]},
        r"ip_adapter_image_embeds has shape \(2, 1, 5\), not \(2, 1, ",
    ),
    "embeddings that do not count up": ({"ip_adapter_image_embeds": []}, "has 0 arrays for 1 IP-Adapters"),
    "scales that do not count up": ({"ip_adapter_image": A, "ip_adapter_scale": [1, 1]}, "2 scales for 1 IP-Adapters"),
    "a scale without a picture": ({"ip_adapter_scale": 1.0}, "ip_adapter_scale was given without ip_adapter_image"),
    "a text as scale": ({"ip_adapter_image": A, "ip_adapter_scale": "1"}, "ip_adapter_scale must be a number, not '1'"),
    "a part that there is not": (
        {"ip_adapter_image": A, "ip_adapter_scale": {"left": 1.0}},
        "ip_adapter_scale names 'left'; a denoiser's parts are down, mid, up",
    ),
    "too few numbers for a block": (
        {"ip_adapter_image": A, "ip_adapter_scale": {"up": {"block_1": [1.0]}}},
        "ip_adapter_scale has 1 numbers for a block with at least 2 attentions",
    ),
    "a control picture": ({"control_image": A}, "neither ControlNet nor T2I-Adapter: export a pipeline with one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(single: Prompted, name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        single.ours()(**{"prompt": "a cat", "progress": False, **call})


def test_scales_go_whole_to_every_part_of_a_batch() -> None:
    """Of two adapters, where a static graph takes one picture at a time and two are made."""

    class Static:
        signature = Signature(
            (TensorSpec("sample", "float32", (1, 4)), TensorSpec(SCALE, "float32", (2, 3))),
            (TensorSpec("out", "float32", (1, 4)),),
        )

        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            self.signature.check(inputs)
            return {"out": inputs["sample"] * inputs[SCALE].sum()}

        def close(self) -> None: ...

    sample, scale = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run_in_batches(Static(), {"sample": sample, SCALE: scale})["out"], sample * 6)


def test_deep_cache_keeps_the_adapters(tmp_path: Path) -> None:
    """With features of the same step the shallow graph answers what the whole one does, at any scale; 1e-4 relative to the
    answers, as graphs are held."""
    components = {component.role: component for component in capture(ip_adapter(tmp_path), deep_cache=1)}
    unet, shallow = components["unet"], components["unet_shallow"]
    names = [spec.name for spec in shallow.signature.inputs]
    assert {SCALE, "added_cond_kwargs.image_embeds.0"} <= set(names)
    answers = []
    for factor in (1.0, 3.0):
        given = {**unet.calls[-1].inputs, SCALE: unet.calls[-1].inputs[SCALE] * factor}
        whole = unet.run(given)
        part = shallow.run({**given, FEATURES: whole[FEATURES]})
        answers.append(whole["out_sample"].numpy())
        np.testing.assert_allclose(
            part["out_sample"].numpy(), answers[-1], atol=1e-4 * np.abs(answers[-1]).max(), rtol=0
        )
    assert np.abs(answers[0] - answers[1]).max() > 1e-2
