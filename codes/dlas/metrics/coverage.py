"""Precision and recall of sets of pictures: how many look true, and how much of the truth they cover."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.metrics.accumulators import Rows
from dlas.metrics.features import ClassifierFeatures, InceptionFeatures
from dlas.metrics.sets import SetMetric
from dlas.registry import METRICS
from dlas.types import NonNegativeInt, PositiveInt

_BLOCK = 4096
_ROUNDING = 1e-12  # of squared distances, relative to the squares that they are differences of


def share_within(points: Tensor, manifold: Tensor, neighbours: int = 3) -> Tensor:
    """The share of points that lie in a ball around one of the manifold's, as large as to its k-th nearest neighbour.

    Args:
        points: (N, D).
        manifold: (M, D), M above `neighbours`.
        neighbours: k.

    Returns:
        float64, no dimensions, 0 to 1.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019, equation 1.
    """
    points, manifold = points.double(), manifold.double()
    # The nearest of each to itself is itself, at 0.
    radii = torch.cat([_squared(part, manifold).kthvalue(neighbours + 1, dim=1).values for part in manifold.split(_BLOCK)])
    inside = torch.zeros((), dtype=torch.float64, device=points.device)
    for part in points.split(_BLOCK):
        found = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for others, radius in zip(manifold.split(_BLOCK), radii.split(_BLOCK), strict=True):
            rounding = _ROUNDING * (part.square().sum(1)[:, None] + others.square().sum(1))
            found |= (_squared(part, others) <= radius + rounding).any(1)
        inside += found.sum()
    return inside / len(points)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances (N, M)."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.mT).clamp_min(0)


class CoverageMetric(SetMetric):
    """A share of one set within the balls of the other. Subclasses set `neighbours` and `of_predictions`."""

    higher_is_better = True
    keeps_rows = True
    predicted: Rows
    true: Rows
    neighbours: int
    of_predictions: bool

    def compute(self) -> Tensor:
        """The share, float64; NaN where a set has no more vectors than there are neighbours."""
        if min(self.predicted.count, self.true.count) <= self.neighbours:
            return torch.tensor(torch.nan, dtype=torch.float64)
        predicted, true = self.predicted.compute(), self.true.compute()
        if not bool(predicted.isfinite().all() & true.isfinite().all()):
            return torch.tensor(torch.nan, dtype=torch.float64)
        first, second = (predicted, true) if self.of_predictions else (true, predicted)
        return share_within(first, second, self.neighbours)


@METRICS.register("precision")
class Precision(CoverageMetric):
    """Share of the predictions that look true: they lie in a ball around a true picture. Features are those of `fid`.

    The authors' figures are of VGG16's features; those of Inception, as here, are what is usual since. They depend on how many
    pictures there are: compare only numbers from equally many.

    Args:
        load_path: file of the weights of the published FID (`pt_inception-2015-12-05-6726825d.pth`). Not given: looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        neighbours: a ball reaches to the neighbour of this number.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019.
    """

    higher_is_better = True
    of_predictions = True

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        neighbours: PositiveInt = 3,
        reference: str | None = None,
    ) -> None:
        super().__init__(InceptionFeatures("precision", load_path, patch_size), reference)
        self.neighbours = neighbours


@METRICS.register("recall")
class Recall(CoverageMetric):
    """Share of the true pictures that could have been made: they lie in a ball around a prediction. See `precision`.

    Args:
        load_path: file of the weights of the published FID (`pt_inception-2015-12-05-6726825d.pth`). Not given: looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        neighbours: a ball reaches to the neighbour of this number.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019.
    """

    higher_is_better = True
    of_predictions = False

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        neighbours: PositiveInt = 3,
        reference: str | None = None,
    ) -> None:
        super().__init__(InceptionFeatures("recall", load_path, patch_size), reference)
        self.neighbours = neighbours


@METRICS.register("precision_mobilenetv2")
class MobileNetPrecision(CoverageMetric):
    """`precision` in features of MobileNetV2 (1280, averaged over places).

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for (docs/losses.md).
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        neighbours: a ball reaches to the neighbour of this number.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = True
    of_predictions = True

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        neighbours: PositiveInt = 3,
        random_weights: bool = False,
        reference: str | None = None,
    ) -> None:
        name, network = "precision_mobilenetv2", "mobilenet_v2"
        super().__init__(ClassifierFeatures(name, network, "features.18", load_path, patch_size, random_weights), reference)
        self.neighbours = neighbours


@METRICS.register("recall_mobilenetv2")
class MobileNetRecall(CoverageMetric):
    """`recall` in features of MobileNetV2 (1280, averaged over places).

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for (docs/losses.md).
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        neighbours: a ball reaches to the neighbour of this number.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = True
    of_predictions = False

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        neighbours: PositiveInt = 3,
        random_weights: bool = False,
        reference: str | None = None,
    ) -> None:
        name, network = "recall_mobilenetv2", "mobilenet_v2"
        super().__init__(ClassifierFeatures(name, network, "features.18", load_path, patch_size, random_weights), reference)
        self.neighbours = neighbours
