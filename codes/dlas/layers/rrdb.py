"""The blocks of ESRGAN's generator.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018 (arXiv:1809.00219),
section 3.1 and figure 4.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.dense_block import lean_dense_block, training_plainly
from dlas.layers.recompute import recompute

RESIDUAL_SCALE = 0.2
"""Weight of every residual branch (beta in figure 4)."""

INITIAL_WEIGHT_SCALE = 0.1
"""Dense blocks start near the identity: their weights are drawn this much smaller than usual (section 3.1)."""

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU of any shape, in place."""
    # In place: the convolution's result is needed by nothing else, and the slope's sign is known from the output.
    return F.leaky_relu_(x, LEAK)


class ResidualDenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which sees the block's input and all results before it.

    Args:
        nf: channels of input and output.
        gc: channels that each of the first four convolutions adds.
        lean: keep less for the backward pass, which takes a little longer: see `dlas.layers.dense_block`.
    """

    def __init__(self, nf: int, gc: int, lean: bool = False) -> None:
        super().__init__()
        self.lean = lean
        self.conv1 = nn.Conv2d(nf, gc, 3, padding=1)
        self.conv2 = nn.Conv2d(nf + gc, gc, 3, padding=1)
        self.conv3 = nn.Conv2d(nf + 2 * gc, gc, 3, padding=1)
        self.conv4 = nn.Conv2d(nf + 3 * gc, gc, 3, padding=1)
        self.conv5 = nn.Conv2d(nf + 4 * gc, nf, 3, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            nn.init.kaiming_normal_(conv.weight)
            assert conv.bias is not None
            with torch.no_grad():
                conv.weight.mul_(INITIAL_WEIGHT_SCALE)
                conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, nf, height, width) -> the same shape."""
        layers = (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)
        if self.lean and training_plainly(*layers):
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
            return lean_dense_block(x, weights, biases, LEAK, RESIDUAL_SCALE)
        # Each result is appended to what is already joined: in the backward pass one sum then takes the place of one per part.
        seen = x
        for conv in layers[:-1]:
            seen = torch.cat((seen, activate(conv(seen))), dim=1)
        return torch.add(x, self.conv5(seen), alpha=RESIDUAL_SCALE)


class RRDB(nn.Module):
    """Three residual dense blocks within a residual branch (figure 4, right)."""

    def __init__(self, nf: int, gc: int, lean: bool = False) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(nf, gc, lean)
        self.rdb2 = ResidualDenseBlock(nf, gc, lean)
        self.rdb3 = ResidualDenseBlock(nf, gc, lean)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, nf, height, width) -> the same shape."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL_SCALE)


class RRDBTrunk(nn.Module):
    """The network up to where it enlarges: features of a picture, at its size.

    Args:
        in_channels: of the picture.
        nf: channels of the features.
        nb: residual-in-residual blocks.
        gc: channels that each convolution of a dense block adds.
    """

    def __init__(self, in_channels: int, nf: int, nb: int, gc: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(in_channels, nf, 3, padding=1)
        self.body = nn.ModuleList(RRDB(nf, gc) for _ in range(nb))
        self.conv_body = nn.Conv2d(nf, nf, 3, padding=1)

    def forward(self, x: Tensor, recomputing: bool = False) -> Tensor:
        """(B, in_channels, H, W) -> (B, nf, H, W); `recomputing`: activations of blocks are not kept."""
        first = features = self.conv_first(x)
        for block in self.body:
            features = recompute(block, features, when=recomputing)
        return first + self.conv_body(features)


_SECOND_RELEASE = (
    (re.compile(r"^RRDB_trunk\.(\d+)\.RDB(\d)\."), r"body.\1.rdb\2."),
    (re.compile(r"^trunk_conv\."), "conv_body."),
    (re.compile(r"^upconv(\d)\."), r"conv_up\1."),
    (re.compile(r"^HRconv\."), "conv_hr."),
)


def present_name(key: str) -> str:
    """What a tensor of ESRGAN's second release, of which SRFlow's encoder has its names, is called here; others keep theirs."""
    for pattern, replacement in _SECOND_RELEASE:
        key = pattern.sub(replacement, key)
    return key
