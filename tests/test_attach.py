"""Pipelines of diffusers with a bundle's graphs in the place of their modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import ingot
from ingot.benchmarks.attach_table import answer
from ingot.exporters.attach import attached_roles
from ingot.exporters.capture import record_twice
from ingot.exporters.dummies import Sizes
from ingot.exporters.piecewise import export_pieces
from ingot.exporters.recording import record
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import EngineError, InputError
from ingot.runtimes.manifest import decode, encode

# float32 graphs of tiny random models through two steps, against torch: the limit for latents
TOLERANCE = 1e-4
SD_ROLES = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module")
def pipe(tiny_sd: Any, tiny_bundle: Path) -> Iterator[Any]:
    """Stable Diffusion with everything attached."""
    made = diffusers.StableDiffusionPipeline(**tiny_sd.pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    yield ingot.attach(made, tiny_bundle, engine="onnx", threads=1)
    ingot.detach(made)


def draw(pipe: Any, **more: Any) -> Any:
    given = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np", **more}
    with torch.no_grad():
        return pipe(**given)[0]


def text(**more: Any) -> dict[str, Any]:
    return {"prompt": ["a red cat", "two rings"], "height": 24, "width": 32, **more}


def test_the_pipeline_makes_the_pictures_that_it_made(pipe: Any, tiny_sd: Any) -> None:
    assert attached_roles(pipe) == SD_ROLES
    for more in ({}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}, {"output_type": "latent"}):
        wanted, found = (np.asarray(draw(one, **text(**more))) for one in (tiny_sd.pipe, pipe))
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_no_torch_module_computes(pipe: Any, tiny_sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("torch computed")

    for module in (
        tiny_sd.pipe.unet.conv_in,
        tiny_sd.pipe.vae.decoder,
        tiny_sd.pipe.text_encoder.get_input_embeddings(),
    ):
        monkeypatch.setattr(module, "forward", fail)
    assert draw(pipe, **text()).shape == (2, 24, 32, 3)


def test_other_tasks_share_the_components_and_other_pipelines_keep_theirs(pipe: Any, tiny_sd: Any) -> None:
    assert type(tiny_sd.pipe.unet) is diffusers.UNet2DConditionModel
    parts = {"requires_safety_checker": False, **pipe.components}
    attached, plain = (
        diffusers.StableDiffusionImg2ImgPipeline(**{**parts, **own}) for own in ({}, tiny_sd.pipe.components)
    )
    pictures = np.random.RandomState(0).rand(2, 24, 32, 3).astype(np.float32)
    for one in (attached, plain):
        one.set_progress_bar_config(disable=True)
    given = {"prompt": ["a red cat", "two rings"], "image": pictures, "strength": 0.9, "num_inference_steps": 3}
    np.testing.assert_allclose(draw(attached, **given), draw(plain, **given), atol=TOLERANCE, rtol=0)


def test_a_module_looks_as_it_did(pipe: Any, tiny_sd: Any) -> None:
    for name in ("unet", "vae", "text_encoder"):
        here, there = getattr(pipe, name), getattr(tiny_sd.pipe, name)
        assert here is not there
        assert isinstance(here, type(there))
        assert (here.config, here.dtype, here.device) == (there.config, there.dtype, there.device)
        assert type(here).__name__ == type(there).__name__
    assert pipe.unet.config.in_channels == 4
    assert pipe.unet.time_embedding is tiny_sd.pipe.unet.time_embedding
    assert pipe.device == torch.device("cpu")
    assert pipe.dtype == torch.float32
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")


@torch.no_grad()
def test_answers_have_the_modules_own_form(pipe: Any, tiny_sd: Any) -> None:
    latents, words = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1)), torch.zeros(2, 77, 32)
    answer = pipe.unet(latents, 7, encoder_hidden_states=words)
    assert isinstance(answer, diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput)
    torch.testing.assert_close(answer.sample, tiny_sd.pipe.unet(latents, 7, words).sample, atol=TOLERANCE, rtol=0)
    one = pipe.unet(latents, torch.tensor([7, 7]), words, return_dict=False)
    assert isinstance(one, tuple)
    torch.testing.assert_close(one[0], answer.sample, atol=0, rtol=0)
    posterior = pipe.vae.encode(torch.zeros(1, 3, 16, 24)).latent_dist
    assert isinstance(posterior, DiagonalGaussianDistribution)
    wanted = tiny_sd.pipe.vae.encode(torch.zeros(1, 3, 16, 24), return_dict=False)[0]
    torch.testing.assert_close(posterior.mode(), wanted.mode(), atol=TOLERANCE, rtol=0)
    ids = torch.arange(77)[None]
    assert pipe.text_encoder(ids).hidden_states is None
    assert len(pipe.text_encoder(ids, output_hidden_states=True).hidden_states) == 4
    torch.testing.assert_close(pipe.text_encoder(ids)[1], tiny_sd.pipe.text_encoder(ids)[1], atol=TOLERANCE, rtol=0)


MADE, TAKES = "and the graph was made with nothing", "and the graph takes"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_attention_mask", torch.ones(1, 77), rf"encoder_attention_mask is a tensor of \[1, 77\] {MADE}"),
        ("cross_attention_kwargs", {"scale": 0.5}, f"cross_attention_kwargs.scale is 0.5 {MADE}"),
        ("encoder_hidden_states", None, "the graph takes encoder_hidden_states, which this call does not give"),
        (
            "encoder_hidden_states", torch.zeros(1, 7, 32),
            rf"encoder_hidden_states has the shape \[1, 7, 32\] {TAKES} \['batch', 77, 32\]",
        ),
        (
            "encoder_hidden_states", torch.zeros(1, 77, 32, dtype=torch.int64),
            f"encoder_hidden_states is int64 {TAKES} float32",
        ),
    ],
)  # fmt: skip
def test_what_a_graph_was_not_made_for_is_said(pipe: Any, name: str, value: Any, message: str) -> None:
    given = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": 1,
        "encoder_hidden_states": torch.zeros(1, 77, 32),
        name: value,
    }
    with torch.no_grad(), pytest.raises(InputError, match=f"^unet: {message}"):
        pipe.unet(**given)


def test_gradients_and_changes_inside_are_refused(pipe: Any) -> None:
    latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
    with pytest.raises(InputError, match="unet runs on an engine, which has no gradients"):
        pipe.unet(latents, 1, torch.zeros(1, 77, 32))
    with pytest.raises(InputError, match="set_attn_processor would not change a UNet2DConditionModel"):
        pipe.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    with pytest.raises(InputError, match="enable_freeu would not change"):
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)


def test_half_precision_goes_in_and_comes_out(tiny_sd: Any, tiny_bundle: Path) -> None:
    import copy

    half = diffusers.StableDiffusionPipeline(
        **{**tiny_sd.pipe.components, "unet": copy.deepcopy(tiny_sd.pipe.unet).to(torch.bfloat16)},
        requires_safety_checker=False,
    )
    ingot.attach(half, tiny_bundle, engine="onnx", components=["unet"])
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        assert half.unet(latents, 1, torch.zeros(1, 77, 32, dtype=torch.bfloat16)).sample.dtype == torch.bfloat16
    ingot.detach(half)


def test_detach_gives_the_modules_back(tiny_sd: Any, tiny_bundle: Path) -> None:
    made = diffusers.StableDiffusionPipeline(**tiny_sd.pipe.components, requires_safety_checker=False)
    assert ingot.attach(made, tiny_bundle, engine="onnx", components=["unet"]) is made
    assert attached_roles(made) == ("unet",)
    assert made.vae is tiny_sd.pipe.vae
    attached = made.unet
    assert ingot.detach(made) is made
    assert made.unet is tiny_sd.pipe.unet
    assert attached_roles(made) == ()
    assert ingot.detach(made) is made  # nothing is attached
    with torch.no_grad(), pytest.raises(EngineError, match="closed"):
        attached(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 32))


def test_what_is_attached_survives_a_bundle_that_does_not_fit_and_a_recording(pipe: Any, tiny_bundle: Path) -> None:
    unet = pipe.unet
    with pytest.raises(InputError, match="has no denoiser"):
        ingot.attach(pipe, tiny_bundle, components=["denoiser"])
    assert pipe.unet is unet
    assert attached_roles(pipe) == SD_ROLES
    before = vars(unet)["forward"]
    record(pipe, Sizes(1, 16, 32), {})
    assert vars(unet)["forward"] is before


def test_bundles_that_do_not_fit_are_refused(tiny_sd: Any, tiny_sdxl: Any, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"made from another model: .*unet's down_block_types is .* there and .* here"):
        ingot.attach(tiny_sdxl.pipe, tiny_bundle)
    with pytest.raises(InputError, match="has no transformer; it has: text_encoder, unet"):
        ingot.attach(tiny_sd.pipe, tiny_bundle, components=["transformer"])
    with pytest.raises(InputError, match="a list of roles is needed, such as \\['unet'\\]"):
        ingot.attach(tiny_sd.pipe, tiny_bundle, components="unet")
    bundle = Bundle.open(tiny_bundle, hashes=False)
    with pytest.raises(InputError, match=r"\(schema 3, 4 is needed\): export it again"):
        ingot.attach(tiny_sd.pipe, Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, schema=3)))
    ddpm = diffusers.DDPMPipeline(diffusers.UNet1DModel(), diffusers.DDPMScheduler())
    with pytest.raises(InputError, match="unet is a UNet2DConditionModel there and a UNet1DModel here"):
        ingot.attach(ddpm, tiny_bundle)
    assert attached_roles(tiny_sd.pipe) == attached_roles(ddpm) == ()


def test_the_manifest_keeps_what_a_graph_folds_in(tiny_bundle: Path) -> None:
    held = Bundle.open(tiny_bundle, hashes=False).manifest
    assert decode(encode(held)) == held
    unet = held.components["unet"]
    assert unet.method == "forward"
    assert unet.arguments["return_dict"] is True
    assert unet.arguments["cross_attention_kwargs"] is None
    assert not {"sample", "timestep", "encoder_hidden_states"} & set(unet.arguments)
    assert [held.components[role].method for role in ("vae_encoder", "vae_decoder")] == ["encode", "decode"]


def attached_equals_torch(pipe: Any, folder: Path, **inputs: Any) -> tuple[str, ...]:
    """Export at one size, attach and compare; the roles that were attached."""
    pipe.set_progress_bar_config(disable=True)
    pieces = export_pieces(pipe, folder / "bundle", to="openvino", dtype="float32", inputs=inputs, static=True)
    assert not pieces.refused
    assert pieces.fixed == pieces.roles
    wanted = answer(pipe, inputs)
    ingot.attach(pipe, pieces.path, engine="openvino", inference_precision="f32", threads=1)
    for found, array in zip(answer(pipe, inputs), wanted, strict=True):
        np.testing.assert_allclose(found, array, atol=TOLERANCE, rtol=0)
    roles = attached_roles(pipe)
    ingot.detach(pipe)
    return roles


def test_stable_diffusion_xl_with_two_controlnets(tmp_path: Path) -> None:
    from . import tiny

    base = tiny.sdxl(tmp_path)
    nets = [diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32)) for _ in "ab"]
    for net in nets:
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    pipe = diffusers.StableDiffusionXLControlNetPipeline(**base.components, controlnet=nets, add_watermarker=False)
    roles = attached_equals_torch(pipe, tmp_path)
    assert {"controlnet", "controlnet_2", "unet", "text_encoder_2", "vae_decoder"} <= set(roles)
    assert pipe.controlnet.nets[0] is nets[0]


def test_pixart(tmp_path: Path) -> None:
    from . import tiny

    roles = attached_equals_torch(tiny.pixart(tmp_path), tmp_path)
    assert set(roles) == {"text_encoder", "transformer", "vae_decoder", "vae_encoder"}


def test_ddpm(tmp_path: Path) -> None:
    from . import tiny

    assert attached_equals_torch(tiny.ddpm(tmp_path), tmp_path) == ("unet",)


def test_diffedit_masks_inverts_and_paints_attached(tiny_sd: Any, tiny_bundle: Path) -> None:
    """Methods of a pipeline beside its call: they ask the same modules."""
    parts = {name: part for name, part in tiny_sd.pipe.components.items() if name != "image_encoder"}
    made = diffusers.StableDiffusionDiffEditPipeline(
        **parts, inverse_scheduler=diffusers.DDIMInverseScheduler.from_config(tiny_sd.pipe.scheduler.config),
        requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    picture = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8))
    steps: dict[str, Any] = {"num_inference_steps": 4}

    def edited() -> list[Any]:
        seeded = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2)]
        words = {"source_prompt": "a cat", "target_prompt": "a dog"}
        mask = made.generate_mask(image=picture, **words, **steps, num_maps_per_mask=2, generator=seeded[0])
        latents = made.invert("a cat", image=picture, **steps, generator=seeded[1]).latents
        call = {"mask_image": np.ones_like(mask), "image_latents": latents, "output_type": "latent", **steps}
        return [mask, latents.numpy(), made("a dog", **call, generator=seeded[2]).images.numpy()]

    with torch.no_grad():
        wanted = edited()
        ingot.attach(made, tiny_bundle, engine="onnx", threads=1)
        assert attached_roles(made) == SD_ROLES
        found = edited()
    ingot.detach(made)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE * max(1, np.abs(other).max()), rtol=0)


def test_combined_pipelines_run_attached_and_get_everything_back(tmp_path: Path) -> None:
    """Their prior and their decoder hold the same modules under names of their own."""
    from ingot.benchmarks.pipelines import parts

    torch.manual_seed(0)
    unet = parts.simple_unet(
        out_channels=8, addition_embed_type="image", encoder_hid_dim=parts.WIDTH, encoder_hid_dim_type="image_proj"
    )
    pipe = diffusers.KandinskyV22CombinedPipeline(
        unet=unet, scheduler=parts.ddim(), movq=parts.movq(), prior_prior=parts.prior(), prior_image_encoder=parts.vision(),
        prior_text_encoder=parts.clip_projected(), prior_tokenizer=parts.tokenizer(tmp_path),
        prior_scheduler=diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
        prior_image_processor=parts.pictures(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    bundle = export_pieces(pipe, tmp_path / "bundle", to="openvino", dtype="float32", static=True).path
    sizes = record_twice(pipe)[1][0]
    wanted = answer(pipe, {}, sizes)
    prior, decoder = dict(vars(pipe.prior_pipe)), dict(vars(pipe.decoder_pipe))
    ingot.attach(pipe, bundle, engine="openvino", inference_precision="f32", threads=1)
    assert {"unet", "movq_decoder", "prior_prior", "prior_text_encoder"} <= set(attached_roles(pipe))
    assert pipe.decoder_pipe.unet is pipe.unet is not unet
    assert pipe.prior_pipe.prior is pipe.prior_prior is not prior["prior"]
    for module in (unet, prior["prior"], prior["text_encoder"]):
        module.forward = None  # torch must not compute
    for found, array in zip(answer(pipe, {}, sizes), wanted, strict=True):
        np.testing.assert_allclose(found, array, atol=TOLERANCE, rtol=0)
    with pytest.raises(InputError, match="has no denoiser"):
        ingot.attach(pipe, bundle, components=["denoiser"])
    assert pipe.decoder_pipe.unet is pipe.unet is not unet
    with pytest.raises(InputError, match="cannot be attached while the KandinskyV22CombinedPipeline around it"):
        ingot.attach(pipe.decoder_pipe, bundle)
    ingot.detach(pipe)
    assert pipe.unet is unet
    assert (vars(pipe.prior_pipe), vars(pipe.decoder_pipe)) == (prior, decoder)


def test_a_graph_of_one_size_says_so(tiny_sd: Any, tmp_path: Path) -> None:
    bundle = export_pieces(tiny_sd.pipe, tmp_path / "static", to="openvino", dtype="float32", static=True).path
    made = diffusers.StableDiffusionPipeline(**tiny_sd.pipe.components, requires_safety_checker=False)
    ingot.attach(made, bundle, engine="openvino", components=["unet"])
    with (
        torch.no_grad(),
        pytest.raises(
            InputError, match=r"^unet: sample has the shape \[2, 4, 8, 8\] and the graph takes \[2, 4, 4, 16\]"
        ),
    ):
        made.unet(torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 77, 32))
    ingot.detach(made)
