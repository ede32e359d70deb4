"""A call with an argument that cannot be used runs no graph and draws no number: every argument is checked before the first.

Each family is called as it should be, then with one bad value of each argument that its call has; a new argument needs a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ingot import InputError
from ingot.runtimes.noise import Generator
from ingot.runtimes.pipelines import pipeline_class

from . import tiny, tiny_controls, tiny_families
from .eager import Eager, eager, mask, picture, running
from .test_families_kandinsky import build_decoder, build_prior, embeds

# diffusers asks for float32 under autocast before it estimates depth, and torch says that it has none
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

IMAGE, SMALL = picture(32, 32), picture(16, 16)
NUMBER: list[Any] = ["much", float("nan")]
COUNT: list[Any] = [0, 1.5, "two"]
TEXT: list[Any] = [3, [], ["a", 3]]
SHAPE: list[Any] = ["abc", np.zeros((1, 2)), [[1.0], [1.0, 2.0]]]
SWITCH: list[Any] = ["yes", 1]
SHARE: list[Any] = ["half", -0.5, 1.5]
PICTURE: list[Any] = ["cat.png", [], IMAGE.convert("RGBA"), np.zeros((4, 4))]
PAIR: list[Any] = [(1, 2, 3), "ab", (1.5, 2)]
OTHER_COUNT = ["a", "b", "c"]

# By argument; None stands for "as if it were not given" and is bad only where it is listed.
BAD: dict[str, list[Any]] = {
    "num_inference_steps": COUNT, "timesteps": ["abc", [], [-1.0]], "sigmas": ["abc", [], [float("nan")]],
    "eta": NUMBER, "seed": ["one", [1, 2, 3, 4, 5], 2**65], "generator": [3, [Generator(0)] * 5], "latents": SHAPE,
    "prompt": TEXT, "negative_prompt": [*TEXT[:1], OTHER_COUNT], "image": PICTURE, "mask_image": ["mask.png", IMAGE.convert("RGBA")],
    "padding_mask_crop": [-1, 1.5], "strength": SHARE, "control_image": PICTURE,
    "controlnet_conditioning_scale": [*NUMBER, [1.0, 1.0]], "control_guidance_start": SHARE, "control_guidance_end": SHARE,
    "guess_mode": SWITCH, "adapter_conditioning_scale": [*NUMBER, [1.0, 1.0]], "adapter_conditioning_factor": SHARE,
    "ip_adapter_image": PICTURE, "ip_adapter_image_embeds": [*SHAPE, "abc"], "ip_adapter_scale": [*NUMBER, {"left": 1.0}],
    "height": [0, 33, "tall"], "width": [0, 33, "wide"], "guidance_scale": NUMBER, "guidance_rescale": NUMBER,
    "num_images_per_prompt": COUNT, "prompt_embeds": SHAPE, "negative_prompt_embeds": SHAPE, "clip_skip": [-1, 1.5, 99],
    "prompt_weighting": SWITCH, "long_prompts": SWITCH, "guidance_start": SHARE, "guidance_end": SHARE,
    "cache_interval": [0, "two", 2], "cache_schedule": ["often", [99], 3], "cache_center": ["middle", 0],
    "cache_power": [*NUMBER, 1.0],
    # those of single families
    "image_guidance_scale": NUMBER, "noise_level": [-1, 1.5, 10**6], "depth_map": [*SHAPE[::2], np.zeros((4, 4))],
    "original_inference_steps": COUNT, "prompt_2": TEXT[::2], "prompt_3": TEXT[::2], "negative_prompt_2": TEXT[::2],
    "negative_prompt_3": TEXT[::2], "pooled_prompt_embeds": SHAPE, "negative_pooled_prompt_embeds": SHAPE,
    "original_size": PAIR, "crops_coords_top_left": PAIR, "target_size": PAIR, "negative_original_size": PAIR,
    "negative_crops_coords_top_left": PAIR, "negative_target_size": PAIR, "aesthetic_score": NUMBER,
    "negative_aesthetic_score": NUMBER, "denoising_start": SHARE, "denoising_end": SHARE, "true_cfg_scale": NUMBER,
    "max_sequence_length": [3, "long"], "mu": NUMBER, "prompt_attention_mask": SHAPE, "negative_prompt_attention_mask": SHAPE,
    "use_resolution_binning": SWITCH, "clean_caption": [*SWITCH, True], "class_labels": ["unicorn", -1, []],
    "batch_size": COUNT, "image_embeds": SHAPE, "negative_image_embeds": SHAPE,
}  # fmt: skip
# What says the same otherwise, so that it must not stand beside.
INSTEAD = {
    "timesteps": "num_inference_steps", "sigmas": "num_inference_steps", "prompt_embeds": "prompt",
    "ip_adapter_image_embeds": "ip_adapter_image",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """How one is built, by whose rules it is called, with what, and which components that runs."""

    build: Callable[[Path], Any]
    class_name: str
    call: Mapping[str, Any]
    runs: tuple[str, ...]


TEXT_CALL = {"prompt": "a cat"}
SIZE = {"height": 32, "width": 32}
FAMILIES = {
    "image to image, a picture as prompt": Family(
        tiny_controls.ip_adapter, "StableDiffusionImg2ImgPipeline",
        {**TEXT_CALL, "image": IMAGE, "ip_adapter_image": IMAGE}, ("image_encoder", "vae_encoder", "text_encoder", "unet"),
    ),
    "inpainting": Family(
        tiny.inpaint, "StableDiffusionInpaintPipeline", {**TEXT_CALL, "image": IMAGE, "mask_image": mask(32, 32), **SIZE},
        ("vae_encoder", "text_encoder", "unet"),
    ),
    "ControlNet": Family(
        tiny_controls.control_net, "StableDiffusionControlNetImg2ImgPipeline",
        {**TEXT_CALL, "image": IMAGE, "control_image": IMAGE}, ("vae_encoder", "text_encoder", "controlnet", "unet"),
    ),
    "T2I-Adapter, XL": Family(
        tiny_controls.xl_adapter, "StableDiffusionXLAdapterPipeline", {**TEXT_CALL, "image": IMAGE},
        ("text_encoder", "text_encoder_2", "adapter", "unet"),
    ),
    "XL, image to image": Family(
        tiny.sdxl, "StableDiffusionXLImg2ImgPipeline", {**TEXT_CALL, "image": IMAGE, "strength": 0.6},
        ("vae_encoder", "text_encoder", "text_encoder_2", "unet"),
    ),
    "InstructPix2Pix": Family(
        tiny.pix2pix, "StableDiffusionInstructPix2PixPipeline", {**TEXT_CALL, "image": IMAGE},
        ("vae_encoder", "text_encoder", "unet"),
    ),
    "InstructPix2Pix, XL": Family(
        tiny.sdxl_edit, "StableDiffusionXLInstructPix2PixPipeline", {**TEXT_CALL, "image": IMAGE, **SIZE},
        ("vae_encoder", "text_encoder", "unet"),
    ),
    "depth": Family(
        tiny.depth, "StableDiffusionDepth2ImgPipeline", {**TEXT_CALL, "image": IMAGE},
        ("depth_estimator", "vae_encoder", "text_encoder", "unet"),
    ),
    "upscaling": Family(
        tiny.upscaler, "StableDiffusionUpscalePipeline", {**TEXT_CALL, "image": SMALL}, ("text_encoder", "unet")
    ),
    "variation": Family(
        tiny.variation, "StableDiffusionImageVariationPipeline", {"image": IMAGE, **SIZE}, ("image_encoder", "unet")
    ),
    "latent consistency": Family(
        tiny.lcm, "LatentConsistencyModelImg2ImgPipeline", {**TEXT_CALL, "image": IMAGE},
        ("vae_encoder", "text_encoder", "unet"),
    ),
    "PixArt": Family(tiny_families.pixart_alpha, "PixArtAlphaPipeline", {**TEXT_CALL, **SIZE, "use_resolution_binning": False},
        ("text_encoder", "transformer"),
    ),
    "Stable Diffusion 3": Family(
        tiny_families.sd3, "StableDiffusion3Img2ImgPipeline", {**TEXT_CALL, "image": IMAGE, **SIZE},
        ("vae_encoder", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"),
    ),
    "FLUX": Family(
        tiny_families.flux, "FluxImg2ImgPipeline", {**TEXT_CALL, "image": IMAGE, **SIZE},
        ("vae_encoder", "text_encoder", "text_encoder_2", "transformer"),
    ),
    "Kandinsky's prior": Family(build_prior, "KandinskyV22PriorPipeline", TEXT_CALL, ("text_encoder", "prior")),
    "Kandinsky's decoder": Family(build_decoder, "KandinskyV22Pipeline", SIZE, ("unet",)),
    "classes": Family(tiny_families.dit, "DiTPipeline", {"class_labels": [1]}, ("transformer",)),
    "pixels of classes": Family(tiny_families.consistency, "ConsistencyModelPipeline", {"class_labels": [1]}, ("unet",)),
}  # fmt: skip


class Watched(Eager):
    """An engine that says when it runs."""

    def __init__(self, engine: Eager, role: str, ran: list[str]) -> None:
        super().__init__(engine.component)
        self.role, self.ran = role, ran

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.ran.append(self.role)
        return super().run(inputs)


@dataclasses.dataclass(frozen=True)
class Built:
    """A family's pipeline, whose engines write down in `ran` when they run; and a call that is right."""

    pipe: Any
    ran: list[str]
    call: Mapping[str, Any]

    def __call__(self, **changes: Any) -> Any:
        """Call the pipeline, with nothing encoded yet."""
        self.ran.clear()
        self.pipe._forget()
        call = {"num_inference_steps": 5, **self.call, **changes}
        call = {name: value for name, value in call.items() if name not in {INSTEAD.get(other) for other in changes}}
        return self.pipe(**call, progress=False)


_built: dict[str, Built] = {}


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    _built.clear()


def built(name: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    if name not in _built:
        family, ran = FAMILIES[name], []  # type: tuple[Family, list[str]]
        folder = tmp_path_factory.mktemp("family")
        pipe = family.build(folder / "parts")
        pipe.set_progress_bar_config(disable=True)
        (folder / "bundle").mkdir()
        parts = eager(pipe, folder / "bundle")
        engines = {role: Watched(engine, role, ran) for role, engine in parts["engines"].items()}
        call = dict(family.call)
        if name == "Kandinsky's decoder":
            call |= embeds(1, pipe.unet.config.encoder_hid_dim)
        _built[name] = Built(running({**parts, "engines": engines}, family.class_name), ran, call)
    return _built[name]


def arguments(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(pipeline_class(FAMILIES[name].class_name).call_type)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_good_call_runs_its_components(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    family = built(name, tmp_path_factory)
    family()
    assert set(FAMILIES[name].runs) <= set(family.ran)
    assert set(arguments(name)) <= set(BAD)


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name in FAMILIES for argument in arguments(name)])
def test_a_bad_argument_is_refused_before_anything_runs(
    name: str, argument: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = built(name, tmp_path_factory)
    for value in BAD[argument]:
        generator = Generator(0)
        changes = {argument: value} if argument in ("generator", "seed") else {argument: value, "generator": generator}
        with pytest.raises(InputError):
            family(**changes)
        assert not family.ran, f"{argument}={value!r}"
        assert generator.randn((1,)) == Generator(0).randn((1,)), f"{argument}={value!r} drew a number"
