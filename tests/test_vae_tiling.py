"""Pictures in tiles: against diffusers' own tiles, against the whole picture, and what they spare.

Tolerance against diffusers 1e-4 absolute, on values of about -1..1: the same float32 graph over the same tiles, blended in
another order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ingot import InputError
from ingot.runtimes.images import to_pixels
from ingot.runtimes.pipelines.tiling import Tiling
from ingot.runtimes.pipelines.vae import VAE
from ingot.runtimes.signature import Signature, TensorSpec
from ingot.shapes import draw, split

from . import tiny

ATOL = 1e-4
Array = NDArray[Any]


class TorchHalf:
    """A half of an autoencoder as an engine; `largest` is the largest input that it was given."""

    def __init__(self, name: str, output: str, function: Callable[[torch.Tensor], torch.Tensor], side: Any = "height"):
        shape = ("batch", 4, side, side)
        self.signature = Signature((TensorSpec(name, "float32", shape),), (TensorSpec(output, "float32", shape),))
        self.name, self.output, self.function, self.largest = name, output, function, 0

    def run(self, inputs: Any) -> dict[str, Array]:
        array = inputs[self.name]
        self.largest = max(self.largest, array[0, 0].size)
        with torch.no_grad():
            return {self.output: self.function(torch.from_numpy(np.ascontiguousarray(array))).numpy()}

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def module(tiny_sd: Any) -> Any:
    return tiny_sd.pipe.vae.eval()


@pytest.fixture
def vae(module: Any) -> VAE:
    decoder = TorchHalf("latent_sample", "sample", lambda z: module.decode(z).sample)
    encoder = TorchHalf("sample", "latent_parameters", lambda x: module.encode(x).latent_dist.parameters)
    return VAE({"vae_decoder": decoder, "vae_encoder": encoder}, dict(module.config))


@pytest.fixture
def tiles(module: Any) -> Any:
    """diffusers' VAE, which makes tiles of 16 latents from 32 pixels on."""
    module.enable_tiling()
    yield module
    module.disable_tiling()


def noise(*shape: int) -> Array:
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 40), (16, 44), (37, 50), (52, 16)])
def test_decoding_equals_diffusers(vae: VAE, tiles: Any, size: tuple[int, int]) -> None:
    latents = noise(2, 4, *size)
    with torch.no_grad():
        expected = tiles.decode(torch.from_numpy(vae.unscaled(latents))).sample.numpy()
    tiles.disable_tiling()  # ours runs the same module
    vae.enable_tiling()
    ours = vae.decoded(latents)
    assert ours.shape == (2, 3, 2 * size[0], 2 * size[1])
    np.testing.assert_allclose(ours, expected, atol=ATOL, rtol=0)
    assert vae.decoder.largest == 16 * 16


@pytest.mark.parametrize("size", [(80, 80), (32, 88), (74, 100)])
def test_encoding_equals_diffusers(vae: VAE, tiles: Any, size: tuple[int, int]) -> None:
    pixels = noise(2, 3, *size).clip(-1, 1)
    with torch.no_grad():
        expected = tiles.encode(torch.from_numpy(pixels)).latent_dist.mode().numpy() * vae.config["scaling_factor"]
    tiles.disable_tiling()
    vae.enable_tiling()
    np.testing.assert_allclose(vae.encode(pixels, None), expected, atol=ATOL, rtol=0)
    assert vae.encoder.largest == 32 * 32


@pytest.mark.parametrize("blend", ["even", "diffusers"])
@pytest.mark.parametrize(("unit", "factor"), [(1, Fraction(2)), (2, Fraction(1, 2)), (1, Fraction(8))])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_what_depends_on_no_neighbour_is_the_whole_picture(
    blend: str, unit: int, factor: Fraction, overlap: float
) -> None:
    """Each value alone, enlarged or taken out: tiles must lie where they belong, at every size."""

    def run(part: Array) -> Array:
        if factor < 1:
            step = int(1 / factor)
            return part[:, :, ::step, ::step]
        return part.repeat(int(factor), 2).repeat(int(factor), 3)

    for size in [(16, 16), (17, 30), (40, 23), (61, 8)]:
        array = noise(1, 3, *(side * unit for side in size))
        found = Tiling(12, overlap, blend).apply(run, array, unit, factor)
        # a weighted mean of equal values, in float32
        np.testing.assert_allclose(found, run(array), atol=1e-6, rtol=0)


def test_what_fits_a_tile_is_decoded_whole(vae: VAE) -> None:
    latents = noise(1, 4, 16, 16)
    whole = vae.decode(latents)
    vae.enable_tiling()
    np.testing.assert_array_equal(vae.decode(latents), whole)
    vae.disable_tiling()
    assert vae.tiling is None


def test_even_tiles_are_whole_and_overlap_as_asked(vae: VAE) -> None:
    seen: list[tuple[int, ...]] = []
    run = vae.decoder.run
    vae.decoder.run = lambda inputs: seen.append(inputs["latent_sample"].shape[2:]) or run(inputs)  # type: ignore[method-assign]
    vae.enable_tiling(tile=32, blend="even")
    vae.decode(noise(1, 4, 34, 20))
    assert set(seen) == {(16, 16)}
    assert len(seen) == 3 * 2  # 18 latents behind the first tile in steps of at most 12; 4 in one


# --- how far from the whole picture


def psnr(found: Array, whole: Array, peak: float) -> float:
    return float(10 * np.log10(peak**2 / np.mean((found - whole) ** 2)))


class Frozen(nn.Module):
    """A normalisation that keeps the statistics of the first, the whole picture."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm
        self.kept: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.reshape(len(x), self.norm.num_groups, -1)
        if self.kept is None:
            self.kept = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
        mean, variance = self.kept
        normal = ((groups - mean) / torch.sqrt(variance + self.norm.eps)).reshape(x.shape)
        return normal * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


def freeze(module: nn.Module) -> None:
    for name, child in module.named_children():
        setattr(module, name, Frozen(child)) if isinstance(child, nn.GroupNorm) else freeze(child)


def test_what_sets_tiles_apart_is_their_normalisation() -> None:
    """Measured, in dB from the whole picture of a random VAE: 33 and 36 with the tiles' own statistics, whose tones differ; 36
    and 51 with the whole picture's."""
    found = {}
    for frozen in (False, True):
        torch.manual_seed(0)
        module = tiny._vae(mid_block_add_attention=False).eval()
        if frozen:
            freeze(module.decoder)
        half = TorchHalf("latent_sample", "sample", lambda z, module=module: module.decode(z).sample)
        latents = noise(1, 4, 72, 72)
        whole = half.run({"latent_sample": latents})["sample"]
        for blend in ("diffusers", "even"):
            tiled = Tiling(32, 0.25, blend).apply(
                lambda z, half=half: half.run({"latent_sample": z})["sample"], latents, 1, Fraction(2)
            )
            found[frozen, blend] = psnr(tiled, whole, 2)
    assert found[False, "diffusers"] > 32
    assert found[False, "even"] > found[False, "diffusers"] + 1
    assert found[True, "even"] > 50
    assert found[True, "even"] > found[True, "diffusers"] + 10


def test_shapes_in_tiles_is_near_shapes_whole(tiny_shapes: Any) -> None:
    """256 pixels in tiles of 128, four times what it was trained at. Measured against the whole decode: see the numbers."""
    module = tiny_shapes.pipe.vae.eval()
    decoder = TorchHalf("latent_sample", "sample", lambda z: module.decode(z).sample)
    encoder = TorchHalf("sample", "latent_parameters", lambda x: module.encode(x).latent_dist.parameters)
    vae = VAE({"vae_decoder": decoder, "vae_encoder": encoder}, dict(module.config))
    scene = Image.fromarray(draw(split()[1][0], np.random.RandomState(0))).resize((256, 256), Image.Resampling.LANCZOS)
    pixels = to_pixels(scene)
    latents = vae.encode(pixels, None)
    whole, largest = vae.decode(latents), decoder.largest
    found = {}
    for blend in ("diffusers", "even"):
        vae.enable_tiling(128, 0.25, blend)
        decoder.largest = 0
        found[blend] = psnr(vae.decode(latents), whole, 1)
        assert decoder.largest * 4 == largest
        encoded = vae.encode(pixels, None)
        assert 10 * np.log10((latents**2).mean() / ((encoded - latents) ** 2).mean()) > 25
    print(found)
    assert found["diffusers"] > 45
    assert found["even"] > found["diffusers"]


def test_wrong_tiles_are_refused(vae: VAE, module: Any) -> None:
    with pytest.raises(InputError, match=r"tile=33 is not a multiple of 2, as this model needs; 32 or 34 would do"):
        vae.enable_tiling(tile=33)
    with pytest.raises(InputError, match=r"overlap=0.6 must be a share of a tile, from 0 to 0.5"):
        vae.enable_tiling(overlap=0.6)
    with pytest.raises(InputError, match="unknown blend 'soft'; available: even, diffusers"):
        vae.enable_tiling(blend="soft")
    fixed = VAE({"vae_decoder": TorchHalf("latent_sample", "sample", lambda z: z, side=32)}, dict(module.config))
    with pytest.raises(InputError, match=r"tiles of 16 latents: .* exported with the static size of 32"):
        fixed.enable_tiling()
    assert vae.tiling is None
