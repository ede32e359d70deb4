"""Kandinsky 2.2's prior and decoder without PyTorch against diffusers' own: same seed, same embeddings, same latents.

Tolerance 1e-4, relative to the largest: noise within 2e-6, a step within 1e-5, over a few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, KandinskyV22Pipeline
from safetensors.numpy import load_file

import ingot
from ingot import InputError
from ingot.benchmarks.pipelines import ROWS, parts
from ingot.cli import main
from ingot.runtimes import schedulers

from .eager import ATOL, Pair, require_equal


def build_prior(folder: Path) -> Any:
    torch.manual_seed(21)
    pipe = ROWS["KandinskyV22PriorPipeline"].build(folder)
    for statistic, start in ((pipe.prior.clip_mean, -0.5), (pipe.prior.clip_std, 0.5)):  # new ones are zero
        statistic.data += start + torch.rand_like(statistic)
    return pipe


def build_decoder(folder: Path) -> Any:
    torch.manual_seed(22)
    return ROWS["KandinskyV22Pipeline"].build(folder)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(build_prior, tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(build_decoder, tmp_path_factory.mktemp("decoder"))


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a cat"},
        {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2},
        {"prompt": "a cat", "negative_prompt": "rain"},
        {"prompt": ["a cat", "a dog"], "negative_prompt": ["rain", "fog"], "num_images_per_prompt": 2},
        {"prompt": "a cat", "guidance_scale": 1.0},
    ],
)
def test_the_prior_equals_diffusers(prior: Pair, call: dict[str, Any]) -> None:
    call = {"num_inference_steps": 4, **call}
    with torch.no_grad():
        expected = prior.pipe(**call, generator=torch.Generator().manual_seed(3), output_type="np")
    ours = prior.ours()(**call, seed=3, progress=False)
    require_equal((ours.image_embeds, expected.image_embeds))
    require_equal((ours.negative_image_embeds, expected.negative_image_embeds))
    assert expected.image_embeds.std() > 0.01


def embeds(rows: int, width: int, seed: int = 0) -> dict[str, Any]:
    given = np.random.RandomState(seed).standard_normal((2, rows, width)).astype(np.float32)
    return {"image_embeds": given[0], "negative_image_embeds": given[1]}


DECODED: dict[str, dict[str, Any]] = {
    "one": {"height": 32, "width": 32},
    "another size": {"height": 32, "width": 48},
    "two of each": {"height": 32, "width": 32, "rows": 2, "num_images_per_prompt": 2},
    "without guidance": {"height": 32, "width": 32, "guidance_scale": 1.0},
}


@pytest.mark.parametrize("name", DECODED)
@pytest.mark.parametrize("scheduler", [None, DDPMScheduler(variance_type="learned_range")])
def test_the_decoder_equals_diffusers(
    decoder: Pair, scheduler: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DDIM, which leaves the variance out, and with a scheduler that takes the learned one."""
    call = dict(DECODED[name])
    given = embeds(call.pop("rows", 1), decoder.pipe.unet.config.encoder_hid_dim)
    call |= {"num_inference_steps": 3, "output_type": "latent"}
    ours = decoder.ours()
    if scheduler is not None:
        monkeypatch.setattr(decoder.pipe, "scheduler", scheduler)
        ours.scheduler = schedulers.from_config({**scheduler.config, "_class_name": "DDPMScheduler"})
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    with torch.no_grad():
        expected = decoder.pipe(**tensors, **call, generator=torch.Generator().manual_seed(4)).images.numpy()
    require_equal((ours(**given, **call, seed=4, progress=False).images, expected))


def test_the_decoders_pictures_equal_diffusers(decoder: Pair) -> None:
    given = embeds(1, decoder.pipe.unet.config.encoder_hid_dim)
    call = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "np"}
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    with torch.no_grad():
        expected = decoder.pipe(**tensors, **call, generator=torch.Generator().manual_seed(4)).images
    ours = decoder.ours()(**given, **call, seed=4, progress=False).images
    assert ours.shape == (1, 32, 48, 3)
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a prompt": ({"prompt": "a cat"}, "takes image_embeds, which its prior makes of the prompt 'a cat'"),
    "nothing": ({"image_embeds": None}, r"image_embeds must be a prior's, of shape \(pictures, \d+\), not nothing"),
    "another width": ({"image_embeds": np.zeros((1, 3))}, r"image_embeds must be a prior's, .* not shape \(1, 3\)"),
    "more of one": ({"rows": 2}, "2 image_embeds and 1 negative_image_embeds; give as many of both"),
    "a size off the factor's square": ({"height": 34}, "height=34 is not a multiple of 4, .*; 32 or 36 would do"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(decoder: Pair, name: str) -> None:
    call, message = WRONG[name]
    call = dict(call)
    width = decoder.pipe.unet.config.encoder_hid_dim
    given = embeds(1, width)
    given["image_embeds"] = embeds(call.pop("rows", 1), width)["image_embeds"]
    with pytest.raises(InputError, match=message):
        decoder.ours()(**{"height": 32, "width": 32, "progress": False, **given, **call})


@pytest.fixture(scope="module")
def bundle(prior: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prior as ONNX graphs."""
    return ingot.export(prior.pipe, tmp_path_factory.mktemp("bundle") / "prior", progress=False)


def test_a_prior_for_real_hands_its_embeddings_on(prior: Pair, decoder: Pair, bundle: Path) -> None:
    """Exported as ONNX graphs; the decoder takes what it answers."""
    call = {"prompt": "a cat", "num_inference_steps": 3}
    with torch.no_grad():
        expected = prior.pipe(**call, generator=torch.Generator().manual_seed(3), output_type="np")
    with ingot.load(bundle) as pipe:
        made = pipe(**call, seed=3, progress=False)
    require_equal((made.image_embeds, expected.image_embeds))
    require_equal((made.negative_image_embeds, expected.negative_image_embeds))
    width = decoder.pipe.unet.config.encoder_hid_dim
    given = {
        "image_embeds": made.image_embeds[:, :width],
        "negative_image_embeds": made.negative_image_embeds[:, :width],
    }
    pictures = decoder.ours()(
        **given, height=32, width=32, num_inference_steps=2, seed=0, output_type="np", progress=False
    ).images
    assert pictures.shape == (1, 32, 32, 3)


def test_the_command_line_saves_embeddings_and_decodes_them(bundle: Path, tmp_path: Path) -> None:
    file, picture = tmp_path / "cat.safetensors", tmp_path / "cat.png"
    quick = ["--steps", "2", "--quiet"]
    asked = ["a cat", "a dog", "--negative", "rain", "--seed", "5", *quick]
    assert main(["generate", str(bundle), *asked, "-o", str(file)]) == 0
    with ingot.load(bundle) as pipe:
        call = {"negative_prompt": "rain", "num_inference_steps": 2, "seed": [5, 6, 7, 8], "progress": False}
        made = pipe(["a cat", "a dog"], **call)
    found = load_file(file)
    for name in ("image_embeds", "negative_image_embeds"):
        np.testing.assert_array_equal(found[name], getattr(made, name))
    torch.manual_seed(22)
    unet = parts.simple_unet(
        out_channels=8, addition_embed_type="image", encoder_hid_dim=parts.WIDTH, encoder_hid_dim_type="image_proj"
    )
    decoder = KandinskyV22Pipeline(unet=unet, scheduler=parts.ddim(), movq=parts.movq())
    ingot.export(decoder, tmp_path / "decoder", to="torch", height=32, width=32, progress=False)
    asked = ["--embeds", str(file), "--size", "32", *quick]
    assert main(["generate", str(tmp_path / "decoder"), *asked, "-o", str(picture)]) == 0
    assert sorted(one.name for one in tmp_path.glob("*.png")) == ["cat-1.png", "cat-2.png"]
    assert main(["generate", str(tmp_path / "decoder"), *quick, "-o", str(picture)]) == 1


def test_embeddings_are_no_picture_and_say_so_before_anything_runs(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingot.commands.load", lambda *_, **__: pytest.fail("something ran"))
    for asked in (["-o", str(tmp_path / "cat.png")], ["-o", str(tmp_path / "cat.safetensors"), "--grid"]):
        assert main(["generate", str(bundle), "a cat", *asked]) == 1
        said = capsys.readouterr().err
        assert (
            "KandinskyV22PriorPipeline makes embeddings, not pictures: -o cat.safetensors without --grid would do"
            in said
        )
        assert "--embeds" in said
