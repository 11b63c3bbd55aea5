"""The convolutions of VGG16 and VGG19; entries have torchvision's names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from dlas.layers.classifiers.base import Classifier

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(Classifier):
    """Layers `conv<block>_<i>` (before the activation), `relu<block>_<i>` and `pool<block>`, block 1 to 5.

    Entries are ``features.<place>.weight`` and ``.bias``.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1
    (columns D and E).
    """

    CONVOLUTIONS: ClassVar[tuple[int, ...]]

    def __init__(self, layers: list[str]) -> None:
        super().__init__(layers)
        made: list[nn.Module] = []
        channels = 3
        for name in self.names()[: self.depth]:
            width = _WIDTHS[int(name[4]) - 1]
            if name.startswith("conv"):
                made.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            else:
                made.append(nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2))
        self.features = nn.Sequential(*made)

    @classmethod
    def names(cls) -> list[str]:
        found = []
        for block, count in enumerate(cls.CONVOLUTIONS, start=1):
            for number in range(1, count + 1):
                found += [f"conv{block}_{number}", f"relu{block}_{number}"]
            found.append(f"pool{block}")
        return found

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        return zip(self.names(), self.features, strict=False)


class VGG16(VGG):
    """See `VGG`."""

    title = "VGG16"
    CONVOLUTIONS = (2, 2, 3, 3, 3)


class VGG19(VGG):
    """See `VGG`."""

    title = "VGG19"
    CONVOLUTIONS = (2, 2, 4, 4, 4)
