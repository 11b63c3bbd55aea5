"""Blur kernels: generalised bivariate Gaussians, plateaus and ideal low-pass filters.

Source: X. Wang et al., "Real-ESRGAN", 2021, sections 3.1 and 3.3; Y.-Q. Liu et al., "Estimating generalized Gaussian blur
kernels for out-of-focus image deblurring", 2020.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Kernel = NDArray[np.float64]


def bivariate_gaussian(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float = 1.0) -> Kernel:
    """exp(-(1/2) (p' S^-1 p)^beta), normalised to sum 1; beta = 1 is the Gaussian.

    Args:
        size: side in pixels, odd.
        sigma_x: standard deviation along the first axis of the ellipse, in pixels.
        sigma_y: along the second.
        theta: rotation in radians, counter-clockwise.
        beta: shape; below 1 more peaked, above 1 flatter.

    Returns:
        (size, size); x runs along columns, y along rows.
    """
    return _normalised(np.exp(-0.5 * _distance(size, sigma_x, sigma_y, theta) ** beta))


def bivariate_plateau(size: int, sigma_x: float, sigma_y: float, theta: float, beta: float) -> Kernel:
    """1 / (1 + (p' S^-1 p)^beta), normalised to sum 1; arguments as for `bivariate_gaussian`."""
    return _normalised(1 / (1 + _distance(size, sigma_x, sigma_y, theta) ** beta))


def circular_lowpass(size: int, cutoff: float) -> Kernel:
    """The ideal circular low-pass filter, which rings: cutoff J1(cutoff r) / (2 pi r), normalised to sum 1.

    Args:
        size: side in pixels, odd.
        cutoff: frequency in radians a pixel; pi passes almost everything.
    """
    radius = _radius(size)
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * _bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def identity(size: int) -> Kernel:
    """Changes nothing."""
    kernel = np.zeros((size, size))
    kernel[size // 2, size // 2] = 1
    return kernel


def padded(kernel: Kernel, size: int) -> Kernel:
    """The kernel in the middle of a (size, size) one; so kernels of several sizes make one batch."""
    margin = (size - len(kernel)) // 2
    return np.pad(kernel, margin) if margin > 0 else kernel


def _normalised(kernel: Kernel) -> Kernel:
    result: Kernel = kernel / kernel.sum()
    return result


def _distance(size: int, sigma_x: float, sigma_y: float, theta: float) -> Kernel:
    """p' S^-1 p at every pixel, with S = R diag(sigma_x^2, sigma_y^2) R'."""
    x, y = _grid(size)
    cosine, sine = math.cos(theta), math.sin(theta)
    along, across = x * cosine + y * sine, y * cosine - x * sine
    distance: Kernel = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    return distance


@lru_cache(maxsize=32)
def _grid(size: int) -> tuple[Kernel, Kernel]:
    axis = np.arange(size, dtype=np.float64) - size // 2
    return np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))


@lru_cache(maxsize=32)
def _radius(size: int) -> Kernel:
    x, y = _grid(size)
    radius: Kernel = np.hypot(x, y)
    return radius


def _bessel_j1(x: Kernel) -> Kernel:
    from scipy.special import j1  # comes with scikit-image; slow to import

    result: Kernel = j1(x)
    return result
