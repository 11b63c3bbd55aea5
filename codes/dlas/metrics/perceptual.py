"""Perceptual distances that need the weights of a classifier."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dlas.layers.classifiers import Classifier, load_classifier
from dlas.layers.lpips import DISTS, LPIPS, load_dists, load_lpips
from dlas.metrics.base import SampleMetric
from dlas.metrics.images import cropped
from dlas.registry import METRICS
from dlas.types import NonNegativeInt

_LAYERS = ("features.1", "features.3", "features.6", "features.13", "features.17")

# Validation makes its metrics anew each time; weights are read once.
_lpips = lru_cache(maxsize=2)(load_lpips)
_dists = lru_cache(maxsize=1)(load_dists)
_classifier = lru_cache(maxsize=1)(load_classifier)


@METRICS.register("lpips")
class LPIPSMetric(SampleMetric):
    """LPIPS, version 0.1: 0 for equal pictures, lower is better.

    Needs two files, which are looked for (docs/losses.md): the weights of the classifier and the linear heads.

    Args:
        net: `alex` (AlexNet), which papers report unless they say otherwise, or `vgg` (VGG16).
        load_path: file of the classifier's weights with torchvision's names. Not given: looked for.
        heads_path: file of the heads with the authors' names. Not given: looked for.
        crop_border: pixels left out at each side.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
    """

    higher_is_better = False
    network: LPIPS

    def __init__(
        self,
        *,
        net: Literal["alex", "vgg"] = "alex",
        load_path: str | None = None,
        heads_path: str | None = None,
        crop_border: NonNegativeInt = 0,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        self.options = (net, load_path, heads_path)
        self.crop_border = crop_border
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.network = _lpips(*self.options, "the metric 'lpips'", device, self.random_weights)

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        first, second = (cropped(each.float(), self.crop_border, "lpips") for each in (prediction, target))
        with torch.no_grad():
            values: Tensor = self.network(first, second)
        return values


@METRICS.register("dists")
class DISTSMetric(SampleMetric):
    """DISTS: 0 for equal pictures, lower is better.

    Needs two files, which are looked for (docs/losses.md): the weights of VGG16, and alpha and beta.

    Args:
        load_path: file of VGG16's weights with torchvision's names. Not given: looked for.
        weights_path: file of `alpha` and `beta`. Not given: looked for.
        crop_border: pixels left out at each side.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.

    Source: Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020.
    """

    higher_is_better = False
    network: DISTS

    def __init__(
        self,
        *,
        load_path: str | None = None,
        weights_path: str | None = None,
        crop_border: NonNegativeInt = 0,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        self.options = (load_path, weights_path)
        self.crop_border = crop_border
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        self.network = _dists(*self.options, "the metric 'dists'", device, self.random_weights)

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        first, second = (cropped(each.float(), self.crop_border, "dists") for each in (prediction, target))
        with torch.no_grad():
            values: Tensor = self.network(first, second)
        return values


@METRICS.register("pd_mobilenetv2")
class MobileNetDistance(SampleMetric):
    """Perceptual distance in features of MobileNetV2: 0 for equal pictures, lower is better. No published metric.

    At five depths each place's vector of features is brought to length 1; the squared distances are averaged over places and
    summed over depths, as in LPIPS without its fitted heads. It can be had where LPIPS cannot: a package ships the weights
    (docs/losses.md). Compare its numbers with each other, never with LPIPS.

    Args:
        load_path: file of MobileNetV2's weights with torchvision's names. Not given: looked for.
        crop_border: pixels left out at each side.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.
    """

    higher_is_better = False
    network: Classifier

    def __init__(self, *, load_path: str | None = None, crop_border: NonNegativeInt = 0, random_weights: bool = False) -> None:
        super().__init__()
        self.load_path = load_path
        self.crop_border = crop_border
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        super().prepare(device)
        asked_by = "the metric 'pd_mobilenetv2'"
        self.network = _classifier("mobilenet_v2", _LAYERS, self.load_path, asked_by, device, self.random_weights)

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            first, second = (self._features(each) for each in (prediction, target))
            return torch.stack([(first[k] - second[k]).square().sum(1).mean((1, 2)) for k in first]).sum(0)

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        image = cropped(image.float(), self.crop_border, "pd_mobilenetv2")
        found = self.network(self.network.normalize(image))
        return {name: torch.nn.functional.normalize(features, dim=1) for name, features in found.items()}
