"""NIQE, which needs no true picture."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.errors import CheckpointError
from dlas.layers.classifiers import find_weights
from dlas.layers.color import rgb_to_y
from dlas.layers.resize import imresize
from dlas.metrics.base import Against, SampleMetric
from dlas.metrics.images import cropped
from dlas.registry import METRICS
from dlas.types import NonNegativeInt

_BLOCK = 96
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_NAMES = (("mu_pris_param", "cov_pris_param"), ("mu_prisparam", "cov_prisparam"))


@METRICS.register("niqe")
class NIQE(SampleMetric):
    """Natural image quality evaluator: distance of a picture's statistics from those of pristine ones; lower is better.

    It looks at the luma, rounded to 8 bits, in blocks of 96 pixels, and needs no true picture. The parameters of pristine
    pictures are the authors'; they are looked for (docs/losses.md).

    In flat regions, such as clipped skies, its fits hang on rounding: there programs differ by some tenths of a percent.

    Args:
        load_path: file of the parameters: BasicSR's `niqe_pris_params.npz`, or the authors' `modelparameters.mat`. Not given:
            looked for.
        crop_border: pixels left out at each side.

    Source: Mittal et al., "Making a 'Completely Blind' Image Quality Analyzer", 2013, eq. 1 to 10.
    """

    against: Against = "nothing"
    higher_is_better = False

    def __init__(self, *, load_path: str | None = None, crop_border: NonNegativeInt = 0) -> None:
        super().__init__()
        self.load_path = load_path
        self.crop_border = crop_border

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.mean, self.covariance = _parameters(find_weights("niqe", self.load_path, "the metric 'niqe'"))

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        images = cropped(prediction.double().cpu(), self.crop_border, "niqe")
        luma = rgb_to_y(images)[:, 0] * 255 if images.shape[1] == 3 else images[:, 0] * 255
        return torch.stack([niqe(each.round(), self.mean, self.covariance) for each in luma])


def niqe(luma: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """NIQE of one picture.

    Args:
        luma: (H, W), float64, 0 to 255.
        mean: of the features of pristine pictures, (36,), float64.
        covariance: of them, (36, 36).

    Returns:
        float64, no dimensions; NaN for a picture that is not finite, or in which fewer than two blocks have a value.

    Raises:
        ValueError: there are fewer than two blocks.

    Source: as of `NIQE`.
    """
    rows, columns = luma.shape[0] // _BLOCK, luma.shape[1] // _BLOCK
    if rows * columns < 2:
        raise ValueError(
            f"niqe needs at least two blocks of {_BLOCK}x{_BLOCK} pixels; the picture has {luma.shape[0]}x{luma.shape[1]}"
        )
    image = luma[: rows * _BLOCK, : columns * _BLOCK]
    features = torch.cat([_features(image, _BLOCK), _features(imresize(image[None] / 255, 0.5)[0] * 255, _BLOCK // 2)], 1)
    own_mean = features.nanmean(0)
    usable = features[~features.isnan().any(1)]
    if len(usable) < 2 or not image.isfinite().all():
        return torch.full((), torch.nan, dtype=torch.float64)
    own_covariance = usable.mT.cov()
    distance = mean - own_mean
    return (distance @ torch.linalg.pinv((covariance + own_covariance) / 2) @ distance).sqrt()


def _features(image: Tensor, block: int) -> Tensor:
    """(H, W) -> (blocks, 18), eq. 1 to 8."""
    places = torch.arange(-3, 4, dtype=torch.float64)
    weights = torch.exp(-0.5 * (places / (7 / 6)) ** 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2

    def blurred(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], [3, 3, 3, 3], mode="replicate")
        return F.conv2d(padded, kernel[None, None])[0, 0]

    mean = blurred(image)
    deviation = (blurred(image.square()) - mean.square()).abs().sqrt()
    normalized = (image - mean) / (deviation + 1)
    blocks = normalized.unfold(0, block, block).unfold(1, block, block).flatten(0, 1)
    alpha, left, right = _asymmetric_gaussian(blocks)
    found = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        alpha, left, right = _asymmetric_gaussian(blocks * blocks.roll(shift, (1, 2)))
        found += [alpha, (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp(), left, right]
    return torch.stack(found, 1)


def _asymmetric_gaussian(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape and both scales of asymmetric generalised Gaussians fitted to (n, H, W) by moments, (n,) each."""
    values = blocks.flatten(1)
    left, right = (_root_mean_square(values, side) for side in (values < 0, values > 0))
    ratio = left / right
    spread = values.abs().mean(1).square() / values.square().mean(1)
    wanted = spread * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    shapes, spreads = _shapes()
    # 0 for a block without values on one side, whose features are NaN and are left out of the covariance.
    alpha = shapes[torch.searchsorted(spreads, wanted.nan_to_num(0.0), right=False).clamp(1, len(shapes) - 1)]
    below = shapes[torch.searchsorted(spreads, wanted.nan_to_num(0.0)).clamp(1, len(shapes) - 1) - 1]
    nearer = (_spread(below) - wanted).square() <= (_spread(alpha) - wanted).square()
    alpha = torch.where(nearer, below, alpha)
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


def _root_mean_square(values: Tensor, chosen: Tensor) -> Tensor:
    return ((values.square() * chosen).sum(1) / chosen.sum(1)).sqrt()


def _spread(shape: Tensor) -> Tensor:
    """Squared mean of the absolute value over the mean of the square, which grows with the shape."""
    return (2 * torch.lgamma(2 / shape) - torch.lgamma(1 / shape) - torch.lgamma(3 / shape)).exp()


@lru_cache(maxsize=1)
def _shapes() -> tuple[Tensor, Tensor]:
    shapes = torch.from_numpy(np.arange(0.2, 10.001, 0.001))
    return shapes, _spread(shapes)


@lru_cache(maxsize=1)
def _parameters(path: Path) -> tuple[Tensor, Tensor]:
    try:
        if path.suffix == ".mat":
            from scipy.io import loadmat  # installed with scikit-image; slow to import

            content = loadmat(path)
        else:
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
    except Exception as error:  # whatever is wrong with a file shows as another kind of error
        raise CheckpointError(f"{path}: cannot be read as parameters of NIQE: {error}") from error
    for mean, covariance in _NAMES:
        if mean in content and covariance in content and content[mean].size == math.isqrt(content[covariance].size) == 36:
            return torch.from_numpy(content[mean]).double().flatten(), torch.from_numpy(content[covariance]).double()
    raise CheckpointError(f"{path}: expected mu_pris_param of 36 numbers and cov_pris_param of 36x36")
