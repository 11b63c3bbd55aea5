"""Inception-v3 as the published Fréchet inception distance uses it: TensorFlow's weights, and pooling as TensorFlow pads it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Convolution(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean_of_neighbours(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 64, 1)
        self.branch5x5_1 = _Convolution(channels, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(_mean_of_neighbours(x))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, pooled], 1)


class _B(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(768, 192, 1)
        self.branch7x7_1 = _Convolution(768, width, 1)
        self.branch7x7_2 = _Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = _Convolution(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = _Convolution(768, width, 1)
        self.branch7x7dbl_2 = _Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = _Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = _Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = _Convolution(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = _Convolution(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean_of_neighbours(x))], 1)


class _D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(768, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(768, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch7x7x3_2(self.branch7x7x3_1(x))
        double = self.branch7x7x3_4(self.branch7x7x3_3(double))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), double, F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    def __init__(self, channels: int, largest: bool) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 320, 1)
        self.branch3x3_1 = _Convolution(channels, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Convolution(channels, 192, 1)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        # The last block of the published network takes the largest of the neighbours where the paper has their mean.
        pooled = F.max_pool2d(x, 3, 1, padding=1) if self.largest else _mean_of_neighbours(x)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(single),
                self.branch3x3_2b(single),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class FIDInception(nn.Module):
    """Features of Inception-v3's last pooling layer. Entries have torchvision's names, as in the published file.

    Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; for the distance: Heusel et
    al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(128)
        self.Mixed_6c = _C(160)
        self.Mixed_6d = _C(160)
        self.Mixed_6e = _C(192)
        self.Mixed_7a = _D()
        self.Mixed_7b = _E(1280, largest=False)
        self.Mixed_7c = _E(2048, largest=True)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W), RGB in [0, 1] -> (N, 2048). Pictures are brought to 299x299 bilinearly."""
        if image.shape[-2:] != (299, 299):
            image = F.interpolate(image, size=(299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * image - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))
