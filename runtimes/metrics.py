"""How far one array is from another: the figures that certificates and pictures are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """What stands between a reference and what was found. Equal arrays: 0, 0, infinity, 1."""

    max_abs: float
    rel_l2: float  # |found - reference| / |reference|
    sqnr_db: float  # the same in decibels: -20 log10(rel_l2)
    cosine: float


def compare(reference: NDArray[Any], found: NDArray[Any]) -> Difference:
    """Compare in float64. Another shape, or a NaN or infinity on one side only, is infinitely far."""
    if reference.shape != found.shape:
        return Difference(np.inf, np.inf, -np.inf, 0.0)
    a, b = np.asarray(reference, np.float64).ravel(), np.asarray(found, np.float64).ravel()
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(np.inf, np.inf, -np.inf, 0.0)
    a, b = a[finite], b[finite]
    error, norm, other = (float(np.linalg.norm(x)) for x in (b - a, a, b))
    rel_l2 = error / norm if norm else (0.0 if error == 0 else np.inf)
    return Difference(
        max_abs=float(np.abs(b - a).max(initial=0.0)),
        rel_l2=rel_l2,
        sqnr_db=decibels(rel_l2),
        cosine=float(a @ b) / (norm * other) if norm and other else float(norm == other),
    )


def decibels(ratio: float) -> float:
    """An error's ratio to its signal as a signal-to-noise ratio in dB; minus infinity for a ratio that is no number."""
    if not np.isfinite(ratio):
        return float(-np.inf)
    return float(-20 * np.log10(ratio)) if ratio > 0 else float(np.inf)


def image_psnr(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..255 (integers) or 0..1 (floats); infinity for equal ones."""
    peak = 255.0 if np.issubdtype(reference.dtype, np.integer) else 1.0
    if reference.shape != found.shape:
        raise ValueError(f"pictures of different shapes: {list(reference.shape)} and {list(found.shape)}")
    error = np.asarray(reference, np.float64) - np.asarray(found, np.float64)
    return decibels(float(np.sqrt(np.mean(error**2))) / peak)


def image_ssim(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """The mean structural similarity of pictures (batch, height, width, channels), 0..255 (integers) or 0..1 (floats).

        ssim = (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))

    in Gaussian windows of 11x11 pixels with sigma 1.5, c1 = (0.01 peak)^2, c2 = (0.03 peak)^2, each channel by itself
    (Wang et al. 2004). Windows that leave the picture are left out; sides under 11 pixels take a window that fits.
    """
    if reference.shape != found.shape:
        raise ValueError(f"pictures of different shapes: {list(reference.shape)} and {list(found.shape)}")
    peak = 255.0 if np.issubdtype(reference.dtype, np.integer) else 1.0
    x, y = np.asarray(reference, np.float64) / peak, np.asarray(found, np.float64) / peak
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    return float(np.mean(alike / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))))


def _blurred(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means in every window of 11x11 pixels that lies inside."""
    for axis in (1, 2):
        size = min(11, (pictures.shape[axis] - 1) // 2 * 2 + 1)
        weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * 1.5**2))
        windows = np.lib.stride_tricks.sliding_window_view(pictures, size, axis=axis)
        pictures = windows @ (weights / weights.sum())
    return pictures
