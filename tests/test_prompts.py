"""What becomes of prompts: layers skipped against diffusers, the syntax of weights, their arithmetic, prompts in chunks.

Tolerance on latents 1e-4 (see tests/eager.py), on embeddings 1e-5 absolute: float32 through three layers and a norm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot import InputError
from ingot.exporters.long_prompts import with_any_tokens
from ingot.runtimes.pipelines.prompts import Reading, TextEncoder
from ingot.runtimes.pipelines.weighting import emphasised, parse

from . import tiny
from .eager import Eager, Pair, pair, require_equal, running

ATOL = 1e-5
sdxl = pair(tiny.sdxl)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Stable Diffusion whose text encoder's final norm is not that of a new model, which leaves means of 0."""

    def build(folder: Path) -> Any:
        pipe = tiny.sd(folder)
        norm, generator = pipe.text_encoder.final_layer_norm, torch.Generator().manual_seed(5)
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=generator)
        norm.bias.data = torch.rand(norm.bias.shape, generator=generator)
        return pipe

    return Pair(build, tmp_path_factory.mktemp("sd"))


# What the web interface's own documentation and its parser's examples say.
PARSED: dict[str, list[tuple[str, float]]] = {
    "normal text": [("normal text", 1.0)],
    "": [("", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "a [[deep": [("a ", 1.0), ("deep", 1 / 1.1 / 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    r"a \\ b \c": [(r"a \ b c", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "never opened) and ] here:1.5)": [("never opened) and ] here:1.5)", 1.0)],
    "time 10:30, (ratio 4:3)": [("time 10:30, ", 1.0), ("ratio 4", 1.1)],
    "(word: 1.3 )": [("word", 1.3)],
    "(none:0) (less:-.5)": [("none", 0.0), (" ", 1.0), ("less", -0.5)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0), ("house", 1.3 * 1.1 * 1.1), (" ", 1.1), ("on", 1 / 1.1 * 1.1), (" a ", 1.1), ("hill", 0.5 * 1.1),
        (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("prompt", PARSED)
def test_weights_are_read_as_the_web_interface_reads_them(prompt: str) -> None:
    expected = PARSED[prompt]
    if prompt.startswith("time"):  # 3) closes with a weight of 3, as it does there
        expected = [("time 10:30, ", 1.0), ("ratio 4", 3.0)]
    found = parse(prompt)
    assert [piece.text for piece in found] == [text for text, _ in expected]
    # a product of the same few factors in another order
    np.testing.assert_allclose([piece.weight for piece in found], [w for _, w in expected], rtol=1e-15)


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"'1.2.3' is no weight, in the prompt '\(cat:1.2.3\)'; \(word:1.3\) would do"):
        parse("(cat:1.2.3)")


def test_the_mean_is_kept_chunk_by_chunk() -> None:
    embeds = np.random.RandomState(0).standard_normal((3, 77, 32)).astype(np.float32) + np.float32(0.3)
    weights = np.ones((3, 77), np.float32)
    weights[0, 3:7], weights[2, 1] = 1.5, 0.2
    found = emphasised(embeds, weights)
    # sums of 2464 float32 numbers
    np.testing.assert_allclose(found.mean(axis=(1, 2)), embeds.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(found[1], embeds[1])
    strong = embeds[0] * weights[0][:, None]
    np.testing.assert_allclose(found[0], strong * (embeds[0].mean() / strong.mean()), rtol=1e-5)


def test_a_mean_of_nothing_is_left_alone() -> None:
    half = np.random.RandomState(0).standard_normal((1, 8, 16)).astype(np.float32)
    embeds, weights = np.concatenate([half, -half], axis=2), np.full((1, 8), 1.5, np.float32)
    assert abs(embeds.mean()) < 1e-7
    np.testing.assert_array_equal(emphasised(embeds, weights), embeds * np.float32(1.5))


# --- layers skipped


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_clip_skip_is_that_of_diffusers(sd: Pair, skip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # diffusers 0.42 looks for `text_encoder.text_model`, which transformers 5 has made the text encoder itself
    monkeypatch.setattr(type(sd.pipe.text_encoder), "text_model", property(lambda encoder: encoder), raising=False)
    require_equal(sd.both(clip_skip=skip, negative_prompt="rain", height=16, width=16, num_inference_steps=2))


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip_of_xl_is_that_of_diffusers(sdxl: Pair, skip: int) -> None:
    require_equal(sdxl.both(clip_skip=skip, negative_prompt="rain", height=16, width=16, num_inference_steps=2))


def test_skipped_layers_change_the_picture(sd: Pair) -> None:
    call = {"prompt": "a cat", "height": 16, "width": 16, "num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    pipe = sd.ours()
    plain, skipped = (pipe(**call, clip_skip=skip, progress=False).images for skip in (None, 1))
    assert np.abs(plain - skipped).max() > 1e-3


@pytest.mark.parametrize("skip", [-1, 1.5, True, "2"])
def test_a_wrong_clip_skip_is_refused(sd: Pair, skip: Any) -> None:
    with pytest.raises(InputError, match="clip_skip must be a whole number of layers, 0 or more"):
        sd.ours()("a cat", clip_skip=skip)


def test_more_layers_than_there_are_cannot_be_skipped(sd: Pair, sdxl: Pair) -> None:
    with pytest.raises(InputError, match=r"clip_skip=4: of this text encoder 3 layers can be skipped"):
        sd.ours()("a cat", clip_skip=4)
    with pytest.raises(InputError, match=r"clip_skip=3: of this text encoder 2 layers can be skipped"):
        sdxl.ours()("a cat", clip_skip=3)


def test_a_bundle_without_the_norm_says_so(sd: Pair) -> None:
    encoder = TextEncoder(sd.parts["engines"]["text_encoder"], sd.ours().tokenizer)
    with pytest.raises(
        InputError, match=r"needs the text encoder's final norm, which this bundle does not have: .* export it again"
    ):
        encoder(["a cat"], Reading(clip_skip=1))


# --- weights


def web_interface(pair: Pair, ids: list[int], weights: list[float]) -> Any:
    """The web interface's arithmetic on torch's own encoder: one chunk between a beginning and an end."""
    tokenizer = pair.pipe.tokenizer
    rest = 77 - 2 - len(ids)
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * rest]
    factors = torch.tensor([1.0, *weights, *[1.0] * (rest + 1)])
    with torch.no_grad():
        z = pair.pipe.text_encoder(torch.tensor([row])).last_hidden_state
    before = z.mean()
    z = z * factors[None, :, None]
    return (z * (before / z.mean())).numpy()


def test_weighted_embeddings_are_those_of_the_web_interface(sd: Pair) -> None:
    words = {
        text: sd.pipe.tokenizer(text, add_special_tokens=False).input_ids for text in ("a", "red", "cat on", "tree")
    }
    ids = [id for text in words for id in words[text]]
    weights = [w for text, w in zip(words, (1.0, 1.5, 1.0, 1 / 1.1), strict=True) for _ in words[text]]
    encoder = TextEncoder(sd.parts["engines"]["text_encoder"], sd.ours().tokenizer)
    found = encoder(["a (red:1.5) cat on [tree]"], Reading(weighted=True)).embeds
    np.testing.assert_allclose(found, web_interface(sd, ids, weights), atol=ATOL, rtol=0)


@pytest.mark.parametrize("text", ["a red cat", "", "a cat " * 60, "two: rings, 'n' things!"])
def test_without_weights_nothing_changes(sd: Pair, sdxl: Pair, text: str) -> None:
    for role, layer, pipe in (("text_encoder", 0, sd.ours()), ("text_encoder_2", 1, sdxl.ours())):
        words = pipe._encoders[-1].tokenizer if layer else pipe.tokenizer
        encoder = TextEncoder(pipe.engines[role], words, layer)
        plain, weighted = encoder([text]), encoder([text], Reading(weighted=True))
        np.testing.assert_array_equal(weighted.embeds, plain.embeds)
        if plain.pooled is not None:
            np.testing.assert_array_equal(weighted.pooled, plain.pooled)


CALL: dict[str, Any] = {
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "seed": 0,
    "output_type": "latent",
    "progress": False,
}


@pytest.mark.parametrize("made", ["sd", "sdxl"])
def test_brackets_are_text_until_weights_are_asked_for(made: str, request: pytest.FixtureRequest) -> None:
    both: Pair = request.getfixturevalue(made)
    pipe, weighted = both.ours(), "a (red:1.5) [cat]"
    require_equal(both.both(prompt=weighted, height=16, width=16, num_inference_steps=2))
    plain, strong, words = (
        pipe("a red cat", **CALL).images,
        pipe(weighted, prompt_weighting=True, **CALL).images,
        pipe(weighted, **CALL).images,
    )
    assert np.abs(strong - plain).max() > 1e-4
    assert np.abs(strong - words).max() > 1e-4
    np.testing.assert_array_equal(pipe("(a red cat:1.0)", prompt_weighting=True, **CALL).images, plain)
    negative = pipe("a red cat", negative_prompt="(rain:1.4)", prompt_weighting=True, **CALL).images
    assert np.abs(negative - pipe("a red cat", negative_prompt="rain", **CALL).images).max() > 1e-5


# --- long prompts


@pytest.fixture(scope="module")
def open_sd(sd: Pair) -> dict[str, Any]:
    """The same model, whose UNet takes any number of tokens."""
    engines = sd.parts["engines"]
    (unet,) = with_any_tokens([engines["unet"].component])
    return {**sd.parts, "engines": {**engines, "unet": Eager(unet)}}


LONG = "a red cat on a tree at night, " * 10


def test_a_long_prompt_is_its_chunks_one_behind_the_other(sd: Pair, open_sd: dict[str, Any]) -> None:
    pipe = running(open_sd)
    ids = sd.pipe.tokenizer(LONG, add_special_tokens=False).input_ids
    count = -(-len(ids) // 75)
    assert count > 1
    chunks = np.concatenate(
        [web_interface(sd, ids[i * 75 : (i + 1) * 75], [1.0] * len(ids[i * 75 : (i + 1) * 75])) for i in range(count)],
        axis=1,
    )
    found = pipe.encode_prompt([LONG], Reading(chunks=count))
    np.testing.assert_allclose(found, chunks, atol=ATOL, rtol=0)
    empty = pipe.encode_prompt([""], Reading(chunks=count))
    np.testing.assert_allclose(empty, np.tile(pipe.encode_prompt([""]), (1, count, 1)), atol=ATOL, rtol=0)


def test_a_long_prompt_is_drawn_as_diffusers_draws_its_embeddings(sd: Pair, open_sd: dict[str, Any]) -> None:
    pipe = running(open_sd)
    found = pipe(LONG, negative_prompt="rain", long_prompts=True, **CALL).images
    count = -(-len(sd.pipe.tokenizer(LONG, add_special_tokens=False).input_ids) // 75)
    embeds = {
        name: torch.from_numpy(pipe.encode_prompt([text], Reading(chunks=count)))
        for name, text in (("prompt_embeds", LONG), ("negative_prompt_embeds", "rain"))
    }
    with torch.no_grad():
        expected = sd.pipe(
            **embeds,
            height=16,
            width=16,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.abs(found - pipe(LONG, negative_prompt="rain", **CALL).images).max() > 1e-4
    given = {name: tensor.numpy() for name, tensor in embeds.items()}
    np.testing.assert_array_equal(pipe(**given, **CALL).images, found)
    # a negative prompt longer than the prompt, and a text beside embeddings
    pipe("a cat", negative_prompt=LONG, long_prompts=True, **CALL)
    pipe(prompt_embeds=given["prompt_embeds"], negative_prompt="rain", **CALL)


def test_what_fits_one_chunk_is_drawn_as_ever(sd: Pair, open_sd: dict[str, Any]) -> None:
    pipe = running(open_sd)
    np.testing.assert_array_equal(pipe("a cat", long_prompts=True, **CALL).images, sd.ours()("a cat", **CALL).images)
    np.testing.assert_array_equal(
        sd.ours()("a cat", long_prompts=True, **CALL).images, sd.ours()("a cat", **CALL).images
    )


def test_a_bundle_for_one_chunk_refuses_a_long_prompt(sd: Pair) -> None:
    with pytest.raises(InputError, match=r"needs \d+ tokens, and this bundle's denoiser takes 77: .* --long-prompts"):
        sd.ours()(LONG, long_prompts=True, **CALL)


def test_embeddings_that_do_not_fit_one_another_are_refused(open_sd: dict[str, Any]) -> None:
    pipe = running(open_sd)
    embeds = np.zeros((1, 100, 32), np.float32)
    with pytest.raises(
        InputError, match="embeddings of 100 tokens were given, and a text beside them has a multiple of 77"
    ):
        pipe(prompt_embeds=embeds, negative_prompt="rain", **CALL)
    with pytest.raises(InputError, match=r"negative_prompt_embeds has shape \(1, 77, 32\), not \(1, 100, 32\)"):
        pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds[:, :77], **CALL)


def test_what_is_cut_is_named(sd: Pair, caplog: pytest.LogCaptureFixture) -> None:
    TextEncoder(sd.parts["engines"]["text_encoder"], sd.ours().tokenizer)(
        ["a cat " * 40 + "behind"], Reading(weighted=True)
    )
    assert "this part of it was cut" in caplog.text
    assert "behind" in caplog.text


def test_components_without_text_have_no_tokens(sd: Pair) -> None:
    with pytest.raises(InputError, match="no component of this model takes encoder_hidden_states"):
        with_any_tokens([sd.parts["engines"]["vae_decoder"].component])
