"""FreeU as a rewrite: what diffusers' `enable_freeu` computes, without its Fourier transforms, in a graph for every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor

import ingot
from ingot import InputError
from ingot.exporters import rewrites
from ingot.exporters.capture import capture
from ingot.exporters.rewrites import applied, freeu
from ingot.exporters.trace import trace
from ingot.runtimes.metrics import compare

from . import tiny

# The same sums in another order, in float32.
TOLERANCE = 1e-5
FACTORS = freeu.Factors(0.9, 0.2, 1.5, 1.6)
ENGINES = {"onnx": {}, "openvino": {"inference_precision": "f32"}}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (2, 3), (5, 7), (8, 8), (16, 12)])
@pytest.mark.parametrize("factor", [0.2, 1.7])
def test_two_products_are_the_filter_of_diffusers(size: tuple[int, int], factor: float) -> None:
    x = noise(2, 3, *size)
    torch.testing.assert_close(
        freeu.weakened(x, factor), fourier_filter(x, threshold=1, scale=factor), atol=TOLERANCE, rtol=0
    )


def call_of(width: int, height: int, columns: int, **more: Any) -> dict[str, Any]:
    words = noise(2, 77, width, seed=1)
    return {"sample": noise(2, 4, height, columns), "timestep": 300, "encoder_hidden_states": words, **more}


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_unet_computes_as_with_enable_freeu_and_afterwards_as_before(name: str, tmp_path: Path) -> None:
    unet = getattr(tiny, name)(tmp_path).unet.eval()
    added = {"text_embeds": noise(2, 32, seed=2), "time_ids": 100 * noise(2, 6, seed=3).abs()}
    call = call_of(64, 9, 14, added_cond_kwargs=added) if name == "sdxl" else call_of(32, 9, 14)
    with torch.no_grad():
        plain = unet(**call).sample
        with applied((f"freeu={FACTORS}",), unet):
            found = unet(**call).sample
        assert not any("s1" in vars(block) for block in unet.up_blocks)
        assert torch.equal(unet(**call).sample, plain)
        unet.enable_freeu(*FACTORS)
        expected = unet(**call).sample
    assert compare(expected.numpy(), found.numpy()).rel_l2 < TOLERANCE
    assert compare(plain.numpy(), found.numpy()).rel_l2 > 0.01  # it does something


def test_one_program_serves_every_size(tiny_sd: Any) -> None:
    component = next(part for part in capture(tiny_sd.pipe, rewrites=("freeu",)) if part.role == "unet")
    assert component.rewrites == ("freeu=0.9,0.2,1.5,1.6",)
    program = trace(component).module(check_guards=False)  # which no engine has
    for height, width in ((8, 8), (7, 10)):
        call = {**call_of(32, height, width), "timestep": torch.tensor(300.0)}
        expected = component.run(call)["out_sample"]
        (found,) = program(*(call[spec.name] for spec in component.signature.inputs))
        assert compare(expected.numpy(), found.detach().numpy()).rel_l2 < TOLERANCE


def test_bundles_make_the_latents_of_enable_freeu(tiny_sd: Any, tmp_path: Path) -> None:
    """Tolerance 1e-4, as for every family's latents."""
    call = {"height": 48, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
    tiny_sd.pipe.enable_freeu(*FACTORS)
    try:
        with torch.no_grad():
            expected = tiny_sd.pipe("a cat", **call, generator=torch.Generator().manual_seed(0)).images.numpy()
    finally:
        tiny_sd.pipe.disable_freeu()
    ingot.export(
        tiny_sd.folder, tmp_path / "bundle", to=list(ENGINES), dtype="float32", rewrites="freeu", progress=False
    )
    for engine, options in ENGINES.items():
        with ingot.load(tmp_path / "bundle", engine=engine, **options) as pipe:
            found = pipe("a cat", **call, seed=0, progress=False).images
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize(
    "text", ["freeu=", "freeu=1,2,3", "freeu=1,2,3,much", "freeu=-1,1,1,1", "freeu=0,1,1,1", "freeu=nan,1,1,1"]
)
def test_other_factors_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"four numbers above 0 are needed, s1,s2,b1,b2, such as freeu=0\.9"):
        rewrites.canonical((text,))
