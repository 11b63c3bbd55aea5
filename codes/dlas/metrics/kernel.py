"""Kernel distances between the features of two sets of pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.metrics.accumulators import Rows
from dlas.metrics.features import ClassifierFeatures, InceptionFeatures
from dlas.metrics.sets import SetMetric
from dlas.registry import METRICS
from dlas.types import NonNegativeInt, PositiveInt


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy, with the kernel (x . y / D + 1)^3; may be negative.

    Args:
        first: (N, D), N at least 2.
        second: (M, D), M at least 2.

    Returns:
        float64, no dimensions.

    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 3; the kernel: Bińkowski et al. 2018, section 3.
    """
    first, second = first.double(), second.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return within(first) + within(second) - 2 * kernel(first, second).mean()


def mean_over_subsets(first: Tensor, second: Tensor, subsets: int, size: int) -> Tensor:
    """The mean of `kernel_distance` over random subsets, the same ones every time.

    Args:
        first: (N, D).
        second: (M, D).
        subsets: how many; 0 takes the two sets whole.
        size: of a subset, of either set; where a set is not larger, it is taken whole.
    """
    if subsets == 0 or max(len(first), len(second)) <= size:
        return kernel_distance(first, second)
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]

    return torch.stack([kernel_distance(drawn(first), drawn(second)) for _ in range(subsets)]).mean()


class KernelMetric(SetMetric):
    """Means over subsets of the kernel distance. Subclasses set `subsets` and `subset_size`."""

    higher_is_better = False
    keeps_rows = True
    predicted: Rows
    true: Rows
    subsets: int
    subset_size: int

    def compute(self) -> Tensor:
        """The distance, float64; NaN for fewer than two pictures or patches."""
        if min(self.predicted.count, self.true.count) < 2:
            return torch.tensor(torch.nan, dtype=torch.float64)
        return mean_over_subsets(self.predicted.compute(), self.true.compute(), self.subsets, self.subset_size)


@METRICS.register("kid")
class KID(KernelMetric):
    """Kernel inception distance of the set of predictions from the set of true pictures; lower is better, about 0 for the same.

    Its expectation does not depend on how many pictures there are, unlike that of FID. Features and weights are those of `fid`.
    It is given as it is; papers often state it times 1000.

    Args:
        load_path: file of the weights of the published FID (`pt_inception-2015-12-05-6726825d.pth`). Not given: looked for.
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        subsets: the mean over as many random subsets; 0 compares all pictures with all others at once.
        subset_size: vectors of a subset; sets that are not larger are taken whole.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.

    Source: Bińkowski et al., "Demystifying MMD GANs", ICLR 2018 (arXiv:1801.01401).
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        subsets: NonNegativeInt = 100,
        subset_size: PositiveInt = 1000,
        reference: str | None = None,
    ) -> None:
        super().__init__(InceptionFeatures("kid", load_path, patch_size), reference)
        self.subsets, self.subset_size = subsets, subset_size


@METRICS.register("kd_mobilenetv2")
class MobileNetKernelDistance(KernelMetric):
    """The kernel distance of `kid` in features of MobileNetV2 (1280, averaged over places); lower is better. It is not KID.

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for (docs/losses.md).
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
        subsets: the mean over as many random subsets; 0 compares all pictures with all others at once.
        subset_size: vectors of a subset; sets that are not larger are taken whole.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
        reference: compare with this set in place of the true pictures: a folder of pictures, or a file of `dlas statistics`.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        load_path: str | None = None,
        patch_size: NonNegativeInt = 0,
        subsets: NonNegativeInt = 100,
        subset_size: PositiveInt = 1000,
        random_weights: bool = False,
        reference: str | None = None,
    ) -> None:
        features = ClassifierFeatures("kd_mobilenetv2", "mobilenet_v2", "features.18", load_path, patch_size, random_weights)
        super().__init__(features, reference)
        self.subsets, self.subset_size = subsets, subset_size
