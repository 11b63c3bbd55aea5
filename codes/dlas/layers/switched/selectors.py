"""What finds the logits of switches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MappingNetwork(nn.Module):
    """Two convolutions with normalisation over the batch between: the selector of 2020.

    Args:
        in_channels: of the features.
        breadth: number of switches.
        kernel_size: of both convolutions, odd.

    Source: the published implementation, branch `attention_norm_alt`, whose names of weights these are.
    """

    def __init__(self, in_channels: int, breadth: int, kernel_size: int = 5) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.attention_conv1 = nn.Conv2d(in_channels, hidden, kernel_size, padding=kernel_size // 2)
        self.att_bn1 = nn.BatchNorm2d(hidden)
        self.attention_conv2 = nn.Conv2d(hidden, breadth, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, breadth, H, W)."""
        return self.attention_conv2(F.leaky_relu(self.att_bn1(self.attention_conv1(features)), 0.1))


class LambdaLayer(nn.Module):
    """Each place asks a linear function that its surroundings make: attention to all places and to a window, without a map.

    Args:
        in_channels: of the features.
        out_channels: of the result; a multiple of `heads`.
        heads: queries of each place.
        depth: channels of queries and keys.
        window: side of the surroundings, odd.

    Source: Bello 2021, "LambdaNetworks: Modeling Long-Range Interactions Without Attention" (arXiv:2102.08602), section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, heads: int = 2, depth: int = 16, window: int = 23) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        self.queries = nn.Sequential(nn.Conv2d(in_channels, heads * depth, 1, bias=False), nn.BatchNorm2d(heads * depth))
        self.keys = nn.Conv2d(in_channels, depth, 1, bias=False)
        values = out_channels // heads
        self.values = nn.Sequential(nn.Conv2d(in_channels, values, 1, bias=False), nn.BatchNorm2d(values))
        self.surroundings = nn.Conv2d(1, depth, window, padding=window // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        batch, _, height, width = features.shape
        queries = self.queries(features).view(batch, self.heads, self.depth, height, width)
        keys = self.keys(features).flatten(2).softmax(dim=2)
        values = self.values(features)
        of_all = torch.einsum("bkn,bvn->bkv", keys, values.flatten(2))
        near = self.surroundings(values.flatten(0, 1)[:, None]).view(batch, -1, self.depth, height, width)
        found = torch.einsum("bhkyx,bkv->bhvyx", queries, of_all) + torch.einsum("bhkyx,bvkyx->bhvyx", queries, near)
        return found.flatten(1, 2)


class LambdaCoupler(nn.Module):
    """Logits from features by lambda layers, which see all of a picture.

    Args:
        in_channels: of the features.
        breadth: number of switches.
        layers: lambda layers, each behind a normalisation in groups; a 1x1 convolution follows them.

    Source: the couplers `lambda` and `lambda2` of the published implementation. There are no published weights of it.
    """

    def __init__(self, in_channels: int, breadth: int, layers: int = 1) -> None:
        super().__init__()
        heads = 2 if breadth % 2 == 0 else 1
        widths = [in_channels, *[breadth] * layers]
        parts: list[nn.Module] = []
        for width in widths[:-1]:
            groups = 2 if width % 2 == 0 else 1
            parts += [nn.GroupNorm(groups, width), LambdaLayer(width, breadth, heads=heads), nn.ReLU()]
        self.layers = nn.Sequential(*parts, nn.Conv2d(breadth, breadth, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, breadth, H, W)."""
        return self.layers(features)
