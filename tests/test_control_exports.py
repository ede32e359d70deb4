"""A bundle with two ControlNets and an IP-Adapter, cast and loaded as users do.

Tolerance on latents 1e-4, relative to the largest: float32 graphs over a few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

import ingot
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.engines import Later

from . import tiny, tiny_controls
from .eager import picture, require_equal

A, B, C = (picture(64, 64, seed=seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("parts")
    base, unadapted = tiny_controls.prompted(folder), tiny.sd(folder).unet
    nets = [tiny_controls.net(unadapted, 2), tiny_controls.net(unadapted, 5)]
    made = StableDiffusionControlNetPipeline(**base.components, controlnet=nets, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def bundle(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingot.export(theirs, tmp_path_factory.mktemp("bundle") / "controlled", to="torch", progress=False)


def test_the_whole_pipeline_is_certified_with_its_controls(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert {"controlnet", "controlnet_2", "image_encoder"} <= set(manifest.components)
    parity = manifest.parity["torch"]
    assert parity.psnr_db is None or parity.psnr_db > 100  # a wrong or missing control shows at 10 to 40 dB
    names = [spec.name for spec in manifest.components["unet"].graphs[0].signature.inputs]
    assert {"mid_block_additional_residual", "ip_adapter_scale", "added_cond_kwargs.image_embeds.0"} <= set(names)


def test_a_loaded_bundle_equals_diffusers(bundle: Path, theirs: Any) -> None:
    call = {
        "prompt": ["a cat", "a dog"], "image": [A, B], "controlnet_conditioning_scale": [0.5, 1.5], "ip_adapter_image": C,
        "num_images_per_prompt": 2, "num_inference_steps": 3, "height": 48, "width": 80, "output_type": "latent",
    }  # fmt: skip
    theirs.set_ip_adapter_scale(0.3)
    expected = theirs(**call, generator=torch.Generator().manual_seed(0)).images.numpy()
    with ingot.load(bundle) as pipe:
        require_equal((pipe(**call, ip_adapter_scale=0.3, seed=0, progress=False).images, expected))


def test_one_graph_serves_without_controls(bundle: Path) -> None:
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", "progress": False, "seed": 0}
    with ingot.load(bundle, pipeline="StableDiffusionPipeline") as pipe:
        plain = pipe("a cat", **call).images
        nets = [pipe.engines[role] for role in ("controlnet", "controlnet_2", "image_encoder")]
        # which were not even opened
        assert all(isinstance(engine, Later) and engine._engine is None for engine in nets)
    with ingot.load(bundle) as pipe:
        idle = pipe("a cat", control_image=[A, B], controlnet_conditioning_scale=0.0, **call).images
    np.testing.assert_array_equal(plain, idle)


def test_attached_graphs_follow_the_pipelines_scale(bundle: Path, theirs: Any) -> None:
    call = {
        "prompt": "a cat", "image": [A, B], "ip_adapter_image": C, "num_inference_steps": 2, "height": 64, "width": 64,
        "output_type": "latent",
    }  # fmt: skip
    made = []
    attached = ingot.attach(theirs, bundle)
    for scale in (0.2, 0.9):
        theirs.set_ip_adapter_scale(scale)
        expected = theirs(**call, generator=torch.Generator().manual_seed(0)).images.numpy()
        attached.set_ip_adapter_scale(scale)
        found = attached(**call, generator=torch.Generator().manual_seed(0)).images.numpy()
        require_equal((found, expected))
        made.append(found)
    assert np.abs(made[0] - made[1]).max() > 1e-3
