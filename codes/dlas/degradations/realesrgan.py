"""The second-order degradation of Real-ESRGAN."""

from __future__ import annotations

import math

import numpy as np

from dlas.degradations import kernels
from dlas.degradations.base import (
    Blur,
    Degradation,
    GaussianNoise,
    Interpolation,
    Jpeg,
    Operation,
    PoissonNoise,
    Recipe,
    Resize,
    Sharpen,
)
from dlas.errors import ConfigurationError
from dlas.registry import DEGRADATIONS
from dlas.types import Fraction, PositiveInt

_FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
_MODES: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")
_UP, _DOWN, _KEEP = range(3)


@DEGRADATIONS.register("realesrgan", "high_order")
class RealESRGAN(Degradation):
    """Sharpen, then twice: blur, resize, noise, JPEG; with a sinc filter before or after the last JPEG.

    Every parameter is drawn for each image alone, so that no pool of earlier pairs is needed to mix them. The names are those
    of the published option files; the defaults are the published values. Options that end in 2 are of the second pass.

    Source: X. Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", 2021, section 3.

    Args:
        gt_usm: sharpen the high-quality image before it is degraded.
        blur_kernel_size: largest side of a kernel, odd and at least 7; sides are drawn from 7, 9, .. up to it.
        kernel_list: families to draw from: iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso.
        kernel_prob: their probabilities.
        sinc_prob: probability of a sinc filter in place of a blur.
        blur_sigma: range of the standard deviations, in pixels.
        betag_range: range of the shape of generalised Gaussians.
        betap_range: range of the shape of plateaus.
        resize_prob: probabilities of enlarging, shrinking, and keeping the size.
        resize_range: smallest and largest factor.
        gaussian_noise_prob: probability of Gaussian noise; Poisson noise else.
        noise_range: range of the standard deviation of Gaussian noise, of 255.
        poisson_scale_range: range of the strength of Poisson noise.
        gray_noise_prob: probability of the same noise in all channels.
        jpeg_range: range of the JPEG quality.
        second_blur_prob: probability that the second pass blurs.
        blur_kernel_size2: as `blur_kernel_size`.
        kernel_list2: as `kernel_list`.
        kernel_prob2: as `kernel_prob`.
        sinc_prob2: as `sinc_prob`.
        blur_sigma2: as `blur_sigma`.
        betag_range2: as `betag_range`.
        betap_range2: as `betap_range`.
        resize_prob2: as `resize_prob`.
        resize_range2: as `resize_range`, of the final size.
        gaussian_noise_prob2: as `gaussian_noise_prob`.
        noise_range2: as `noise_range`.
        poisson_scale_range2: as `poisson_scale_range`.
        gray_noise_prob2: as `gray_noise_prob`.
        jpeg_range2: as `jpeg_range`.
        final_sinc_prob: probability of the last sinc filter.
        aligned: resizing keeps the corners of the image in place. False samples at distances of 1 / factor as the published
            code does, which leaves the low-quality image up to a pixel of the smallest size out of place at the far edges.

    Raises:
        ConfigurationError: a range, list or size is not as described.
    """

    def __init__(
        self,
        *,
        gt_usm: bool = True,
        blur_kernel_size: PositiveInt = 21,
        kernel_list: list[str] = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
        kernel_prob: list[Fraction] = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        sinc_prob: Fraction = 0.1,
        blur_sigma: list[float] = [0.2, 3],
        betag_range: list[float] = [0.5, 4],
        betap_range: list[float] = [1, 2],
        resize_prob: list[Fraction] = [0.2, 0.7, 0.1],
        resize_range: list[float] = [0.15, 1.5],
        gaussian_noise_prob: Fraction = 0.5,
        noise_range: list[float] = [1, 30],
        poisson_scale_range: list[float] = [0.05, 3],
        gray_noise_prob: Fraction = 0.4,
        jpeg_range: list[float] = [30, 95],
        second_blur_prob: Fraction = 0.8,
        blur_kernel_size2: PositiveInt = 21,
        kernel_list2: list[str] = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
        kernel_prob2: list[Fraction] = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
        sinc_prob2: Fraction = 0.1,
        blur_sigma2: list[float] = [0.2, 1.5],
        betag_range2: list[float] = [0.5, 4],
        betap_range2: list[float] = [1, 2],
        resize_prob2: list[Fraction] = [0.3, 0.4, 0.3],
        resize_range2: list[float] = [0.3, 1.2],
        gaussian_noise_prob2: Fraction = 0.5,
        noise_range2: list[float] = [1, 25],
        poisson_scale_range2: list[float] = [0.05, 2.5],
        gray_noise_prob2: Fraction = 0.4,
        jpeg_range2: list[float] = [30, 95],
        final_sinc_prob: Fraction = 0.8,
        aligned: bool = True,
    ) -> None:
        self.gt_usm = gt_usm
        self.aligned = aligned
        self.second_blur_prob = second_blur_prob
        self.final_sinc_prob = final_sinc_prob
        self.final_size = blur_kernel_size2
        self.passes = (
            _Pass(
                _Blurs("", blur_kernel_size, kernel_list, kernel_prob, sinc_prob, blur_sigma, betag_range, betap_range),
                _shares("resize_prob", resize_prob, 3),
                _range("resize_range", resize_range, 0.01, 8),
                _Noises(
                    gaussian_noise_prob,
                    _range("noise_range", noise_range, 0, 255),
                    _range("poisson_scale_range", poisson_scale_range, 0, 100),
                    gray_noise_prob,
                ),
                _range("jpeg_range", jpeg_range, 1, 100),
            ),
            _Pass(
                _Blurs("2", blur_kernel_size2, kernel_list2, kernel_prob2, sinc_prob2, blur_sigma2, betag_range2, betap_range2),
                _shares("resize_prob2", resize_prob2, 3),
                _range("resize_range2", resize_range2, 0.01, 8),
                _Noises(
                    gaussian_noise_prob2,
                    _range("noise_range2", noise_range2, 0, 255),
                    _range("poisson_scale_range2", poisson_scale_range2, 0, 100),
                    gray_noise_prob2,
                ),
                _range("jpeg_range2", jpeg_range2, 1, 100),
            ),
        )

    def draw(self, rng: np.random.Generator, height: int, width: int, scale: int) -> Recipe:
        first, second = self.passes
        final = (height // scale, width // scale)
        recipe: Recipe = [Sharpen()] if self.gt_usm else []
        recipe += [first.blurs.draw(rng), first.resize(rng, (height, width), by_factor=not self.aligned)]
        recipe += [first.noises.draw(rng), Jpeg(_uniform(rng, first.qualities))]
        blur = second.blurs.draw(rng)
        if rng.random() < self.second_blur_prob:
            recipe.append(blur)
        recipe.append(second.resize(rng, final))
        recipe.append(second.noises.draw(rng))
        # The last three come in either order, since both are met in pictures from the web.
        tail: list[Operation] = [Resize(*final, _mode(rng))]
        if rng.random() < self.final_sinc_prob:
            tail.append(_sinc(rng, _side(rng, self.final_size), math.pi / 3))
        compression = Jpeg(_uniform(rng, second.qualities))
        return [*recipe, *tail, compression] if rng.random() < 0.5 else [*recipe, compression, *tail]


class _Blurs:
    """Kernels of one pass."""

    def __init__(
        self,
        suffix: str,
        largest: int,
        families: list[str],
        probabilities: list[float],
        sinc: float,
        sigma: list[float],
        generalised: list[float],
        plateau: list[float],
    ) -> None:
        if largest < 7 or largest % 2 == 0:
            raise ConfigurationError(f"blur_kernel_size{suffix} must be odd and at least 7, got {largest}")
        unknown = [name for name in families if name not in _FAMILIES]
        if unknown or not families:
            raise ConfigurationError(f"kernel_list{suffix}: {unknown or families}: expected names of {', '.join(_FAMILIES)}")
        self.largest = largest
        self.families = families
        self.probabilities = _shares(f"kernel_prob{suffix}", probabilities, len(families))
        self.sinc = sinc
        self.sigma = _range(f"blur_sigma{suffix}", sigma, 0.01, 100)
        self.generalised = _range(f"betag_range{suffix}", generalised, 0.01, 100)
        self.plateau = _range(f"betap_range{suffix}", plateau, 0.01, 100)

    def draw(self, rng: np.random.Generator) -> Blur:
        size = _side(rng, self.largest)
        if rng.random() < self.sinc:
            return _sinc(rng, size, math.pi / 3 if size < 13 else math.pi / 5)
        family = self.families[int(rng.choice(len(self.families), p=self.probabilities))]
        sigma_x = sigma_y = _uniform(rng, self.sigma)
        theta = 0.0
        if not family.endswith("aniso"):
            width = f"{sigma_x:.2f}"
        else:
            sigma_y, theta = _uniform(rng, self.sigma), float(rng.uniform(-math.pi, math.pi))
            width = f"{sigma_x:.2f}x{sigma_y:.2f}@{math.degrees(theta):.0f}"
        name = f"{family} {size}px {width}"
        if family.startswith("plateau"):
            beta = _shape(rng, self.plateau)
            return Blur(kernels.bivariate_plateau(size, sigma_x, sigma_y, theta, beta), f"{name} beta {beta:.2f}")
        beta = _shape(rng, self.generalised) if family.startswith("generalized") else 1.0
        words = f"{name} beta {beta:.2f}" if beta != 1 else name
        return Blur(kernels.bivariate_gaussian(size, sigma_x, sigma_y, theta, beta), words)


class _Noises:
    def __init__(self, gaussian: float, sigma: tuple[float, float], strength: tuple[float, float], gray: float) -> None:
        self.gaussian, self.sigma, self.strength, self.gray = gaussian, sigma, strength, gray

    def draw(self, rng: np.random.Generator) -> GaussianNoise | PoissonNoise:
        gray = bool(rng.random() < self.gray)
        if rng.random() < self.gaussian:
            return GaussianNoise(_uniform(rng, self.sigma), gray)
        return PoissonNoise(_uniform(rng, self.strength), gray)


class _Pass:
    def __init__(
        self,
        blurs: _Blurs,
        directions: list[float],
        factors: tuple[float, float],
        noises: _Noises,
        qualities: tuple[float, float],
    ) -> None:
        self.blurs, self.directions, self.factors, self.noises, self.qualities = blurs, directions, factors, noises, qualities

    def resize(self, rng: np.random.Generator, base: tuple[int, int], by_factor: bool = False) -> Resize:
        """To a random multiple of `base`: the present size in the first pass, the final one in the second."""
        direction = int(rng.choice(3, p=self.directions))
        low, high = self.factors
        factor = 1.0
        if direction == _UP:
            factor = float(rng.uniform(1, max(high, 1)))
        elif direction == _DOWN:
            factor = float(rng.uniform(min(low, 1), 1))
        height, width = (max(int(side * factor), 1) for side in base)
        return Resize(height, width, _mode(rng), factor if by_factor and direction != _KEEP else None)


def _side(rng: np.random.Generator, largest: int) -> int:
    return 7 + 2 * int(rng.integers((largest - 7) // 2 + 1))


def _sinc(rng: np.random.Generator, size: int, lowest: float) -> Blur:
    cutoff = float(rng.uniform(lowest, math.pi))
    return Blur(kernels.circular_lowpass(size, cutoff), f"sinc {size}px {cutoff:.2f}")


def _mode(rng: np.random.Generator) -> Interpolation:
    return _MODES[int(rng.integers(len(_MODES)))]


def _shape(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Below 1 and above 1 equally often."""
    low, high = bounds
    below = rng.random() < 0.5
    return float(rng.uniform(min(low, 1), 1) if below else rng.uniform(1, max(high, 1)))


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds))


def _range(name: str, values: list[float], lowest: float, highest: float) -> tuple[float, float]:
    if len(values) != 2 or not lowest <= values[0] <= values[1] <= highest:
        raise ConfigurationError(f"{name}: {values}: expected [smallest, largest] within {lowest} to {highest}")
    return values[0], values[1]


def _shares(name: str, values: list[float], count: int) -> list[float]:
    total = sum(values)
    if len(values) != count or min(values) < 0 or not math.isclose(total, 1, abs_tol=1e-3):
        raise ConfigurationError(f"{name}: {values}: expected {count} probabilities that add up to 1")
    return [value / total for value in values]
