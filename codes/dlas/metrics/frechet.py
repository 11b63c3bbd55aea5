"""Fréchet distances between the features of two sets of pictures."""

from __future__ import annotations

from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from dlas.layers.classifiers import find_weights, load_classifier
from dlas.layers.classifiers.files import load_exactly
from dlas.layers.classifiers.inception import FIDInception
from dlas.metrics.base import PreparedMetric
from dlas.registry import METRICS
from dlas.types import NonNegativeInt


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)): squared Fréchet distance of two normal distributions.

    Args:
        mean_1: (D,), float64.
        covariance_1: (D, D), float64; may be singular.
        mean_2: (D,).
        covariance_2: (D, D).

    Returns:
        float64, no dimensions.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982.
    """
    # The trace of the root of C1 C2 is the sum of the singular values of L1^T L2, where C = L L^T.
    shared = torch.linalg.svdvals(_factor(covariance_1).mT @ _factor(covariance_2)).sum()
    return (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * shared


def _factor(covariance: Tensor) -> Tensor:
    """L with L L^T = C, without columns for what is rounding: fewer samples than features leave a singular covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


class Moments:
    """Mean and covariance of vectors that arrive in pieces, in float64.

    Args:
        size: D.
        device: where the sums live.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        double = {"dtype": torch.float64, "device": device}
        self.count = 0
        self.sum = torch.zeros(size, **double)  # type: ignore[call-overload]
        self.products = torch.zeros(size, size, **double)  # type: ignore[call-overload]

    def update(self, features: Tensor) -> None:
        """Adds vectors, (N, D)."""
        features = features.double()
        self.count += len(features)
        self.sum += features.sum(0)
        self.products.addmm_(features.mT, features)

    def merge(self, other: Moments) -> None:
        """Adds what `other` has seen."""
        self.count += other.count
        self.sum += other.sum.to(self.sum.device)
        self.products += other.products.to(self.sum.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean, and covariance with N - 1 below."""
        mean = self.sum / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


class FrechetMetric(PreparedMetric):
    """Compares the features of all predictions with those of all true pictures; single pictures have no value."""

    higher_is_better = False
    SIZE: int

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def prepare(self, device: torch.device) -> None:
        self.predicted, self.true = Moments(self.SIZE, device), Moments(self.SIZE, device)

    def features(self, image: Tensor) -> Tensor:
        """(N, 3, H, W), RGB in [0, 1] -> (N, D)."""
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor, /) -> None:
        """Adds pictures."""
        with torch.no_grad():
            self.predicted.update(self.features(self._cut(prediction)))
            self.true.update(self.features(self._cut(target)))

    def merge(self, other: Self, /) -> None:
        """Adds what `other` has seen."""
        self.predicted.merge(other.predicted)
        self.true.merge(other.true)

    def compute(self) -> Tensor:
        """The distance, float64; NaN for fewer than two pictures or patches, and for ones that are not finite."""
        moments = (*self.predicted.compute(), *self.true.compute()) if self.predicted.count > 1 else ()
        if not moments or not all(bool(each.isfinite().all()) for each in moments):
            return torch.tensor(torch.nan, dtype=torch.float64)
        return frechet_distance(*moments)

    def _cut(self, image: Tensor) -> Tensor:
        image = image.float()
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        size = self.patch_size
        if not size:
            return image
        if min(image.shape[-2:]) < size:
            raise ValueError(f"patch_size {size} is larger than a picture of {image.shape[-2]}x{image.shape[-1]} pixels")
        patches = image.unfold(2, size, size).unfold(3, size, size)  # (N, 3, rows, columns, size, size)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


@lru_cache(maxsize=1)
def _inception(path: str | None, device: torch.device) -> FIDInception:
    network = FIDInception()
    load_exactly(network, find_weights("inception", path, "the metric 'fid'"), "Inception-v3 of the published FID")
    return network.requires_grad_(False).eval().to(device)


_classifier = lru_cache(maxsize=1)(load_classifier)


@METRICS.register("fid")
class FID(FrechetMetric):
    """Fréchet inception distance of the set of predictions from the set of true pictures; lower is better.

    Pictures are 8-bit RGB, brought to 299x299 bilinearly, as in pytorch-fid. The network's weights are looked for
    (docs/losses.md). With fewer pictures than the 2048 features the number is biased upwards: compare only numbers from equally
    many, and see `patch_size`.

    Args:
        load_path: file of the weights that the published distance uses (`pt_inception-2015-12-05-6726825d.pth`). Not given:
            looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6.
    """

    higher_is_better = False
    SIZE = 2048

    def __init__(self, *, load_path: str | None = None, patch_size: NonNegativeInt = 0) -> None:
        super().__init__(patch_size)
        self.load_path = load_path

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.network = _inception(self.load_path, device)

    def features(self, image: Tensor) -> Tensor:
        found: Tensor = self.network(image)
        return found


@METRICS.register("fd_mobilenetv2")
class MobileNetFrechetDistance(FrechetMetric):
    """Fréchet distance in features of MobileNetV2 (1280, averaged over places); lower is better. It is not FID.

    Pictures are taken at their size. It can be had where FID cannot: a package ships the weights (docs/losses.md). As with FID
    numbers depend on how many pictures there are.

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
    """

    higher_is_better = False
    SIZE = 1280

    def __init__(self, *, load_path: str | None = None, patch_size: NonNegativeInt = 0, random_weights: bool = False) -> None:
        super().__init__(patch_size)
        self.load_path = load_path
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        asked_by = "the metric 'fd_mobilenetv2'"
        layers = ("features.18",)
        self.network = _classifier("mobilenet_v2", layers, self.load_path, asked_by, device, self.random_weights)

    def features(self, image: Tensor) -> Tensor:
        (last,) = self.network(self.network.normalize(image)).values()
        return last.mean((2, 3))
