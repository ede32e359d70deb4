"""The safety checker against diffusers': the pictures it is shown, its scores, its verdicts, and what becomes of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ingot import InputError
from ingot.runtimes.image_processor import ClipImageProcessor
from ingot.runtimes.pipelines.safety import SafetyChecker, flagged

from . import tiny
from .eager import Eager, Pair, eager, picture, running

SIDE = 28
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": 14,
}  # fmt: skip


def processor() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def checker() -> Any:
    torch.manual_seed(0)
    made = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, text_config={}, projection_dim=8)).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(made, name).data.normal_()
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    def build(folder: Path) -> Any:
        parts = tiny.sd(folder).components | {"safety_checker": checker(), "feature_extractor": processor()}
        return StableDiffusionPipeline(**parts)

    return Pair(build, tmp_path_factory.mktemp("checked"))


# --- what it is shown


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": {"shortest_edge": 20}},
        {"size": {"height": 30, "width": 40}},
        {"crop_size": {"height": 40, "width": 17}},
        {"do_center_crop": False, "do_normalize": False},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (75, 33), (20, 21)])
def test_pictures_are_prepared_as_transformers_does(config: dict[str, Any], size: tuple[int, int]) -> None:
    theirs = CLIPImageProcessorPil(
        **{"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **config}
    )
    shown = picture(*size)
    expected = theirs(shown, return_tensors="np")["pixel_values"]
    # one rounding of float32 at values of about 2
    np.testing.assert_allclose(ClipImageProcessor(theirs.to_dict())(shown), expected, atol=1e-6, rtol=0)


def test_grey_pictures_and_lists_are_taken() -> None:
    grey = Image.fromarray(np.arange(0, 255, 1, np.uint8)[:225].reshape(15, 15))
    ours = ClipImageProcessor(processor().to_dict())([grey, picture(30, 30)])
    assert ours.shape == (2, 3, SIDE, SIDE)
    np.testing.assert_allclose(
        ours[:1], processor()(grey.convert("RGB"), return_tensors="np")["pixel_values"], atol=1e-6
    )
    with pytest.raises(InputError, match="PIL pictures are needed, not ndarray"):
        ClipImageProcessor({})([np.zeros((3, 3))])  # type: ignore[list-item]  # the point of the test


def test_an_old_config_names_one_number() -> None:
    ours = ClipImageProcessor({"size": 20, "crop_size": 16})(picture(60, 40))
    assert ours.shape == (1, 3, 16, 16)
    assert ClipImageProcessor({"size": 20, "do_center_crop": False})(picture(60, 40)).shape == (1, 3, 30, 20)


# --- its verdicts


def test_scores_are_rounded_before_they_are_judged() -> None:
    none = np.full((1, 3), -1.0)
    assert flagged(none, np.array([[0.0004]])).tolist() == [False]
    assert flagged(none, np.array([[0.0006]])).tolist() == [True]
    # a special concept lowers the bar of the others by 0.01, and flags nothing by itself
    special = np.array([[-1.0, 0.3, -1.0]])
    assert flagged(special, np.array([[-0.0085]])).tolist() == [True]
    assert flagged(none, np.array([[-0.0085]])).tolist() == [False]
    assert flagged(special, np.array([[-0.0105]])).tolist() == [False]


def test_verdicts_are_those_of_diffusers(pair: Pair) -> None:
    theirs, ours = pair.pipe.safety_checker, pair.ours().safety_checker
    pictures = np.random.RandomState(0).random((24, 40, 40, 3)).astype(np.float32)
    pictures = np.stack([np.asarray(picture(40, 40, seed)) for seed in range(24)]).astype(np.float32) / 255
    given = processor()(
        [Image.fromarray((one * 255).astype(np.uint8)) for one in pictures], return_tensors="pt"
    ).pixel_values
    for quantile, care in ((0.93, 1.0), (0.97, 0.0), (0.97, 1.0)):
        _thresholds(theirs, given, quantile, care)
        with torch.no_grad():
            black, expected = theirs(given, list(pictures))
        blackened, flags = ours(pictures)
        assert flags == expected
        assert 0 < sum(flags) < len(flags)
        np.testing.assert_array_equal(blackened, np.stack(black))


def _thresholds(module: Any, given: torch.Tensor, quantile: float, care: float) -> None:
    """Thresholds that some of the pictures reach; `care` is the special concepts' quantile."""
    scores = Eager(_component(module))
    module.concept_embeds_weights.data.zero_()
    module.special_care_embeds_weights.data.zero_()
    found = scores.run({"clip_input": given.numpy()})
    module.concept_embeds_weights.data.copy_(torch.from_numpy(np.quantile(found["concept_scores"], quantile, axis=0)))
    module.special_care_embeds_weights.data.copy_(
        torch.from_numpy(np.quantile(found["special_scores"], care, axis=0) + (care == 1))
    )


def _component(module: Any) -> Any:
    from ingot.exporters.safety import safety_scores

    class Pipe:
        safety_checker = module

    (component,) = safety_scores(Pipe)
    return component


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_flagged_pictures_are_black_as_in_diffusers(
    pair: Pair, output_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = pair.ours()
    call = {
        "prompt": ["a cat", "a dog"],
        "height": 32,
        "width": 32,
        "num_inference_steps": 1,
        "output_type": output_type,
    }
    for threshold, verdict in ((-2.0, True), (2.0, False)):
        pair.pipe.safety_checker.concept_embeds_weights.data.fill_(threshold)
        with torch.no_grad():
            theirs = pair.pipe(**call, generator=torch.Generator().manual_seed(0))
        ours = pipe(**call, seed=0, progress=False)
        assert ours.nsfw_content_detected == theirs.nsfw_content_detected == [verdict] * 2
        images = [np.stack([np.asarray(one, dtype=np.float32) for one in made.images]) for made in (ours, theirs)]
        # a level of 255 where a value lies on a rounding edge
        np.testing.assert_allclose(*images, atol=1 if output_type == "pil" else 1e-4, rtol=0)
        assert images[0].any() != verdict
    assert "flagged 2 of 2 pictures, which are black now" in caplog.text


def test_latents_are_not_judged(pair: Pair) -> None:
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "latent", "progress": False}
    assert pair.ours()("a cat", **call).nsfw_content_detected is None


def test_without_a_checker_there_is_no_flag(pair: Pair) -> None:
    parts = {**pair.parts, "engines": {k: v for k, v in pair.parts["engines"].items() if k != "safety_checker"}}
    pipe = running(parts)
    assert pipe.safety_checker is None
    made = pipe("a cat", height=32, width=32, num_inference_steps=1, progress=False, output_type="np")
    assert made.nsfw_content_detected is None


def test_the_checker_looks_at_any_number_of_pictures(pair: Pair) -> None:
    ours = pair.ours().safety_checker
    assert isinstance(ours, SafetyChecker)
    pictures = np.random.RandomState(1).random((3, 30, 30, 3)).astype(np.float32)
    assert ours(pictures)[1] == [ours(one[None])[1][0] for one in pictures]


def test_other_pipelines_have_none(tmp_path: Path) -> None:
    assert (
        "safety_checker" not in eager(tiny.sd(tmp_path / "parts"), tmp_path / "bundle", leave_out=("unet",))["engines"]
    )
