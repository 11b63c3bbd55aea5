"""The shuffled degradation of BSRGAN."""

from __future__ import annotations

import math

import numpy as np

from dlas.degradations import kernels
from dlas.degradations.base import Blur, Degradation, GaussianNoise, Interpolation, Jpeg, Operation, Recipe, Resize
from dlas.errors import ConfigurationError
from dlas.registry import DEGRADATIONS
from dlas.types import Fraction

_MODES: tuple[Interpolation, ...] = ("bilinear", "bicubic", "area")


@DEGRADATIONS.register("bsrgan")
class BSRGAN(Degradation):
    """Two blurs, two steps of shrinking, Gaussian noise and JPEG in a random order, then JPEG once more.

    Of the published operations the camera pipeline is left out, which needs a network of its own; its place in the order is
    not drawn.

    Source: K. Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution", 2021, section 4.

    Args:
        iso_blur_range: range of the standard deviation of isotropic blurs, in pixels, for scale 4 (it grows with scale).
        aniso_blur_range: range of the two axes of anisotropic blurs.
        noise_range: range of the standard deviation of Gaussian noise, of 255.
        gray_noise_prob: probability of the same noise in all channels.
        jpeg_prob: probability of the JPEG compression among the shuffled operations.
        jpeg_range: range of its quality, and of the last one's.

    Raises:
        ConfigurationError: a range is not [smallest, largest].
    """

    def __init__(
        self,
        *,
        iso_blur_range: list[float] = [0.1, 2.8],
        aniso_blur_range: list[float] = [0.5, 8.0],
        noise_range: list[float] = [2, 25],
        gray_noise_prob: Fraction = 0.4,
        jpeg_prob: Fraction = 0.9,
        jpeg_range: list[float] = [30, 95],
    ) -> None:
        for name, values in (
            ("iso_blur_range", iso_blur_range),
            ("aniso_blur_range", aniso_blur_range),
            ("noise_range", noise_range),
            ("jpeg_range", jpeg_range),
        ):
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise ConfigurationError(f"{name}: {values}: expected [smallest, largest], both above 0")
        self.iso_blur_range = iso_blur_range
        self.aniso_blur_range = aniso_blur_range
        self.noise_range = noise_range
        self.gray_noise_prob = gray_noise_prob
        self.jpeg_prob = jpeg_prob
        self.jpeg_range = jpeg_range

    def draw(self, rng: np.random.Generator, height: int, width: int, scale: int) -> Recipe:
        final = (height // scale, width // scale)
        factor = float(rng.uniform(1, 2 * scale))
        between = (max(round(height / factor), 1), max(round(width / factor), 1))
        noise = GaussianNoise(_uniform(rng, self.noise_range), bool(rng.random() < self.gray_noise_prob))
        shrinking: list[Operation] = [Resize(*between, self._mode(rng)), Resize(*final, self._mode(rng))]
        others: list[Operation] = [self._blur(rng, scale), self._blur(rng, scale), noise]
        if rng.random() < self.jpeg_prob:
            others.append(self._compression(rng))
        # Shrinking to the final size comes after the free one, wherever the two fall.
        places = sorted(rng.choice(len(others) + 2, size=2, replace=False).tolist())
        order = [others[i] for i in rng.permutation(len(others))]
        for place, operation in zip(places, shrinking, strict=True):
            order.insert(place, operation)
        return [*order, self._compression(rng)]

    def _blur(self, rng: np.random.Generator, scale: int) -> Blur:
        size = 7 + 2 * int(rng.integers(8))
        wide = scale / 4
        if rng.random() < 0.5:
            sigma = _uniform(rng, self.iso_blur_range) * wide
            return Blur(kernels.bivariate_gaussian(size, sigma, sigma, 0), f"iso {size}px {sigma:.2f}")
        theta = float(rng.uniform(0, math.pi))
        # Variances, not deviations, are uniform along the axes of the ellipse.
        first, second = (math.sqrt(_uniform(rng, self.aniso_blur_range) * wide) for _ in range(2))
        name = f"aniso {size}px {first:.2f}x{second:.2f}@{math.degrees(theta):.0f}"
        return Blur(kernels.bivariate_gaussian(size, first, second, theta), name)

    def _compression(self, rng: np.random.Generator) -> Jpeg:
        return Jpeg(_uniform(rng, self.jpeg_range))

    @staticmethod
    def _mode(rng: np.random.Generator) -> Interpolation:
        return _MODES[int(rng.integers(len(_MODES)))]


def _uniform(rng: np.random.Generator, bounds: list[float]) -> float:
    low, high = bounds
    return float(rng.uniform(low, high))
