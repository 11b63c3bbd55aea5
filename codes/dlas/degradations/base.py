"""What a degradation is, and the operations that recipes are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Interpolation: TypeAlias = Literal["nearest", "area", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Sharpen:
    """Unsharp mask that leaves flat regions alone.

    Args:
        weight: share of the detail that is added.
        threshold: least difference from the blurred image, of 255, for a pixel to count as detail.
        size: width of the Gaussian in pixels, odd; its sigma is 0.3 ((size - 1) / 2 - 1) + 0.8.
    """

    weight: float = 0.5
    threshold: float = 10.0
    size: int = 51

    def __str__(self) -> str:
        return f"sharpen {self.weight:.2g}"


@dataclass(frozen=True)
class Blur:
    """Correlation with a kernel, the border mirrored without repeating the edge.

    Args:
        kernel: (k, k), k odd, sums to 1.
        name: its family and width, for people.
    """

    kernel: NDArray[np.float64] = field(repr=False)
    name: str

    def __str__(self) -> str:
        return f"blur {self.name}"


@dataclass(frozen=True)
class Resize:
    """To (height, width) pixels, pixel centres at half-integers, not antialiased except by `area`.

    Args:
        height: rows of the result.
        width: its columns.
        mode: interpolation.
        factor: distance of the samples is 1 / factor, whatever the sizes; the image then ends short of its edge. By default the
            grids of both sizes cover the same area.
    """

    height: int
    width: int
    mode: Interpolation
    factor: float | None = None

    def __str__(self) -> str:
        return f"{self.mode} {self.width}x{self.height}"


@dataclass(frozen=True)
class GaussianNoise:
    """Adds normal noise of standard deviation `sigma` (of 255), the same in all channels if `gray`, and clips to [0, 1]."""

    sigma: float
    gray: bool

    def __str__(self) -> str:
        return f"{'gray ' if self.gray else ''}gaussian {self.sigma:.1f}"


@dataclass(frozen=True)
class PoissonNoise:
    """Adds `scale` times the shot noise of the image at as many levels as it has (a power of two), and clips to [0, 1]."""

    scale: float
    gray: bool

    def __str__(self) -> str:
        return f"{'gray ' if self.gray else ''}poisson {self.scale:.2f}"


@dataclass(frozen=True)
class Jpeg:
    """Compression and decompression, chroma at half resolution; `quality` from 1 to 100."""

    quality: float

    def __str__(self) -> str:
        return f"jpeg {self.quality:.0f}"


Operation: TypeAlias = Sharpen | Blur | Resize | GaussianNoise | PoissonNoise | Jpeg
Recipe: TypeAlias = list[Operation]


class Degradation:
    """Draws recipes. Registered under DEGRADATIONS; its options are its constructor's signature."""

    def draw(self, rng: np.random.Generator, height: int, width: int, scale: int) -> Recipe:
        """A recipe for one image.

        Args:
            rng: where all parameters come from.
            height: rows of the high-quality image, a multiple of `scale`.
            width: its columns, likewise.
            scale: how many times smaller the result is.

        Returns:
            Operations that end with an image of (height / scale, width / scale).
        """
        raise NotImplementedError
