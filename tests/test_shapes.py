"""Shapes' pictures, captions and checker."""

from __future__ import annotations

import numpy as np
import pytest

from ingot.shapes import ATTRIBUTES, Scene, all_scenes, draw, measure, parse, score, split


def test_checker_is_right_on_a_thousand_fresh_pictures() -> None:
    rng = np.random.RandomState(7)
    scenes = [all_scenes()[i] for i in rng.randint(0, len(all_scenes()), 1000)]
    found = score(scenes, [draw(scene, rng) for scene in scenes])
    assert found["all"] >= 0.99  # its verdicts on models mean nothing if it misreads drawings


def test_checker_sees_when_a_picture_shows_something_else() -> None:
    rng = np.random.RandomState(8)
    for i in rng.randint(0, len(all_scenes()), 100):
        scene = all_scenes()[i]
        other = all_scenes()[rng.randint(len(all_scenes()))]
        found = measure(draw(other, rng))
        assert [found[name] == getattr(scene, name) for name in ATTRIBUTES] == [
            getattr(other, name) == getattr(scene, name) for name in ATTRIBUTES
        ]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_has_no_shape(value: int) -> None:
    found = measure(np.full((64, 64, 3), value, np.uint8))
    assert (found["shape"], found["colour"], found["size"], found["place"]) == (None, None, None, None)


def test_noise_has_no_shape() -> None:
    assert measure(np.random.RandomState(0).randint(0, 256, (64, 64, 3)))["shape"] is None


def test_score_counts_what_is_wrong() -> None:
    rng = np.random.RandomState(9)
    right = Scene("red", "ring", "large", "centre", "blue")
    wrong = Scene("green", "ring", "large", "centre", "blue")
    assert score([right.caption] * 2, [draw(right, rng), draw(wrong, rng)]) == {
        "colour": 0.5, "shape": 1.0, "size": 1.0, "place": 1.0, "background": 1.0, "all": 0.5,
    }  # fmt: skip


def test_captions_say_their_scenes_and_read_back() -> None:
    assert Scene("red", "ring", "large", "centre", "blue").caption == "a large red ring on a blue background"
    assert (
        Scene("yellow", "star", "small", "left", "orange").caption
        == "a small yellow star at the left on an orange background"
    )
    assert [parse(scene.caption) for scene in all_scenes()] == list(all_scenes())


@pytest.mark.parametrize(
    "caption", ["a dog", "a large red ring on a pink background", "a large red ring on a red background"]
)
def test_a_caption_of_another_language_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="Shapes"):
        parse(caption)


def test_held_out_captions_are_not_trained_on() -> None:
    training, held_out = split()
    assert len(held_out) == 300
    assert not set(training) & set(held_out)
    assert {*training, *held_out} == set(all_scenes())


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64x64"):
        measure(np.zeros((32, 32, 3)))
