"""The same call by diffusers and by a bundle of Stable Diffusion XL, and how far their latents may be apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ingot
from ingot.runtimes import schedulers
from ingot.runtimes.pipelines import pipeline_class
from ingot.runtimes.pipelines.base import Parts
from ingot.runtimes.tokenizer import Tokenizer

# float32 graphs, whose rounding differs from torch's, over a few steps; relative to the largest latent, since a random UNet
# drives some samplers far from 1.
TOLERANCE = 1e-4


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of noise."""
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))


def half_mask(height: int, width: int) -> Image.Image:
    """A mask whose lower right corner is to be painted."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2 :, width // 4 :] = 255
    return Image.fromarray(mask)


def theirs_of(class_name: str, folder: Path) -> Any:
    """diffusers' pipeline as loaded: in memory it would still know which scheduler options nobody gave."""
    import diffusers

    loaded = getattr(diffusers, class_name).from_pretrained(folder, add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def by_diffusers(theirs: Any, seeds: int | list[int] = 0, **call: Any) -> NDArray[np.float32]:
    """Latents, or what else the call's output_type says. Arrays become tensors."""
    import torch

    several = isinstance(seeds, list)
    made = [torch.Generator().manual_seed(s) for s in (seeds if several else [seeds])]
    tensors = {n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in call.items()}
    images = theirs(**{"output_type": "latent", **tensors}, generator=made if several else made[0]).images
    return images.numpy() if isinstance(images, torch.Tensor) else images


def by_ingot(pipe: Any, seeds: int | list[int] = 0, **call: Any) -> NDArray[np.float32]:
    """The same by a bundle."""
    images: NDArray[np.float32] = pipe(**{"output_type": "latent", **call}, seed=seeds, progress=False).images
    return images


def require_equal(pipe: Any, theirs: Any, seeds: int | list[int] = 0, **call: Any) -> NDArray[np.float32]:
    """Make both, hold them against each other, and return diffusers'."""
    expected = by_diffusers(theirs, seeds, **call)
    ours = by_ingot(pipe, seeds, **call)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE * max(1, np.abs(expected).max()), rtol=0)
    return expected


def use_scheduler(pipe: Any, theirs: Any, name: str, **options: Any) -> None:
    """Give both the scheduler of this class with the checkpoint's options, and these."""
    import diffusers

    pipe.scheduler = getattr(schedulers, name).from_config(pipe.scheduler.config, **options)
    theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config, **options)


class Eager:
    """An engine that is the torch module itself: exact, and made in no time, where the loop around it is what is tested."""

    def __init__(self, component: Any) -> None:
        self.component, self.signature = component, component.signature

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The module's answer, by the names of the graph that it would become."""
        import torch

        answers = self.component.run({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in answers.items()}

    def close(self) -> None:
        """Nothing is open."""


def eager(theirs: Any, checkpoint: Path, folder: Path, **options: Any) -> Any:
    """Ingot's pipeline over the modules of diffusers' own, loaded from a checkpoint; `options` are capture's."""
    from ingot.exporters.bundle_writer import config_of, plain, write_tokenizers
    from ingot.exporters.capture import capture

    components = capture(theirs, **options)
    written = write_tokenizers(theirs, folder)
    index = json.loads((checkpoint / "model_index.json").read_text())
    return pipeline_class(type(theirs).__name__)(
        Parts(
            class_name=type(theirs).__name__,
            engines={one.role: Eager(one) for one in components},
            tokenizers={role: Tokenizer(folder / file) for role, file in written.items()},
            scheduler=schedulers.from_config(
                json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
            ),
            configs={one.role: plain(config_of(one.source)) for one in components},
            config={name: value for name, value in index.items() if not isinstance(value, list)},
        )
    )


def exported(tiny: Any, folder: Path, **options: Any) -> Path:
    """A bundle of a tiny checkpoint."""
    return ingot.export(tiny.folder, folder / "bundle", progress=False, **options)
