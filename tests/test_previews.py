"""A run that is watched: previews of its steps, and an end after any of them, as in diffusers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ingot import InputError
from ingot.runtimes.pipelines.preview import Preview

from . import tiny
from .eager import Pair, eager, pair, running

sd = pair(tiny.sd)
CALL: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "latent"}


def test_a_preview_is_the_picture_in_small(tiny_shapes: Any, tmp_path: Path) -> None:
    """Shapes' latents through the map that an export fits: the colours of the decoded picture, pixel for pixel. Measured
    correlation 0.87 to 0.88 over the steps, and 0.85 with a map fitted to its own scenes; 1 would be a linear VAE."""
    pipe = running(eager(tiny_shapes.pipe, tmp_path))
    previews, state = [], None
    call = {"num_inference_steps": 4, "guidance_scale": 4.0, "seed": 0}
    for state in pipe.steps("a large red ring on a blue background", **call):
        previews.append(pipe.preview(state)[0])
    assert state is not None
    whole = pipe.finish(state, "pil").images[0]
    small = whole.resize(previews[-1].size, Image.Resampling.BOX)
    assert previews[-1].size == (whole.width // 4, whole.height // 4)
    found = [_correlation(preview, small) for preview in previews]
    assert min(found) > 0.8
    (large,) = pipe.preview(state.latents, size=(48, 64))
    assert large.size == (64, 48)


def _correlation(a: Image.Image, b: Image.Image) -> float:
    return float(np.corrcoef(*(np.asarray(one, np.float64).ravel() for one in (a, b)))[0, 1])


def test_previews_need_their_map(sd: Pair) -> None:
    pipe = sd.ours()
    pipe._preview = Preview(None)
    with pytest.raises(InputError, match=r"no map for previews .*: export it again, or decode\(state.denoised\)"):
        pipe.preview(np.zeros((1, 4, 8, 8), np.float32))


@pytest.mark.parametrize("how", ["answer", "switch"])
@pytest.mark.parametrize("last", [0, 2])
def test_a_run_ends_after_any_step_as_in_diffusers(sd: Pair, how: str, last: int) -> None:
    def theirs(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == last
        return given

    seen = []

    def ours(pipe: Any, step: int, _: float, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        if how == "answer":
            return {"interrupt": step == last}
        pipe._interrupt = step == last
        return given

    with torch.no_grad():
        expected = sd.pipe("a cat", **CALL, callback_on_step_end=theirs, generator=torch.Generator().manual_seed(0))
    pipe = sd.ours()
    found = pipe("a cat", **CALL, callback_on_step_end=ours, seed=0, progress=False)
    np.testing.assert_allclose(found.images, expected.images.numpy(), atol=1e-4, rtol=0)
    assert seen == list(range(last + 1))
    seen.clear()
    last = 9  # never: the next run is whole again
    pipe("a cat", **CALL, callback_on_step_end=ours, seed=0, progress=False)
    assert seen == [0, 1, 2, 3]


def test_what_the_last_callback_changed_counts(sd: Pair) -> None:
    def change(_: Any, __: int, ___: float, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": np.zeros_like(given["latents"]), "interrupt": True}

    assert not sd.ours()("a cat", **CALL, callback_on_step_end=change, progress=False).images.any()


def test_another_thread_ends_a_run(sd: Pair) -> None:
    pipe, reached, told = sd.ours(), threading.Event(), threading.Event()
    steps = []

    def wait(_: Any, step: int, __: float, ___: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        reached.set()
        assert told.wait(30)
        return {}

    run = threading.Thread(target=lambda: pipe("a cat", **CALL, callback_on_step_end=wait, progress=False))
    run.start()
    assert reached.wait(30)
    pipe._interrupt = True
    told.set()
    run.join(30)
    assert steps == [0]


def test_a_loop_is_left_by_leaving_it(sd: Pair) -> None:
    pipe = sd.ours()
    for state in pipe.steps("a cat", height=32, width=32, num_inference_steps=4, seed=0):
        if state.step == 1:
            break
    assert pipe.finish(state, "pil").images[0].size == (32, 32)
