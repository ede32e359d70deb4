"""LoRAs on compiled bundles: every engine that takes them against torch modules with `W + s * up @ down` added by hand."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ingot
from ingot.runtimes.bundle import Bundle, describe_file
from ingot.runtimes.errors import InputError
from ingot.runtimes.load import open_engine
from ingot.runtimes.loras import apply_loras

from .conftest import Tiny
from .lora_cases import RandomLora, random_lora, with_parts

# every engine that takes LoRAs, ONNX Runtime in both forms of a graph
FORMS = {
    "onnx": ("onnx", ""),
    "onnx tuned": ("onnx", "onnxruntime"),
    "openvino": ("openvino", ""),
    "torch": ("torch", ""),
}
PARTS = ("unet", "text_encoder")
# float32 graphs are within 1e-6 to 1e-5 of torch on this model; the issue asks for 1e-4
LIMIT = 1e-4


def rel_l2(found: Any, wanted: Any) -> float:
    found, wanted = (np.asarray(value, dtype=np.float64) for value in (found, wanted))
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def bundle(tiny_sd: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "tiny"
    return ingot.export(tiny_sd.folder, folder, to=["onnx", "openvino", "torch"], dtype="float32", progress=False)


@pytest.fixture(scope="module")
def made(tiny_sd: Tiny) -> RandomLora:
    return random_lora(tiny_sd.pipe, seed=1)


@pytest.fixture(scope="module")
def files(made: RandomLora, tiny_sd: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "peft": made.peft(folder / "peft.safetensors"),
        "kohya": made.kohya(folder / "kohya.safetensors"),
        "other": random_lora(tiny_sd.pipe, seed=2).kohya(folder / "other.safetensors"),
    }


def engines_of(bundle: Path, form: str) -> dict[str, Any]:
    engine, kind = FORMS[form]
    opened = Bundle.open(bundle, hashes=False)
    return {role: open_engine(opened, opened.graph(role, engine, "float32", form=kind), threads=1) for role in PARTS}


def inputs_of(pipe: Any) -> dict[str, dict[str, Any]]:
    rng = np.random.RandomState(3)
    unet = {
        "sample": rng.randn(2, 4, 16, 24).astype(np.float32),
        "timestep": np.asarray(501.0, np.float32),
        "encoder_hidden_states": rng.randn(2, 77, 32).astype(np.float32),
    }
    return {
        "unet": unet,
        "text_encoder": {
            "input_ids": pipe.tokenizer(["a red cat"], padding="max_length", return_tensors="np").input_ids
        },
    }


@torch.no_grad()
def torch_answers(pipe: Any, made: RandomLora, scale: float) -> dict[str, Any]:
    given = {
        role: {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items()}
        for role, arrays in inputs_of(pipe).items()
    }
    unet, text = (made.added(part, getattr(pipe, part), scale).eval() for part in PARTS)
    return {
        "unet": unet(**given["unet"]).sample.numpy(),
        "text_encoder": text(**given["text_encoder"]).last_hidden_state.numpy(),
    }


def answers(engines: dict[str, Any], pipe: Any) -> dict[str, Any]:
    given = inputs_of(pipe)
    names = {"unet": "out_sample", "text_encoder": "last_hidden_state"}
    return {role: engines[role].run(given[role])[names[role]] for role in PARTS}


@pytest.mark.parametrize("form", FORMS)
def test_engines_answer_as_torch_with_the_same_sums_and_come_back_to_the_bit(
    form: str, bundle: Path, tiny_sd: Tiny, made: RandomLora, files: dict[str, Path]
) -> None:
    engines = engines_of(bundle, form)
    first = answers(engines, tiny_sd.pipe)
    before: frozenset[str] = frozenset()
    wanted = torch_answers(tiny_sd.pipe, made, 0.8)
    kept: dict[str, Any] = {}
    for swap in range(10):
        loras = [[(files["peft"], 0.8)], [(files["kohya"], 0.8)], [(files["other"], 1.5), (files["peft"], -1.0)]][
            swap % 3
        ]
        before = apply_loras(engines, loras, before=before)
        assert before == set(PARTS)
        found = answers(engines, tiny_sd.pipe)
        if swap % 3 < 2:
            for role in PARTS:
                assert rel_l2(found[role], wanted[role]) < LIMIT, (form, role)
                assert rel_l2(found[role], first[role]) > 10 * LIMIT  # the LoRA does something here
                np.testing.assert_array_equal(
                    found[role], kept.setdefault(role, found[role])
                )  # kohya's names, PEFT's names
    assert apply_loras(engines, [], before=before) == frozenset()
    for role, array in answers(engines, tiny_sd.pipe).items():
        np.testing.assert_array_equal(array, first[role])
    for engine in engines.values():
        engine.close()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_has_changed_where_a_later_part_of_a_lora_is_refused(
    form: str, bundle: Path, tiny_sd: Tiny, tiny_sdxl: Tiny, files: dict[str, Path], tmp_path: Path
) -> None:
    engines = engines_of(bundle, form)
    first = answers(engines, tiny_sd.pipe)
    other = random_lora(tiny_sdxl.pipe, 1, ("unet",)).kohya(tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="does not fit"):
        apply_loras(engines, [(files["peft"], 1.0), (other, 1.0)])
    for role, array in answers(engines, tiny_sd.pipe).items():
        np.testing.assert_array_equal(array, first[role])


def test_every_layer_of_the_torch_model_can_take_a_lora(bundle: Path, tiny_sd: Tiny) -> None:
    """In every form: each linear layer and convolution has its weight by its name and in its shape."""
    for form in FORMS:
        for role, engine in engines_of(bundle, form).items():
            held = engine.weights()
            for name, module in getattr(tiny_sd.pipe, role).named_modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                    assert held.get(f"{name}.weight") == tuple(module.weight.shape), (form, role, name)
            engine.close()


# pipelines


def test_pipelines_make_diffusers_pictures_with_and_without(
    bundle: Path, tiny_sd: Tiny, files: dict[str, Path]
) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 3, "height": 32, "width": 32, "output_type": "latent"}
    with with_parts(tiny_sd.pipe, **{part: copy.deepcopy(getattr(tiny_sd.pipe, part)) for part in PARTS}) as theirs:
        plain = theirs("a red cat", generator=torch.Generator().manual_seed(4), **arguments).images.numpy()
        theirs.load_lora_weights(files["kohya"].parent, weight_name=files["kohya"].name)
        theirs.fuse_lora(lora_scale=0.6)
        wanted = theirs("a red cat", generator=torch.Generator().manual_seed(4), **arguments).images.numpy()
    with ingot.load(bundle, engine="onnx", loras=[(files["kohya"], 0.6)]) as pipe:
        found = pipe("a red cat", seed=4, progress=False, **arguments).images
        assert rel_l2(found, wanted) < LIMIT
        pipe.set_loras([])
        back = pipe("a red cat", seed=4, progress=False, **arguments).images  # the text's embeddings are made anew too
        assert rel_l2(back, plain) < LIMIT < rel_l2(back, wanted)
        pipe.set_loras([(str(files["peft"]), 0.6)])
        np.testing.assert_array_equal(pipe("a red cat", seed=4, progress=False, **arguments).images, found)
        with pytest.raises(InputError, match="must be a number"):
            pipe.set_loras([(files["peft"], "much")])
        np.testing.assert_array_equal(pipe("a red cat", seed=4, progress=False, **arguments).images, found)


def test_calls_of_other_threads_see_one_set_of_weights(bundle: Path, files: dict[str, Path]) -> None:
    arguments: dict[str, Any] = {
        "num_inference_steps": 2,
        "height": 32,
        "width": 32,
        "output_type": "latent",
        "progress": False,
    }
    sets: list[list[tuple[Path, float]]] = [[], [(files["kohya"], 1.0)]]
    with ingot.load(bundle, engine="onnx", threads=1) as pipe:
        whole = []
        for loras in sets:
            pipe.set_loras(loras)
            whole.append(pipe("a cat", seed=1, **arguments).images)
        assert rel_l2(*whole) > 10 * LIMIT
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(pipe, "a cat", seed=1, **arguments) for _ in range(9)]
            for number in range(4):
                pipe.set_loras(sets[number % 2])
            for call in calls:
                found = call.result().images
                assert any(np.array_equal(found, one) for one in whole)


def test_a_lora_may_come_between_two_steps_of_ones_own_loop(bundle: Path, files: dict[str, Path]) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 4, "height": 32, "width": 32, "seed": 1}
    with ingot.load(bundle, engine="onnx", threads=1) as pipe:
        plain = [state.latents for state in pipe.steps("a cat", **arguments)]
        mixed = []
        for state in pipe.steps("a cat", **arguments):
            mixed.append(state.latents)
            if state.step == 1:
                pipe.set_loras([(files["peft"], 1.0)])
        np.testing.assert_array_equal(mixed[1], plain[1])
        assert rel_l2(mixed[2], plain[2]) > LIMIT


# fused at export


def test_a_bundle_exported_with_a_lora_answers_as_one_loaded_with_it(
    bundle: Path, tiny_sd: Tiny, files: dict[str, Path], tmp_path: Path
) -> None:
    fused = ingot.export(tiny_sd.folder, tmp_path / "fused", to="torch", loras=[(files["kohya"], 0.8)], progress=False)
    manifest = Bundle.open(fused).manifest
    (lora,) = manifest.provenance.loras
    assert (lora.file, lora.scale, lora.sha256) == (str(files["kohya"]), 0.8, describe_file(files["kohya"]).sha256)
    engines = engines_of(bundle, "torch")
    apply_loras(engines, [(files["kohya"], 0.8)])
    loaded = answers(engines, tiny_sd.pipe)
    for adding in (False, True):
        if adding:  # fuses what the bundle was made with again
            ingot.add(fused, to="torch", overwrite=True, progress=False)
        exported = answers(engines_of(fused, "torch"), tiny_sd.pipe)
        for role in PARTS:
            np.testing.assert_array_equal(exported[role], loaded[role])  # one arithmetic makes both sets of weights


def test_the_command_line_takes_loras(bundle: Path, files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    from ingot.cli import lora, main

    assert lora("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert lora("a.safetensors") == ("a.safetensors", 1.0)
    assert lora("C:\\a.safetensors") == ("C:\\a.safetensors", 1.0)
    common = ["generate", str(bundle), "a cat", "--engine", "onnx", "--steps", "1", "--size", "32x32", "--quiet"]
    assert main([*common, "-o", str(tmp_path / "plain.png")]) == 0
    assert main([*common, "-o", str(tmp_path / "styled.png"), "--lora", f"{files['peft']}:2"]) == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "styled.png").read_bytes()
    capsys.readouterr()
    assert main([*common, "--lora", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors cannot be read" in capsys.readouterr().err
