"""Fixtures that several test files share: tiny checkpoints, built once a session, each saved to a folder too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Tiny:
    """A pipeline with random weights and the folder that holds it as `save_pretrained` writes it."""

    pipe: Any
    folder: Path


def _build(name: str, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    # Imported here: tests of the torch-free half share this file and must not load torch.
    from . import tiny

    folder = tmp_path_factory.mktemp(name)
    pipe = getattr(tiny, name)(folder / "parts")
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "checkpoint")
    return Tiny(pipe, folder / "checkpoint")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Stable Diffusion."""
    return _build("sd", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Stable Diffusion XL."""
    return _build("sdxl", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Stable Diffusion with a ControlNet."""
    return _build("controlnet", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_shapes() -> Tiny:
    """The trained model that ships."""
    from diffusers import StableDiffusionPipeline

    from ingot.shapes import MODEL_DIR

    pipe = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, MODEL_DIR)


@pytest.fixture(scope="module")
def torch_settings() -> Iterator[None]:
    """What a file's tests set in torch for good, as torchao's `quantize_` does, is put back behind them."""
    import torch
    import torch._inductor.config as inductor

    kept, precision = inductor.get_config_copy(), torch.get_float32_matmul_precision()
    yield
    for name, value in inductor.get_config_copy().items():
        if value != kept[name]:
            setattr(inductor, name, kept[name])
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_sd: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion, cast into a bundle. Tests copy it before they break it."""
    import ingot

    return ingot.export(tiny_sd.folder, tmp_path_factory.mktemp("bundle") / "tiny", progress=False)


@pytest.fixture(scope="session")
def coreml_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes as a bundle for Core ML in float32."""
    from .coreml_packages import export_shapes

    return export_shapes(tmp_path_factory.mktemp("coreml") / "shapes")


@pytest.fixture(scope="session")
def coreml_export(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """A component of a tiny pipeline and its Core ML packages, each converted once a session: that takes seconds."""
    from .coreml_packages import exporter

    return exporter(lambda: tmp_path_factory.mktemp("graph"), lambda name: request.getfixturevalue(f"tiny_{name}").pipe)
