"""Words that a model never learned, prompts of any length and another VAE, in real graphs: at export and at load.

Tolerance on latents 1e-4 (see tests/eager.py), on embeddings 1e-5 absolute.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors.torch import save_file

import ingot
from ingot import EngineError, InputError
from ingot.exporters.textual_inversion import with_textual_inversions
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.pipelines.prompts import Reading
from ingot.runtimes.textual_inversion import Extended, read_embedding, read_embeddings
from ingot.runtimes.tokenizer import Tokenizer

from . import tiny
from .test_safety import checker, processor

ATOL = 1e-5
CALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
PROMPT = "a <ring> on a dot-like cat"
TOKENS = (("ring.safetensors", None), ("dot.safetensors", "dot-like"))
LONG = "a red <ring> on a tree at night, " * 8


def vectors(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str | None]]:
    """A token of three vectors, and one of one, as the web interface saves it."""
    folder = tmp_path_factory.mktemp("words")
    save_file({"<ring>": vectors(0, 3, 32)}, folder / "ring.safetensors")
    save_file({"emb_params": vectors(1, 1, 32)}, folder / "dot.safetensors")
    return [(folder / name, token) for name, token in TOKENS]


@dataclass(frozen=True)
class Made:
    """diffusers' pipeline as it was and with the words, and bundles of both."""

    plain: Any
    words: Any
    bundle: Path  # with the words, a safety checker, and any number of tokens
    other: Path  # without, for torch, decoding with a tiny autoencoder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[Path, str | None]]) -> Made:
    from .test_stable_diffusion import tiny_vae

    folder = tmp_path_factory.mktemp("bundles")
    parts = tiny.sd(folder / "parts").components | {"safety_checker": checker(), "feature_extractor": processor()}
    StableDiffusionPipeline(**parts).save_pretrained(folder / "checkpoint")
    plain, words = (StableDiffusionPipeline.from_pretrained(folder / "checkpoint") for _ in range(2))
    for pipe in (plain, words):
        pipe.set_progress_bar_config(disable=True)
    words.load_textual_inversion({"<ring>": vectors(0, 3, 32)})
    words.load_textual_inversion({"dot-like": vectors(1, 1, 32)})
    bundle = ingot.export(
        folder / "checkpoint", folder / "bundle", to="onnx", long_prompts=True, textual_inversions=files, progress=False
    )
    other = ingot.export(
        folder / "checkpoint", folder / "other", to="torch", vae=tiny_vae(), safety_checker=False, progress=False
    )
    return Made(plain, words, bundle, other)


def latents(pipe: Any, **call: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = pipe(**{**CALL, **call}, generator=torch.Generator().manual_seed(0)).images.numpy()
    return found


@pytest.mark.parametrize("how", ["export", "load"])
def test_new_words_are_those_of_diffusers(made: Made, files: list[tuple[Path, str | None]], how: str) -> None:
    expected = latents(made.words, prompt=PROMPT, negative_prompt="<ring>")
    loading = ingot.load(made.bundle) if how == "export" else ingot.load(made.other, textual_inversions=files)
    with loading as pipe:
        found = pipe(PROMPT, negative_prompt="<ring>", **CALL, seed=0, progress=False).images
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        # a text without them is what it was
        plain = pipe("a red cat, BIG", **CALL, seed=0, progress=False).images
        np.testing.assert_allclose(plain, latents(made.plain, prompt="a red cat, BIG"), atol=1e-4, rtol=0)
    assert np.abs(expected - latents(made.plain, prompt=PROMPT, negative_prompt="<ring>")).max() > 1e-4


def test_all_vectors_of_a_word_enter_the_prompt(made: Made, files: list[tuple[Path, str | None]]) -> None:
    with ingot.load(made.bundle) as exported, ingot.load(made.other, textual_inversions=files) as loaded:
        ids = exported.tokenizer.whole("<ring>")
        assert len(ids) == len(loaded.tokenizer.whole("<ring>")) == 3
        assert exported.tokenizer.whole("<ring>_2 <ring>_1") == [ids[2], ids[1]]
        table = 194
        assert min(ids) >= table > max(loaded.tokenizer.whole("<ring>"))
        for text in (PROMPT, "<ring>", "x<ring>y <ring>_2"):
            both = [pipe.encode_prompt([text]) for pipe in (exported, loaded)]
            np.testing.assert_allclose(*both, atol=ATOL, rtol=0)
        weighted = [pipe.encode_prompt(["a (<ring>:1.4) cat"], Reading(weighted=True)) for pipe in (exported, loaded)]
        np.testing.assert_allclose(*weighted, atol=ATOL, rtol=0)


def test_long_prompts_on_the_graph(made: Made) -> None:
    with ingot.load(made.bundle) as pipe:
        found = pipe(LONG, negative_prompt="rain", long_prompts=True, **CALL, seed=0, progress=False).images
        reading = Reading(chunks=pipe._prompts.chunks(LONG, weighted=False))
        assert reading.chunks > 1
        texts = {"prompt_embeds": LONG, "negative_prompt_embeds": "rain"}
        embeds = {name: torch.from_numpy(pipe.encode_prompt([text], reading)) for name, text in texts.items()}
        np.testing.assert_allclose(found, latents(made.words, **embeds), atol=1e-4, rtol=0)
    with ingot.load(made.other) as pipe, pytest.raises(InputError, match="bundle's denoiser takes 77"):
        pipe(LONG, long_prompts=True, **CALL)


def test_the_safety_checker_is_a_graph_that_loading_can_leave_out(made: Made) -> None:
    manifest = Bundle.open(made.bundle).manifest
    assert manifest.components["safety_checker"].class_name == "SafetyScores"
    assert "safety_checker" not in Bundle.open(made.other).manifest.components
    call = {**CALL, "output_type": "np", "seed": 0, "progress": False}
    with torch.no_grad():
        theirs = made.plain(prompt="a cat", **CALL | {"output_type": "np"}, generator=torch.Generator().manual_seed(0))
    with ingot.load(made.bundle) as pipe, ingot.load(made.bundle, safety_checker=None) as unchecked:
        checked = pipe("a cat", **call)
        assert checked.nsfw_content_detected == theirs.nsfw_content_detected
        np.testing.assert_allclose(checked.images, theirs.images, atol=1e-4, rtol=0)
        assert unchecked("a cat", **call).nsfw_content_detected is None


def test_another_bundles_vae_decodes(made: Made) -> None:
    call = {**CALL, "output_type": "np", "seed": 0, "progress": False}
    with (
        ingot.load(made.bundle, vae=made.other, safety_checker=False) as mixed,
        ingot.load(made.other) as other,
        ingot.load(made.bundle, safety_checker=False) as own,
    ):
        pictures = [pipe("a cat", **call).images for pipe in (mixed, other, own)]
        # the same VAE over latents that two exports of one UNet give
        np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-4, rtol=0)
        assert np.abs(pictures[0] - pictures[2]).max() > 0.05
        picture = other("a cat", **call | {"output_type": "pil"}).images[0]
        again = [
            pipe("a cat", image=picture, **{**call, "height": None, "width": None}).images for pipe in (mixed, other)
        ]
        np.testing.assert_allclose(*again, atol=1e-3, rtol=0)  # through both halves of the VAE
        assert len(mixed.preview(mixed("a cat", **call | {"output_type": "latent"}).images, size=(64, 64))) == 1


def test_a_precision_by_role_is_that_of_the_vae_in_use(made: Made, tmp_path: Path) -> None:
    other = shutil.copytree(made.other, tmp_path / "other")
    manifest = json.loads((other / "ingot.json").read_text())
    for graph in manifest["components"]["vae_decoder"]["graphs"]:  # as if it were the other bundle's own name for it
        assert graph["precision"] == "float32"
        graph["precision"] = "float16"
    (other / "ingot.json").write_text(json.dumps(manifest))
    wanted = {"unet": "float32", "vae_decoder": "float16"}
    with ingot.load(made.bundle, vae=other, precision=wanted, verify=False, safety_checker=False) as pipe:
        assert pipe("a cat", **CALL, seed=0, progress=False).images.shape == (1, 4, 32, 32)
    with pytest.raises(InputError, match="other has no graphs for vae_decoder float32; it has: "):
        ingot.load(made.bundle, vae=other, precision={"vae_decoder": "float32"}, verify=False)
    with pytest.raises(InputError, match="bundle has no graphs for unet float16; it has: "):
        ingot.load(made.bundle, vae=other, precision={**wanted, "unet": "float16"}, verify=False)


def test_vaes_of_other_latents_are_refused(made: Made, tmp_path: Path) -> None:
    other = shutil.copytree(made.other, tmp_path / "other")
    manifest = (other / "ingot.json").read_text().replace('"latent_channels": 4', '"latent_channels": 16')
    (other / "ingot.json").write_text(manifest)
    with pytest.raises(InputError, match=r"does not fit .*: 16 channels of latents where the model has 4"):
        ingot.load(made.bundle, vae=other)
    with pytest.raises(ingot.BundleError, match="is no bundle"):
        ingot.load(made.bundle, vae=tmp_path)


def test_loras_and_new_words_live_side_by_side(
    made: Made, files: list[tuple[Path, str | None]], tmp_path: Path
) -> None:
    module = "text_encoder.encoder.layers.0.self_attn.q_proj"
    lora = {f"{module}.lora_A.weight": vectors(2, 2, 32), f"{module}.lora_B.weight": vectors(3, 32, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    with ingot.load(made.other, textual_inversions=files) as pipe:
        plain = pipe.encode_prompt([PROMPT])
        pipe.set_loras([(tmp_path / "lora.safetensors", 1.0)])
        changed = pipe.encode_prompt([PROMPT])
        pipe.set_loras([])
        np.testing.assert_array_equal(pipe.encode_prompt([PROMPT]), plain)
    assert np.abs(changed - plain).max() > 1e-3
    with ingot.load(made.bundle, loras=[(tmp_path / "lora.safetensors", 1.0)]) as pipe:
        np.testing.assert_allclose(pipe.encode_prompt([PROMPT]), changed, atol=ATOL, rtol=0)


def test_a_word_may_have_two_names(made: Made, files: list[tuple[Path, str | None]]) -> None:
    """Exported as one, and loaded beside it as another, in ONNX Runtime."""
    with ingot.load(made.bundle, textual_inversions=[(files[0][0], "<hoop>")]) as pipe:
        assert pipe.choice.engine == "onnx"
        both = [pipe.encode_prompt([f"a {word} on a cat"]) for word in ("<ring>", "<hoop>")]
        np.testing.assert_allclose(*both, atol=ATOL, rtol=0)


def test_a_target_that_is_added_has_the_words_too(
    made: Made, files: list[tuple[Path, str | None]], tmp_path: Path
) -> None:
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    ingot.add(bundle, to="openvino", dtype="float32", progress=False)
    with ingot.load(bundle, engine="openvino", threads=1) as added, ingot.load(made.bundle) as pipe:
        np.testing.assert_allclose(added.encode_prompt([PROMPT]), pipe.encode_prompt([PROMPT]), atol=ATOL, rtol=0)
        call = {**CALL, "seed": 0, "progress": False, "long_prompts": True}
        np.testing.assert_allclose(added(LONG, **call).images, pipe(LONG, **call).images, atol=1e-4, rtol=0)
        assert added("a cat", **call | {"output_type": "np"}).nsfw_content_detected is not None
        again = added.tokenizer.whole("<ring>")
    with ingot.load(bundle, engine="openvino", threads=1, textual_inversions=[(files[0][0], "<hoop>")]) as pipe:
        assert set(pipe.tokenizer.whole("<hoop>")).isdisjoint(again)
        both = [pipe.encode_prompt([f"a {word} on a cat"]) for word in ("<ring>", "<hoop>")]
        np.testing.assert_allclose(*both, atol=ATOL, rtol=0)
    kept = Bundle.open(bundle).manifest
    assert [one.token for one in kept.provenance.textual_inversions] == ["<ring>", "dot-like"]
    assert kept.components["text_encoder"].extras == {"final_layer_norm": "text_encoder/final_layer_norm.npz"}


# --- files and words that do not fit


def test_rows_that_no_text_can_name(made: Made) -> None:
    """Of the tiny vocabulary capitals alone: 26, each inside of a word and at its end."""
    file = Bundle.open(made.other).file("tokenizer/tokenizer.json")
    tokenizer = Tokenizer(file)
    free = tokenizer.unused()
    assert len(free) == 52
    assert not set(free) & set(tokenizer.whole("ABC abc Z\u00c0\u00f5 " + bytes(range(33, 127)).decode()))
    tokenizer.add("<new>", free[:3])
    assert tokenizer.whole("a <new>")[1:] == free[:3]
    assert tokenizer.unused() == free[3:]
    with pytest.raises(InputError, match="the token '<new>' cannot be added"):
        tokenizer.add("<new>", free[3:4])


def test_formats(tmp_path: Path) -> None:
    def read(tensors: dict[str, torch.Tensor], token: str | None = None) -> Any:
        save_file(tensors, tmp_path / "word.safetensors")
        return read_embedding(tmp_path / "word.safetensors", token)

    assert read({"<cat>": vectors(0, 32)}).vectors["text_encoder"].shape == (1, 32)
    assert read({"<cat>": vectors(0, 32)}, "other").token == "other"
    assert read({"emb_params": vectors(0, 2, 32)}).token == "word"
    xl = read({"clip_l": vectors(0, 2, 8), "clip_g": vectors(1, 2, 16)})
    assert {role: one.shape for role, one in xl.vectors.items()} == {"text_encoder": (2, 8), "text_encoder_2": (2, 16)}
    with pytest.raises(InputError, match=r"holds no textual inversion: .* and it has a, b"):
        read({"a": vectors(0, 2), "b": vectors(0, 2)})
    with pytest.raises(InputError, match="as many for each text encoder"):
        read({"clip_l": vectors(0, 2, 8), "clip_g": vectors(1, 3, 16)})
    (tmp_path / "word.pt").write_bytes(b"PK\3\4 pickled")
    with pytest.raises(InputError, match="convert them to safetensors"):
        read_embedding(tmp_path / "word.pt")
    with pytest.raises(InputError, match=r"textual inversions are a list of \(file, token\)"):
        read_embeddings([tmp_path / "word.pt"])  # type: ignore[list-item]  # the point of the test
    read({"<cat>": vectors(0, 32)})
    with pytest.raises(InputError, match="the token '<a>' stands for two"):
        read_embeddings([(tmp_path / "word.safetensors", "<a>"), (tmp_path / "word.safetensors", "<a>")])


def test_words_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    def saved(**tensors: torch.Tensor) -> list[tuple[Path, str]]:
        save_file(tensors, tmp_path / "word.safetensors")
        return [(tmp_path / "word.safetensors", "<w>")]

    with pytest.raises(
        InputError, match=r"vectors of 16 numbers, and those of this bundle's text_encoder have 32: .*another base"
    ):
        ingot.load(made.other, textual_inversions=saved(w=vectors(0, 2, 16)))
    with pytest.raises(
        InputError, match=r"has 60 vectors, and this bundle's text_encoder has 52 rows left .*--textual-inversion"
    ):
        ingot.load(made.other, textual_inversions=saved(w=vectors(0, 60, 32)))
    with pytest.raises(InputError, match="vectors for text_encoder_2, which this bundle has not; it has: text_encoder"):
        ingot.load(made.other, textual_inversions=saved(clip_g=vectors(0, 2, 32)))
    with pytest.raises(InputError, match="the token 'a' cannot be added"):
        ingot.load(made.other, textual_inversions=[(saved(w=vectors(0, 2, 32))[0][0], "a")])
    for tensors, message in (
        ({"w": vectors(0, 2, 16)}, "another base model"),
        ({"clip_g": vectors(0, 2, 32)}, "text_encoder_2"),
    ):
        with pytest.raises(InputError, match=message):
            with_textual_inversions(made.plain, saved(**tensors))
    with pytest.raises(InputError, match=r"the token 'cat' cannot be added|'cat</w>'"):
        with_textual_inversions(made.plain, [(saved(w=vectors(0, 2, 32))[0][0], "cat</w>")])


def test_the_callers_pipeline_keeps_its_words(made: Made, files: list[tuple[Path, str | None]]) -> None:
    changed, added = with_textual_inversions(made.plain, files)
    assert [one.token for one in added] == ["<ring>", "dot-like"]
    assert len(changed.text_encoder.get_input_embeddings().weight) == 194 + 4
    assert len(made.plain.text_encoder.get_input_embeddings().weight) == 194
    assert "<ring>" not in made.plain.tokenizer.get_vocab()


def test_engines_that_cannot_change_their_weights_say_so(made: Made, files: list[tuple[Path, str | None]]) -> None:
    from ingot.runtimes.textual_inversion import take_embeddings

    class Sealed:
        signature = None

    with pytest.raises(EngineError, match="runs on Sealed, whose compiled weights cannot be changed; `ingot export"):
        take_embeddings(files, {"text_encoder": Sealed()}, {}, {})  # type: ignore[dict-item]  # the point of the test
    with pytest.raises(InputError, match=r"is quantized \(int8-weights\)"):
        take_embeddings(files, {"text_encoder": Sealed()}, {}, {"text_encoder": "int8-weights"})  # type: ignore[dict-item]
    with ingot.load(made.other, textual_inversions=files) as pipe:
        assert isinstance(pipe.text_encoder, Extended)
        assert not pipe.text_encoder.changed


def test_long_prompts_are_for_open_graphs(tmp_path: Path, made: Made) -> None:
    with pytest.raises(InputError, match="long_prompts is for onnx, openvino, torch, not coreml"):
        ingot.export(made.plain, tmp_path / "bundle", to="coreml", long_prompts=True, progress=False)
    with pytest.raises(InputError, match="long_prompts leaves the number of tokens open, and static fixes every size"):
        ingot.export(made.plain, tmp_path / "bundle", static=True, long_prompts=True, progress=False)
