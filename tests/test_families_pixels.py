"""Models without prompts, of pixels and of classes, without PyTorch against diffusers' own pipelines: same seed, same pictures.

Tolerance 1e-4 on pixels and latents, relative to the largest: noise within 2e-6, a step within 1e-5, over a few steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import ingot
from ingot import InputError
from ingot.cli import main
from ingot.runtimes.pipelines.classes import class_names, class_numbers

from . import tiny, tiny_families
from .eager import Pair, require_equal

Pictures = tuple[NDArray[np.float32], NDArray[np.float32]]


def pair(name: str, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    build = getattr(tiny_families, name, None) or getattr(tiny, name)
    return Pair(build, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair("ddpm", tmp_path_factory)


@pytest.fixture(scope="module")
def ddim(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair("ddim", tmp_path_factory)


@pytest.fixture(scope="module")
def consistency(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair("consistency", tmp_path_factory)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    made = pair("dit", tmp_path_factory)
    kept = tiny_families.dit(tmp_path_factory.mktemp("labels"))  # diffusers saves no labels
    made.pipe.labels = kept.labels
    return made


def both(found: Pair, seed: int | list[int] = 0, **call: Any) -> Pictures:
    """Pictures by Ingot and by diffusers."""
    several = [torch.Generator().manual_seed(one) for one in (seed if isinstance(seed, list) else [seed])]
    generator = several if isinstance(seed, list) else several[0]
    with torch.no_grad():
        expected = found.pipe(**call, generator=generator, output_type="np").images
    return found.ours()(**call, seed=seed, output_type="np", progress=False).images, expected


@pytest.mark.parametrize("call", [{"num_inference_steps": 6}, {"num_inference_steps": 4, "batch_size": 3}])
def test_ddpm_equals_diffusers(ddpm: Pair, call: dict[str, Any]) -> None:
    pictures = both(ddpm, **call)
    require_equal(pictures)
    assert pictures[1].std() > 0.1
    assert pictures[1].shape == (call.get("batch_size", 1), 8, 8, 3)


def test_a_list_of_seeds_is_a_list_of_generators(ddpm: Pair) -> None:
    require_equal(both(ddpm, [3, 4], num_inference_steps=3, batch_size=2))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_of_a_picture_that_is_no_square_equals_diffusers(ddim: Pair, eta: float) -> None:
    pictures = both(ddim, num_inference_steps=5, eta=eta, batch_size=2)
    require_equal(pictures)
    assert pictures[1].shape == (2, 8, 16, 3)


def test_ddim_exchanges_another_scheduler_as_diffusers_does(ddim: Pair, ddpm: Pair) -> None:
    assert ddim.ours().scheduler.config["_class_name"] == "DDIMScheduler"
    assert ddpm.ours().scheduler.config["_class_name"] == "DDPMScheduler"
    assert ddpm.ours("DDIMPipeline").scheduler.config["_class_name"] == "DDIMScheduler"


def test_steps_yield_the_pixels_and_may_change_them(ddpm: Pair) -> None:
    pipe = ddpm.ours()
    states = [state.latents for state in pipe.steps(num_inference_steps=3, seed=0)]
    whole = pipe(num_inference_steps=3, seed=0, output_type="np", progress=False).images
    np.testing.assert_array_equal(pipe.decode(states[-1]), whole)
    for state in pipe.steps(num_inference_steps=3, seed=0):
        state.latents = np.zeros_like(state.latents)
    np.testing.assert_array_equal(pipe.decode(state.latents), np.full_like(whole, 0.5))


@pytest.mark.parametrize(
    "call",
    [
        {"class_labels": [4]},
        {"class_labels": [4, 9], "batch_size": 2},
        {"class_labels": [1, 2], "batch_size": 2, "num_inference_steps": 3},
        {"class_labels": [3], "num_inference_steps": None, "timesteps": [22, 0]},
    ],
)
def test_consistency_model_equals_diffusers(consistency: Pair, call: dict[str, Any]) -> None:
    require_equal(both(consistency, **call))


def test_a_class_changes_the_picture(consistency: Pair) -> None:
    pipe = consistency.ours()
    first, second = (pipe(class_labels=n, seed=0, output_type="np", progress=False).images for n in (1, 2))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    "call",
    [
        {"class_labels": [1]},
        {"class_labels": [1, 1, 999, 999]},  # a batch, two pictures each
        {"class_labels": [5, 6], "guidance_scale": 1.0},
        {"class_labels": [5], "guidance_scale": 9.0, "num_inference_steps": 7},
    ],
)
def test_dit_equals_diffusers(dit: Pair, call: dict[str, Any]) -> None:
    pictures = both(dit, **{"num_inference_steps": 4, **call})
    require_equal(pictures)
    assert pictures[1].std() > 0.01


def test_dit_latents_equal_those_that_diffusers_decodes(dit: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    decode = dit.pipe.vae.decode
    monkeypatch.setattr(dit.pipe.vae, "decode", lambda z: seen.append(z.numpy()) or decode(z))
    call = {"class_labels": [7, 8], "num_inference_steps": 4}
    with torch.no_grad():
        dit.pipe(**call, generator=torch.Generator().manual_seed(2), output_type="np")
    ours = dit.ours()(**call, seed=2, output_type="latent", progress=False).images
    require_equal((ours / dit.pipe.vae.config.scaling_factor, seen[0]))


def test_classes_go_by_their_names_too(dit: Pair) -> None:
    pipe = dit.ours()
    pipe.labels = dit.pipe.labels
    assert (
        pipe.get_label_ids(["goldfish", "white shark"]) == dit.pipe.get_label_ids(["goldfish", "white shark"]) == [1, 2]
    )
    call = {"num_inference_steps": 2, "seed": 0, "output_type": "latent", "progress": False}
    np.testing.assert_array_equal(pipe(class_labels="goldfish", **call).images, pipe(class_labels=1, **call).images)


def test_labels_that_are_several_names_count_for_each() -> None:
    names = class_names({str(n): text for n, text in tiny_families.LABELS.items()})
    assert names == {
        "Carassius auratus": 1, "Tinca tinca": 0, "goldfish": 1, "great white shark": 2, "tench": 0, "white shark": 2
    }  # fmt: skip
    assert class_numbers(np.array([2, 0]), 3, names) == [2, 0]


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a prompt for noise": ("ddpm", {"prompt": "a cat"}, "makes pictures from noise alone: it takes no prompt"),
    "a size": ("ddpm", {"height": 16}, "unknown argument of DDPMPipeline 'height'; available: batch_size"),
    "no pictures": ("ddpm", {"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
    "latents to look at": ("ddpm", {"output_type": "latent"}, "unknown output_type 'latent'; available: pil, np"),
    "latents of another shape": ("ddpm", {"latents": np.zeros((1, 3, 4, 4))}, r"latents has shape \(1, 3, 4, 4\), not"),
    "a class for none": ("ddpm", {"class_labels": 1}, "class_labels=1: this model was trained without classes"),
    "no class": ("consistency", {}, "trained with classes: class_labels wants numbers from 0 to 9"),
    "a class past the last": ("consistency", {"class_labels": 10}, "a class is a number from 0 to 9 or a name, not 10"),
    "a name without names": ("consistency", {"class_labels": "cat"}, "classes have no names; a number from 0 to 9"),
    "classes that do not count up": (
        "consistency", {"class_labels": [1, 2], "batch_size": 3}, "2 class_labels for 3 pictures; give one, or one for each"
    ),
    "a prompt for a class": ("dit", {"prompt": "goldfish"}, "give class_labels=, not the prompt 'goldfish'"),
    "no class for DiT": ("dit", {}, "DiTPipeline needs class_labels: numbers from 0 to 999, or names"),
    "an unknown class": (
        "dit", {"class_labels": "gold fish"}, "unknown class 'gold fish' of 6 names; near: goldfish; a number from 0 to 999"
    ),
    "a class that is half a number": ("dit", {"class_labels": [1.5]}, r"a class is a number from 0 to 999 or a name, not 1\.5"),
    "no classes": ("dit", {"class_labels": []}, "class_labels is empty: give a class for each picture"),
    "guidance that ends before it starts": (
        "dit", {"class_labels": 1, "guidance_start": 0.6, "guidance_end": 0.5}, "must be shares of the steps"
    ),
    "seeds that do not count up": ("dit", {"class_labels": [1], "seed": [1, 2]}, "2 seeds or generators for 1 pictures"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_arguments_say_what_came_and_what_would_do(name: str, request: pytest.FixtureRequest) -> None:
    which, call, message = WRONG[name]
    found = request.getfixturevalue(which)
    pipe = found.ours()
    if which == "dit":
        pipe.labels = found.pipe.labels
    with pytest.raises(InputError, match=message):
        pipe(**{"progress": False, "num_inference_steps": 2, **call})


@pytest.fixture(scope="module")
def bundles(ddpm: Pair, dit: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of them for real, as ONNX graphs."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        name: ingot.export(found.pipe, folder / name, progress=False)
        for name, found in {"ddpm": ddpm, "dit": dit}.items()
    }


def test_bundles_hold_a_certificate_of_the_whole_pipeline(bundles: dict[str, Path]) -> None:
    for name, labels, side in (("ddpm", [], 8), ("dit", [1], 16)):
        parity = json.loads((bundles[name] / "ingot.json").read_text())["parity"]["onnx"]
        assert parity["psnr_db"] is None or parity["psnr_db"] >= parity["limit_db"] == 60
        assert (parity["prompt"], parity["class_labels"], parity["height"], parity["width"]) == ("", labels, side, side)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ddpm", {"batch_size": 2, "num_inference_steps": 5}),
        ("dit", {"class_labels": [1, 2], "num_inference_steps": 5}),
    ],
)
def test_bundles_equal_diffusers(
    bundles: dict[str, Path], name: str, call: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    pipe = request.getfixturevalue(name).pipe
    with torch.no_grad():
        expected = pipe(**call, generator=torch.Generator().manual_seed(1), output_type="np").images
    with ingot.load(bundles[name]) as ours:
        require_equal((ours(**call, seed=1, output_type="np", progress=False).images, expected))


def test_the_command_line_makes_them_without_a_prompt(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--steps", "2", "--quiet", "-o", str(tmp_path / "a.png")]
    assert main(["generate", str(bundles["ddpm"]), "--count", "2", *base]) == 0
    assert len(list(tmp_path.glob("a-*.png"))) == 2
    base[-1] = str(tmp_path / "b.png")
    assert main(["generate", str(bundles["dit"]), "--class", "goldfish", "--class", "2", *base]) == 0
    assert len(list(tmp_path.glob("b-*.png"))) == 2
    assert main(["inspect", str(bundles["ddpm"])]) == 0
    assert "seed 0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddpm", ["a cat"], "PROMPT is not for DDPMPipeline, which has no prompt"),
        ("ddpm", ["--size", "64"], "--size is not for DDPMPipeline, which has no height, width"),
        ("ddpm", ["--guidance", "4"], "--guidance is not for DDPMPipeline, which has no guidance_scale"),
        ("ddpm", ["--class", "3"], "class_labels=[3]: this model was trained without classes; leave them out"),
        ("dit", [], "DiTPipeline needs class_labels"),
        ("dit", ["--class", "goldfisch"], "unknown class 'goldfisch' of 6 names; near: goldfish"),
    ],
)
def test_the_command_line_says_what_is_not_for_them(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str, options: list[str], message: str
) -> None:
    assert main(["generate", str(bundles[name]), *options, "--steps", "1", "--quiet"]) == 1
    assert message in capsys.readouterr().err
