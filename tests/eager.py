"""Torch-free pipelines whose engines are the captured torch components: what a bundle would hold, without making graphs.

Parity of a family's loop is tested so in seconds; that graphs compute what components compute is every export's own proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ingot.exporters.bundle_writer import component_entry, make_manifest, versions, write_tokenizers
from ingot.exporters.capture import capture
from ingot.exporters.component import Component
from ingot.exporters.extras import write_extras
from ingot.exporters.safety import safety_scores
from ingot.runtimes import schedulers
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.load import _parts
from ingot.runtimes.manifest import Provenance
from ingot.runtimes.pipelines import pipeline_class

# On latents: noise within 2e-6, a step within 1e-5 (numerics of the acceptance of every family), over a few steps.
ATOL = 1e-4


class Eager:
    """A component as an engine, as strict as an engine about what it is given."""

    def __init__(self, component: Component) -> None:
        self.component, self.signature = component, component.signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The component's answer."""
        self.signature.check(inputs)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: tensor.numpy() for name, tensor in self.component.run(tensors).items()}

    def close(self) -> None:
        """Nothing is held."""


def eager(pipe: Any, folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `running` needs of a diffusers pipeline: its components, captured, without those to leave out, and a manifest."""
    components = [component for component in (*capture(pipe), *safety_scores(pipe)) if component.role not in leave_out]
    entries = {
        component.role: component_entry(component, (), "", write_extras(component, folder)) for component in components
    }
    origin = Provenance(source="tests", revision=None, licence=None, created="", command=None, versions=versions())
    manifest = make_manifest(folder, pipe, entries, write_tokenizers(pipe, folder), origin)
    return {"bundle": Bundle(folder, manifest), "engines": {c.role: Eager(c) for c in components}}


def running(parts: Mapping[str, Any], class_name: str | None = None) -> Any:
    """The torch-free pipeline by a class's rules, those of the checkpoint where none is named."""
    name = class_name or parts["bundle"].manifest.pipeline
    family = pipeline_class(name)
    known = {*family.roles, *family.optional_roles}
    return family(_parts(parts["bundle"], name, {role: e for role, e in parts["engines"].items() if role in known}))


class Pair:
    """A tiny checkpoint in diffusers, and the same one without PyTorch."""

    def __init__(self, build: Callable[[Path], Any], folder: Path) -> None:
        made = build(folder / "parts")
        made.save_pretrained(folder / "checkpoint")
        # as loaded: in memory it would still know which scheduler options nobody gave
        self.pipe = type(made).from_pretrained(folder / "checkpoint")
        self.pipe.set_progress_bar_config(disable=True)
        self.parts = eager(self.pipe, folder / "bundle")

    def theirs(self, class_name: str | None = None) -> Any:
        """diffusers' pipeline, or one of another class over the same components."""
        if class_name is None:
            return self.pipe
        pipe = getattr(diffusers, class_name).from_pipe(self.pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def ours(self, class_name: str | None = None) -> Any:
        """The same without PyTorch."""
        return running(self.parts, class_name)

    def both(
        self, class_name: str | None = None, scheduler: str | None = None, seed: int | list[int] = 0, **call: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Latents by Ingot and by diffusers."""
        theirs, ours = self.theirs(class_name), self.ours(class_name)
        kept = theirs.scheduler
        if scheduler:
            theirs.scheduler = getattr(diffusers, scheduler).from_config(kept.config)
            ours.scheduler = schedulers.from_config({**ours.scheduler.config, "_class_name": scheduler})
        several = [torch.Generator().manual_seed(one) for one in (seed if isinstance(seed, list) else [seed])]
        call = {"prompt": "a cat", "num_inference_steps": 5, "output_type": "latent", **call}
        call = {name: value for name, value in call.items() if value is not None or name != "prompt"}
        with torch.no_grad():
            expected = theirs(**call, generator=several if isinstance(seed, list) else several[0]).images.numpy()
        theirs.scheduler = kept
        return ours(**call, seed=seed, progress=False).images, expected


def pair(build: Callable[[Path], Any]) -> Any:
    """A fixture of a checkpoint, of the builder's name."""

    @pytest.fixture(scope="module", name=build.__name__)
    def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
        return Pair(build, tmp_path_factory.mktemp(build.__name__))

    return made


def require_equal(latents: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    """Hold ours against theirs, relative to the largest latent: a random UNet drives some samplers far from 1."""
    ours, expected = latents
    np.testing.assert_allclose(ours, expected, atol=ATOL * max(1, np.abs(expected).max()), rtol=0)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise of a few large patches, so that resizing has something to interpolate."""
    small = np.random.RandomState(seed).randint(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask(height: int, width: int, shift: int = 0) -> Image.Image:
    """A corner of the picture, off the grid of the latents."""
    array = np.zeros((height, width), dtype=np.uint8)
    array[height // 3 + shift :, : width // 2 + 3] = 255
    return Image.fromarray(array)
