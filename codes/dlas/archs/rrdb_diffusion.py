"""RRDB as a diffusion network: DL-Art-School's.

It works at a quarter of the picture's height and width, and is told of times in the first dense block of each RRDB.

The blocks: Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018
(arXiv:1809.00219), in DL-Art-School's normalised form.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.layers.time_embedding import TimeEmbedding
from dlas.layers.unet import check_side, double, enlarge_to
from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""

GROUPS = 8
"""Groups of every normalisation."""

RESIDUAL_SCALE = 0.2
"""Weight of a dense block's residual branch."""

BRANCH_WEIGHT = 0.1
"""With which the three blocks' branch of an RRDB begins; it is learned."""

SHRINK = 4
"""The body's features are smaller than the picture by this."""


class LeakyConv(nn.Module):
    """A convolution and a leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, side: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, side, stride, padding=side // 2)
        initialise(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        return F.leaky_relu_(self.conv(x), LEAK)


class TimedDenseBlock(nn.Module):
    """A dense block of five convolutions, normalised; the first of an RRDB is told of times.

    Args:
        channels: of input and output.
        growth: channels that each of the first four convolutions adds.
        timed: whether it is told of times.
    """

    def __init__(self, channels: int, growth: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        if timed:
            self.first_conv = LeakyConv(channels, channels)
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * channels, channels))
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            initialise(conv, 0.1)
        initialise(self.conv5, 0.0)
        self.normalize = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, 4 channels) -> (B, channels, H, W)."""
        first = x
        if self.timed:
            first = self.first_conv(x)
            first = first + self.emb_layers(embedding).to(first.dtype)[..., None, None]
        # The block's input itself, not what was made of it for the first convolution, is what the others see.
        seen = torch.cat((x, F.leaky_relu_(self.conv1(first), LEAK)), dim=1)
        for conv in (self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, F.leaky_relu_(conv(seen), LEAK)), dim=1)
        return self.normalize(torch.add(x, self.conv5(seen), alpha=RESIDUAL_SCALE))


class TimedRRDB(nn.Module):
    """Three dense blocks in a residual branch whose weight is learned, normalised."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = TimedDenseBlock(channels, growth, timed=True)
        self.rdb2 = TimedDenseBlock(channels, growth, timed=False)
        self.rdb3 = TimedDenseBlock(channels, growth, timed=False)
        self.normalize = nn.GroupNorm(GROUPS, channels)
        self.residual_mult = nn.Parameter(torch.full((1,), BRANCH_WEIGHT))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, 4 channels) -> (B, channels, H, W)."""
        branch = self.rdb1(x, embedding)
        branch = self.rdb3(self.rdb2(branch, embedding), embedding)
        return self.normalize(torch.addcmul(x, branch, self.residual_mult.to(x.dtype)))


@ARCHS.register("rrdb_diffusion")
class RRDBDiffusion(nn.Module):
    """Super-resolving diffusion network with a body of RRDBs.

    Args:
        in_channels: channels of all that is shown: the noisy picture, the low-resolution one, and one a correction factor.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        mid_channels: width, a multiple of 8.
        num_blocks: RRDBs.
        growth_channels: channels that each convolution of a dense block adds.

    Raises:
        ValueError: `mid_channels` is no multiple of 8.
    """

    def __init__(
        self,
        *,
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        mid_channels: PositiveInt = 64,
        num_blocks: PositiveInt = 23,
        growth_channels: PositiveInt = 32,
    ) -> None:
        super().__init__()
        if mid_channels % GROUPS:
            raise ValueError(f"mid_channels must be a multiple of {GROUPS}, got {mid_channels}")
        self.checkpointing = False
        self.in_channels = in_channels
        width = mid_channels
        self.input_block = LeakyConv(in_channels, width, side=7)
        self.down1 = LeakyConv(width, width, stride=2)
        self.down2 = LeakyConv(width, width, stride=2)
        self.time_embed = TimeEmbedding(width)
        self.body = nn.ModuleList(TimedRRDB(width, growth_channels) for _ in range(num_blocks))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_up2 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv_hr = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, out_channels, 3, padding=1)
        self.normalize = nn.GroupNorm(GROUPS, width)  # one for three places
        for conv in (self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr):
            initialise(conv)
        initialise(self.conv_last, 0.0)

    def forward(self, x: Tensor, timesteps: Tensor, low_res: Tensor, correction_factors: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, C, H, W); H and W are multiples of 4.
            timesteps: (B,), whole or not.
            low_res: (B, D, h, w), of any size, in the range of `x` without noise, [-1, 1].
            correction_factors: (B, in_channels - C - D), how strongly `low_res` was corrupted; without them, 0.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: channels do not add up to `in_channels`, or H or W is no multiple of 4.
        """
        features = [self.input_block(self._shown(x, low_res, correction_factors))]
        features.append(self.down1(features[0]))
        h = self.down2(features[1])
        embedding = self.time_embed(timesteps)
        for block in self.body:
            h = recompute(block, h, embedding, when=self.checkpointing and self.training)
        h = self.conv_body(h)
        for conv in (self.conv_up1, self.conv_up2):
            h = torch.cat((F.leaky_relu(self.normalize(conv(double(h))), LEAK), features.pop()), dim=1)
        return self.conv_last(self.normalize(F.leaky_relu_(self.conv_hr(h), LEAK)))

    def _shown(self, x: Tensor, low_res: Tensor, factors: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        check_side("a picture's height", height, SHRINK)
        check_side("a picture's width", width, SHRINK)
        planes = self.in_channels - x.shape[1] - low_res.shape[1]
        given = planes if factors is None else factors[0].numel()
        if planes < 0 or given != planes:
            raise ValueError(
                f"in_channels is {self.in_channels}, but {x.shape[1]} channels of noisy pictures, {low_res.shape[1]} of "
                f"low-resolution ones and {max(given, 0)} correction factors were given"
            )
        factors = x.new_zeros(len(x), planes) if factors is None else factors.flatten(1).to(x.dtype)
        return torch.cat((x, enlarge_to(low_res, x), factors[..., None, None].expand(-1, -1, height, width)), dim=1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"in_channels": 8, "out_channels": 6, "mid_channels": 8, "num_blocks": 2, "growth_channels": 4}
        return options, (torch.randn(2, 3, 8, 12), torch.tensor([3, 700]), torch.randn(2, 3, 4, 6), torch.rand(2, 2))


def initialise(conv: nn.Conv2d, scale: float = 1.0) -> None:
    """Weights by He et al. 2015 (arXiv:1502.01852), smaller by `scale`; no bias."""
    nn.init.kaiming_normal_(conv.weight)
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.mul_(scale)
        conv.bias.zero_()
