"""Noise held against torch's CPU generator.

Tolerance 2e-6 absolute: torch's own kernels (default, AVX2, AVX-512) differ among themselves by 1.8e-6.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from ingot.runtimes.errors import InputError
from ingot.runtimes.noise import Generator, randn_tensor

ATOL = 2e-6
SEEDS = (0, 1, 42, 2**32 - 1, 2**32 + 5, 2**64 - 1, -1, -12345, -(2**63))
SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 40, 1000, 4096)


def oracle(seed: int):  # type: ignore[no-untyped-def]
    return torch.Generator().manual_seed(seed)


def close(ours: np.ndarray, theirs: object, atol: float = ATOL) -> None:
    wanted = theirs.double().numpy()  # type: ignore[attr-defined]
    assert ours.shape == wanted.shape
    np.testing.assert_allclose(ours.astype(np.float64), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_and_size_gives_the_noise_of_torch(seed: int) -> None:
    for size in SIZES:
        close(Generator(seed).randn((size,)), torch.randn(size, generator=oracle(seed)))


def test_a_latent_shape_gives_the_noise_of_torch() -> None:
    ours = Generator(7).randn((2, 4, 64, 64))
    assert ours.dtype == np.float32
    close(ours, torch.randn((2, 4, 64, 64), generator=oracle(7)))


def test_small_and_large_draws_in_turn_share_one_stream() -> None:
    ours, theirs = Generator(11), oracle(11)
    # odd small draws leave a sine value behind; large draws, uniform draws and empty ones must neither use nor drop it
    for size in (1, 16, 1, 3, 20, 0, 2, 15, 33, 1, 1, 5, 64, 7):
        close(ours.randn((size,)), torch.randn(size, generator=theirs))
        close(ours.rand((3,)), torch.rand(3, generator=theirs), atol=0)
    close(ours.randn(()), torch.randn((), generator=theirs))


@pytest.mark.parametrize("size", SIZES)
def test_float64_is_another_stream_and_the_same_as_torch(size: int) -> None:
    ours, theirs = Generator(3), oracle(3)
    # 1e-12: both work in float64, only the last digits of log, cos and sin differ
    for _ in range(2):
        close(ours.randn((size,), np.float64), torch.randn(size, generator=theirs, dtype=torch.float64), atol=1e-12)
    close(ours.rand((4,), np.float64), torch.rand(4, generator=theirs, dtype=torch.float64), atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_half_precision_draws_and_leaves_the_stream_as_torch_does(size: int) -> None:
    ours, theirs = Generator(5), oracle(5)
    # one unit in the last place of float16 below 8, where a float32 difference of 2e-6 may round the other way
    for _ in range(2):
        close(ours.randn((size,), np.float16), torch.randn(size, generator=theirs, dtype=torch.float16), atol=2**-8)
    close(ours.rand((4,)), torch.rand(4, generator=theirs), atol=0)


def test_half_noise_is_the_float32_noise_cast_only_where_no_block_is_left_over() -> None:
    for size in (5, 16, 64):
        assert np.array_equal(Generator(7).randn((size,), np.float16), Generator(7).randn((size,)).astype(np.float16))
    assert not np.array_equal(Generator(7).randn((19,), np.float16), Generator(7).randn((19,)).astype(np.float16))


def test_bfloat16_noise_when_its_dtype_is_installed() -> None:
    from ml_dtypes import bfloat16

    for size in (7, 64, 70):
        # one unit in the last place of bfloat16 below 8
        close(
            Generator(5).randn((size,), bfloat16),
            torch.randn(size, generator=oracle(5), dtype=torch.bfloat16),
            atol=2**-5,
        )


def test_one_generator_draws_the_batch_at_once_and_a_list_image_by_image() -> None:
    from diffusers.utils.torch_utils import randn_tensor as reference

    for shape in ((3, 4, 8, 8), (3, 1, 3, 3), (3, 1, 5, 5)):
        close(randn_tensor(shape, Generator(1)), reference(shape, oracle(1)))
        close(randn_tensor(shape, [Generator(1)]), reference(shape, [oracle(1)]))
        close(randn_tensor(shape, [Generator(s) for s in (1, 2, 3)]), reference(shape, [oracle(s) for s in (1, 2, 3)]))


def test_a_list_of_the_wrong_length_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"2 generators for a batch of 3"):
        randn_tensor((3, 4), [Generator(1), Generator(2)])


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "7", True])
def test_a_seed_that_torch_would_not_take_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match="seed"):
        Generator(seed)  # type: ignore[arg-type]


def test_without_a_seed_no_two_generators_agree() -> None:
    assert not np.array_equal(Generator().randn((16,)), Generator().randn((16,)))
    assert not np.array_equal(randn_tensor((16,)), randn_tensor((16,)))


def test_a_copy_continues_where_its_original_stood() -> None:
    first = Generator(9)
    first.randn((3,))
    second = copy.deepcopy(first)
    assert np.array_equal(first.randn((5,)), second.randn((5,)))


def test_moments_of_a_large_draw_are_normal() -> None:
    values = Generator(0).randn((100_000,)).astype(np.float64)
    # 5 standard errors of the mean and of the variance at this size
    assert abs(values.mean()) < 5 / math.sqrt(1e5)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / 1e5)


def test_rand_of_another_dtype_is_refused() -> None:
    with pytest.raises(InputError, match="float16"):
        Generator(0).rand((2,), np.float16)
