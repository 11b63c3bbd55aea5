"""RRDBNet as one writes it down from the paper: what `dlas.archs.rrdb` is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainDenseBlock(nn.Module):
    """Five convolutions; each sees a fresh concatenation of all before it."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        widths = [gc] * 4 + [nf]
        self.convs = nn.ModuleList(nn.Conv2d(nf + number * gc, width, 3, padding=1) for number, width in enumerate(widths))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2, inplace=True))
        return x + 0.2 * self.convs[-1](torch.cat(seen, 1))


class PlainRRDBNet(nn.Module):
    """The x4 network of ESRGAN."""

    def __init__(self, nf: int, nb: int, gc: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, nf, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(*(PlainDenseBlock(nf, gc) for _ in range(3))) for _ in range(nb))
        self.behind, self.up1, self.up2, self.hr = (nn.Conv2d(nf, nf, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(nf, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = features = self.first(x)
        for blocks in self.body:
            features = features + 0.2 * blocks(features)
        features = first + self.behind(features)
        for up in (self.up1, self.up2):
            features = F.leaky_relu(up(F.interpolate(features, scale_factor=2)), 0.2, inplace=True)
        return self.last(F.leaky_relu(self.hr(features), 0.2, inplace=True))
