"""MobileNetV2 without its classifier; entries have torchvision's names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dlas.layers.classifiers.base import Classifier

# Expansion, output channels, number of blocks, stride of the first: table 2 of the paper.
_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6())


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 and a linear 1x1 convolution, with a shortcut where sizes allow it."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_convolution(channels, width, 1)]
        layers += [_convolution(width, width, 3, stride, width), nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        result: Tensor = self.conv(x)
        return x + result if self.shortcut else result


class MobileNetV2(Classifier):
    """Layers `features.0` to `features.18`: blocks 1 to 17 give linear bottlenecks, 0 and 18 are behind an activation.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
    """

    title = "MobileNetV2"

    def __init__(self, layers: list[str]) -> None:
        super().__init__(layers)
        made: list[nn.Module] = [_convolution(3, 32, 3, 2)]
        channels = 32
        for expansion, out, count, stride in _GROUPS:
            for place in range(count):
                made.append(InvertedResidual(channels, out, stride if place == 0 else 1, expansion))
                channels = out
        made.append(_convolution(channels, 1280, 1))
        self.features = nn.Sequential(*made[: self.depth])

    @classmethod
    def names(cls) -> list[str]:
        return [f"features.{place}" for place in range(19)]

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        return zip(self.names(), self.features, strict=False)
