"""Classifiers by the names that options take."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from dlas.layers.classifiers.alexnet import AlexNet
from dlas.layers.classifiers.base import Classifier
from dlas.layers.classifiers.files import find_weights, load_exactly
from dlas.layers.classifiers.mobilenet import MobileNetV2
from dlas.layers.classifiers.resnet import ResNet50, ResNet101, WideResNet50
from dlas.layers.classifiers.vgg import VGG16, VGG19

_LOGGER = logging.getLogger("dlas")

CLASSIFIERS: dict[str, type[Classifier]] = {
    "vgg16": VGG16,
    "vgg19": VGG19,
    "alexnet": AlexNet,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "wide_resnet": WideResNet50,
    "mobilenet_v2": MobileNetV2,
}
"""The names are those of `PUBLISHED`."""

DEFAULT_LAYERS: dict[str, dict[str, float]] = {
    "vgg16": {"relu3_3": 1.0},
    "vgg19": {"conv5_4": 1.0},
    "alexnet": {"relu5": 1.0},
    "resnet50": {"layer3": 1.0},
    "resnet101": {"layer3": 1.0},
    "wide_resnet": {"layer3": 1.0},
    "mobilenet_v2": {"features.3": 1.0, "features.6": 1.0, "features.13": 1.0},
}
"""Layers and their weights where nothing is said. VGG19: Wang et al., ESRGAN, 2018; VGG16: Johnson et al., 2016."""


def build_classifier(name: str, layers: Sequence[str]) -> Classifier:
    """An extractor with random weights, frozen and in evaluation mode.

    Raises:
        ValueError: it has no such layers.
    """
    return CLASSIFIERS[name](list(layers)).requires_grad_(False).eval()


def load_classifier(
    name: str, layers: Sequence[str], load_path: str | None, asked_by: str, device: torch.device, random_weights: bool = False
) -> Classifier:
    """An extractor with its published weights, frozen and in evaluation mode.

    Args:
        name: key of `CLASSIFIERS`.
        layers: layers that are wanted; nothing behind the last one is built.
        load_path: file of its weights; None looks for it, see `find_weights`.
        asked_by: what needs it, for messages.
        device: where it is to live.
        random_weights: leave the weights random, and say so in the log: for tests of programs, since it measures nothing.

    Raises:
        CheckpointError: the weights are missing or another network's.
    """
    network = build_classifier(name, layers)
    if random_weights:
        _LOGGER.warning(
            "%s: RANDOM WEIGHTS in place of %s ('random_weights: true'): it runs, and what it gives means nothing",
            asked_by,
            network.title,
        )
        _make_random(network)
    else:
        load_exactly(network, find_weights(name, load_path, asked_by), network.title)
    return network.to(device)


def _make_random(network: Classifier) -> None:
    """Weights that do not depend on what was drawn before and pass signals on through many layers."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 4:
            fan = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
        elif name.endswith("bias"):
            parameter.zero_()
