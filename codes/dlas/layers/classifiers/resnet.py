"""ResNet-50, ResNet-101 and Wide ResNet-50-2 without their last layer; entries have torchvision's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from torch import Tensor, nn

from dlas.layers.classifiers.base import Classifier

_STEM = ("conv1", "bn1", "relu", "maxpool")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each normalised (`norm` of its channels), beside a shortcut; the stride is at the 3x3 one."""

    def __init__(
        self, channels: int, width: int, out: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = norm(out)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        activated: Tensor = self.relu(self.bn3(self.conv3(x)) + shortcut)
        return activated


class ResNet(Classifier):
    """Layers `conv1`, `bn1`, `relu`, `maxpool`, and `layer1` to `layer4`, whose outputs are behind their last activation.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stride at the 3x3
    convolution.
    """

    BLOCKS: ClassVar[tuple[int, ...]]
    WIDTH: ClassVar[int] = 64

    def __init__(self, layers: list[str]) -> None:
        super().__init__(layers)
        stem = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        for name, module in list(zip(_STEM, stem, strict=True))[: self.depth]:
            self.add_module(name, module)
        channels = 64
        for number, count in enumerate(self.BLOCKS[: max(0, self.depth - len(_STEM))], start=1):
            out, width, stride = 128 * 2**number, self.WIDTH * 2 ** (number - 1), 1 if number == 1 else 2
            blocks = [Bottleneck(channels if place == 0 else out, width, out, stride if place == 0 else 1)
                      for place in range(count)]  # fmt: skip
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            channels = out

    @classmethod
    def names(cls) -> list[str]:
        return [*_STEM, "layer1", "layer2", "layer3", "layer4"]

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        return [(name, self.get_submodule(name)) for name in self.names()[: self.depth]]


class ResNet50(ResNet):
    """See `ResNet`."""

    title = "ResNet-50"
    BLOCKS = (3, 4, 6, 3)


class ResNet101(ResNet):
    """See `ResNet`."""

    title = "ResNet-101"
    BLOCKS = (3, 4, 23, 3)


class WideResNet50(ResNet):
    """ResNet-50 whose 3x3 convolutions are twice as wide.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.
    """

    title = "Wide ResNet-50-2"
    BLOCKS = (3, 4, 6, 3)
    WIDTH = 128
