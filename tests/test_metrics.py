"""The figures that certificates are made of."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest

from ingot.runtimes.metrics import compare, decibels, image_psnr


def test_known_differences() -> None:
    difference = compare(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert (difference.max_abs, difference.rel_l2) == (0.5, 0.1)
    assert difference.sqnr_db == pytest.approx(20.0, abs=1e-9)  # -20 log10(0.1), in float64


def test_equal_arrays_are_infinitely_near() -> None:
    difference = compare(np.ones(3), np.ones(3))
    assert (difference.rel_l2, difference.sqnr_db) == (0.0, np.inf)


@pytest.mark.parametrize("found", [[np.nan, 1], [np.inf, 1], [-np.inf, 1]])
def test_what_is_no_number_is_infinitely_far(found: list[float]) -> None:
    assert compare(np.array([1.0, 1.0]), np.array(found)).rel_l2 == np.inf
    assert image_psnr(np.array([1.0, 1.0]), np.array([np.nan, 1])) == -np.inf
    assert decibels(float("nan")) == -np.inf


def test_nan_is_not_infinity() -> None:
    assert compare(np.array([np.nan, 1.0]), np.array([np.inf, 1.0])).rel_l2 == np.inf
    assert compare(np.array([np.nan, 1.0]), np.array([np.nan, 1.0])).rel_l2 == 0


def test_psnr_of_one_grey_level() -> None:
    black = np.zeros((4, 4), np.uint8)
    assert image_psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert image_psnr(black, black) == np.inf


@pytest.mark.parametrize(
    "module", ["ingot.runtimes.noise", "ingot.runtimes.schedulers", "ingot.runtimes.schedulers.base"]
)
def test_examples_in_docstrings_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried
    assert not failed
