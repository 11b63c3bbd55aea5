"""The convolutions of AlexNet; entries have torchvision's names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from dlas.layers.classifiers.base import Classifier

_NAMES = [
    "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5",
]  # fmt: skip


class AlexNet(Classifier):
    """Layers `conv1` to `conv5` (before the activation), `relu1` to `relu5`, `pool1`, `pool2`, `pool5`.

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, as in torchvision.
    """

    title = "AlexNet"

    def __init__(self, layers: list[str]) -> None:
        super().__init__(layers)
        made: list[nn.Module] = [
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
        self.features = nn.Sequential(*made[: self.depth])

    @classmethod
    def names(cls) -> list[str]:
        return _NAMES

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        return zip(_NAMES, self.features, strict=False)
