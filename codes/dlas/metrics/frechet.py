"""Fréchet distances between the features of two sets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dlas.metrics.accumulators import Moments
from dlas.metrics.features import ClassifierFeatures, InceptionFeatures, PixelFeatures
from dlas.metrics.sets import SetMetric
from dlas.registry import METRICS
from dlas.types import NonNegativeInt, PositiveInt


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


def principal_directions(covariance: Tensor, count: int) -> Tensor:
    """(D, K): the directions of the largest variances, at most `count`, and none whose variance is rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = int((values > values.amax() * len(values) * torch.finfo(values.dtype).eps).sum())
    return vectors.flip(1)[:, : min(count, kept)]


class FrechetMetric(SetMetric):
    """The distance of normal distributions with the moments of the two sets' features."""

    higher_is_better = False
    predicted: Moments
    true: Moments

    def update(self, prediction: Tensor, target: Tensor, positions: Sequence[int] = (), /) -> None:
        """See `SetMetric.update`."""
        super().update(prediction, target, positions)
        found, wanted = len(self.predicted.sum), len(self.true.sum)
        if wanted and found != wanted:
            raise ValueError(
                f"predictions have {found} features and the pictures that they are compared with {wanted}: they must have the "
                "same size and as many channels"
            )

    def compute(self) -> Tensor:
        """The distance, float64; NaN for fewer than two pictures or patches, and for ones that are not finite."""
        moments = (*self.predicted.compute(), *self.true.compute()) if min(self.predicted.count, self.true.count) > 1 else ()
        if not moments or not all(bool(each.isfinite().all()) for each in moments):
            return torch.tensor(torch.nan, dtype=torch.float64)
        return self.distance(*moments)

    def distance(self, mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
        """Of the predictions' moments from the true pictures'."""
        return frechet_distance(mean_1, covariance_1, mean_2, covariance_2)


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
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6.
    """

    higher_is_better = False

    def __init__(self, *, load_path: str | None = None, patch_size: NonNegativeInt = 0, reference: str | None = None) -> None:
        super().__init__(InceptionFeatures("fid", load_path, patch_size), reference)


@METRICS.register("fd_mobilenetv2")
class MobileNetFrechetDistance(FrechetMetric):
    """Fréchet distance in features of MobileNetV2 (1280, averaged over places); lower is better. It is not FID.

    Pictures are taken at their size. It can be had where FID cannot: a package ships the weights (docs/losses.md). As with FID
    numbers depend on how many pictures there are.

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        random_weights: bool = False,
        reference: str | None = None,
    ) -> None:
        features = ClassifierFeatures("fd_mobilenetv2", "mobilenet_v2", "features.18", load_path, patch_size, random_weights)
        super().__init__(features, reference)


@METRICS.register("fd_features")
class FeatureFrechetDistance(FrechetMetric):
    """Fréchet distance in features of a classifier's layer, averaged over places; lower is better. It is not FID.

    State the network and the layer with the number. Pictures are taken at their size.

    Args:
        which_model_F: the classifier.
        layer: whose output is taken; the last one if not given. A wrong name is answered with the list of them.
        load_path: file of its weights with torchvision's names. Not given: looked for (docs/losses.md).
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        which_model_F: Literal["vgg16", "vgg19", "alexnet", "resnet50", "resnet101", "wide_resnet", "mobilenet_v2"],  # noqa: N803
        layer: str | None = None,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        random_weights: bool = False,
        reference: str | None = None,
    ) -> None:
        features = ClassifierFeatures("fd_features", which_model_F, layer, load_path, patch_size, random_weights)
        super().__init__(features, reference)


@METRICS.register("fd_pca")
class PixelFrechetDistance(FrechetMetric):
    """Fréchet distance of pixels in the principal components of the true pictures; lower is better. It is not FID.

    For small pictures, such as MNIST's; it needs no network. State the dimensions with the number. The components are fitted to
    all true pictures (or the reference set), and both sets are projected onto them: what lies outside is not seen.

    Args:
        dimensions: how many components; fewer where the true pictures span fewer.
        size: pictures are brought to this height and width first, by means over areas; 0 leaves them as they are.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = False

    def __init__(self, *, dimensions: PositiveInt = 64, size: NonNegativeInt = 0, reference: str | None = None) -> None:
        super().__init__(PixelFeatures(size), reference)
        self.dimensions = dimensions

    def distance(self, mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
        """Of the predictions' moments from the true pictures', projected."""
        axes = principal_directions(covariance_2, self.dimensions)
        moments = (mean_1 @ axes, axes.mT @ covariance_1 @ axes, mean_2 @ axes, axes.mT @ covariance_2 @ axes)
        return frechet_distance(*moments)
