"""HAT, attention within shifted windows, across overlapping windows, and over channels.

Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023 (arXiv:2205.04437), section 3 and
figure 4.

The layers have the names of published checkpoints: ``layers.<i>.residual_group.blocks.<j>``,
``layers.<i>.residual_group.overlap_attn``, ``relative_position_index_SA`` and ``_OCA``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.input_range import InputRange
from dlas.layers.padding import pad_to_multiple
from dlas.layers.recompute import recompute
from dlas.layers.stochastic_depth import StochasticDepth, rising
from dlas.layers.swin import (
    FeedForward,
    WindowAttention,
    as_map,
    as_picture,
    attend,
    initialise_linear,
    position_bias,
    residual_convolution,
)
from dlas.layers.upsample import SubPixelUpsample
from dlas.layers.windows import cut_windows, join_windows, places, relative_position_index, shift_mask
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt


class ChannelAttention(nn.Module):
    """Multiplies each channel by a number in (0, 1) made from the means of all."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // squeeze_factor, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x * self.attention(x)


class ConvolutionBranch(nn.Module):
    """Two convolutions, narrow between them, and channel attention (CAB)."""

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(channels, channels // compress_ratio, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels // compress_ratio, channels, 3, padding=1),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        return as_map(self.cab(as_picture(x)))


class HybridAttentionBlock(nn.Module):
    """Attention within (shifted) windows beside a convolutional branch, then a feed-forward network (HAB, figure 4c).

    Args:
        channels: width.
        window: side of a window.
        shift: by how much windows are shifted, 0 or half a window.
        heads: number of heads.
        compress_ratio: by how much the convolutional branch is narrower.
        squeeze_factor: by how much its attention is.
        conv_scale: factor on it.
        mlp_ratio: width of the feed-forward network, in `channels`.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability with which the other branches are left out in training.
    """

    def __init__(
        self,
        channels: int,
        window: int,
        shift: int,
        heads: int,
        *,
        compress_ratio: int,
        squeeze_factor: int,
        conv_scale: float,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = (window, window)
        self.shift = shift
        self.conv_scale = conv_scale
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads, qkv_bias)
        self.conv_block = ConvolutionBranch(channels, compress_ratio, squeeze_factor)
        self.drop_path = StochasticDepth(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape; `mask` is for shifted windows and passed over by others."""
        normed = self.norm1(x)
        x = x + self.drop_path(self._attend(normed, index, mask)) + self.conv_block(normed) * self.conv_scale
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        if not self.shift:
            return join_windows(self.attn(cut_windows(x, self.window), index), self.window, size)
        windows = cut_windows(x.roll((-self.shift, -self.shift), (1, 2)), self.window)
        return join_windows(self.attn(windows, index, mask), self.window, size).roll((self.shift, self.shift), (1, 2))


class OverlappingCrossAttention(nn.Module):
    """Each window asks a larger one around it, then a feed-forward network (OCAB, figures 4d and 5).

    Args:
        channels: width.
        window: side of the windows that ask.
        overlapping: side of those that answer.
        heads: number of heads.
        mlp_ratio: width of the feed-forward network, in `channels`.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(self, channels: int, window: int, overlapping: int, heads: int, *, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.window = (window, window)
        self.overlapping = overlapping
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((window + overlapping - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        batch, height, width, channels = x.shape
        q, kv = self.qkv(self.norm1(x)).split((channels, 2 * channels), dim=-1)
        q = self._split_heads(cut_windows(q, self.window)) * self.scale
        around = self.overlapping
        margin = (around - self.window[0]) // 2  # zeros beyond the edges of the map
        unfolded = F.unfold(as_picture(kv), around, stride=self.window[0], padding=margin)
        k, v = unfolded.view(batch, 2, channels, around**2, -1).permute(1, 0, 4, 3, 2)
        mixed = attend(q, self._split_heads(k), self._split_heads(v), position_bias(self.relative_position_bias_table, index))
        mixed = join_windows(mixed.transpose(2, 3).flatten(3), self.window, (height, width))
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))

    def _split_heads(self, windows: Tensor) -> Tensor:
        return windows.unflatten(-1, (self.heads, -1)).transpose(2, 3)


class _Blocks(nn.Module):
    def __init__(self, blocks: list[HybridAttentionBlock], overlap_attn: OverlappingCrossAttention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.overlap_attn = overlap_attn


class ResidualHybridGroup(nn.Module):
    """Blocks, the overlapping attention and a convolution within a residual branch (RHAG, figure 4b)."""

    def __init__(
        self,
        channels: int,
        blocks: list[HybridAttentionBlock],
        overlap_attn: OverlappingCrossAttention,
        resi_connection: str,
    ) -> None:
        super().__init__()
        self.residual_group = _Blocks(blocks, overlap_attn)
        self.conv = residual_convolution(channels, resi_connection)

    def forward(self, x: Tensor, index: Tensor, wide_index: Tensor, mask: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        features = x
        for block in self.residual_group.blocks:
            features = recompute(block, features, index, mask, when=checkpointing, random=True)
        features = recompute(self.residual_group.overlap_attn, features, wide_index, when=checkpointing)
        return x + as_map(self.conv(as_picture(features)))


class _PatchEmbed(nn.Module):
    """Holds the normalisation of the first features under the name it has in checkpoints."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)


@ARCHS.register("HAT")
class HAT(nn.Module):
    """HAT; the defaults are the published x4 network.

    HAT-S: `embed_dim` 144, `compress_ratio` 24, `squeeze_factor` 24. HAT-L: `depths` and `num_heads` of twelve times 6.

    Args:
        in_chans: channels of input and output.
        embed_dim: width, a multiple of each of `num_heads`.
        depths: blocks in each group.
        num_heads: heads of attention in each group.
        window_size: side of the windows.
        compress_ratio: by how much the convolutional branches are narrower than `embed_dim`.
        squeeze_factor: by how much their channel attention is.
        conv_scale: factor on the convolutional branches.
        overlap_ratio: by how much the windows of the overlapping attention are larger, in `window_size`.
        mlp_ratio: width of the feed-forward networks, in `embed_dim`.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path_rate: probability with which the last block's branches are left out of a training sample; it rises evenly up
            to it.
        scale: enlargement: 1, 2, 3, 4 or 8.
        img_range: the network works on pictures in [0, `img_range`].
        resi_connection: a convolution at the end of each group (`1conv`) or none (`identity`).
        num_feat: channels of the enlarging layers.

    Raises:
        ValueError: a value is not one of those named, or sizes do not go together.
    """

    relative_position_index_SA: Tensor  # noqa: N815 - as in published checkpoints
    relative_position_index_OCA: Tensor  # noqa: N815

    def __init__(
        self,
        *,
        in_chans: PositiveInt = 3,
        embed_dim: PositiveInt = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: PositiveInt = 16,
        compress_ratio: PositiveInt = 3,
        squeeze_factor: PositiveInt = 30,
        conv_scale: float = 0.01,
        overlap_ratio: Fraction = 0.5,
        mlp_ratio: PositiveFloat = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: Fraction = 0.1,
        scale: Literal[1, 2, 3, 4, 8] = 4,
        img_range: PositiveFloat = 1.0,
        resi_connection: Literal["1conv", "identity"] = "1conv",
        num_feat: PositiveInt = 64,
    ) -> None:
        super().__init__()
        overlapping = window_size + int(window_size * overlap_ratio)
        _check(embed_dim, depths, num_heads, window_size, overlapping, max(compress_ratio, squeeze_factor))
        self.checkpointing = False
        self.scale = scale
        self.window_size = window_size
        self.range = InputRange(in_chans, img_range)
        self.register_buffer("relative_position_index_SA", relative_position_index((window_size, window_size)))
        self.register_buffer("relative_position_index_OCA", _overlapping_index(window_size, overlapping))
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = _PatchEmbed(embed_dim)
        self.layers = nn.ModuleList()
        for heads, chances in zip(num_heads, rising(drop_path_rate, depths), strict=True):
            blocks = [
                HybridAttentionBlock(
                    embed_dim,
                    window_size,
                    window_size // 2 if number % 2 else 0,
                    heads,
                    compress_ratio=compress_ratio,
                    squeeze_factor=squeeze_factor,
                    conv_scale=conv_scale,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop_path=chance,
                )
                for number, chance in enumerate(chances)
            ]
            overlap_attn = OverlappingCrossAttention(
                embed_dim, window_size, overlapping, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias
            )
            self.layers.append(ResidualHybridGroup(embed_dim, blocks, overlap_attn, resi_connection))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_convolution(embed_dim, resi_connection)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, num_feat, 3, padding=1), nn.LeakyReLU(inplace=True))
        self.upsample = SubPixelUpsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, in_chans, 3, padding=1)
        initialise_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, in_chans, height, width), RGB in [0, 1], of any size; padded to multiples of the window within.

        Returns:
            (batch, in_chans, height * scale, width * scale), not clamped.
        """
        height, width = x.shape[-2:]
        x = self.range.enter(pad_to_multiple(x, self.window_size))
        first = self.conv_first(x)
        features = first + self.conv_after_body(self._transform(first))
        picture = self.conv_last(self.upsample(self.conv_before_upsample(features)))
        return self.range.leave(picture)[..., : height * self.scale, : width * self.scale]

    def _transform(self, features: Tensor) -> Tensor:
        side, shift = self.window_size, self.window_size // 2
        mask = shift_mask((features.shape[2], features.shape[3]), (side, side), (shift, shift), features)
        indices = (self.relative_position_index_SA, self.relative_position_index_OCA)
        features = self.patch_embed.norm(as_map(features))
        for layer in self.layers:
            features = layer(features, *indices, mask, self.checkpointing and self.training)
        return as_picture(self.norm(features))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "scale": 2, "num_feat": 8}
        return {**options, "compress_ratio": 2, "squeeze_factor": 4, "drop_path_rate": 0.0}, (torch.rand(2, 3, 8, 10),)


def _overlapping_index(window: int, overlapping: int) -> Tensor:
    """(places of a window, places of the larger one): row of the table of relative positions.

    Published tables are indexed from the difference window - overlapping + 1 on, which is below zero for some pairs: these
    count from the table's end.
    """
    (y, x), (wide_y, wide_x) = places((window, window)), places((overlapping, overlapping))
    start, stride = window - overlapping + 1, window + overlapping - 1
    return (wide_y - y[:, None] + start) * stride + (wide_x - x[:, None] + start)


def _check(
    embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int, overlapping: int, narrowing: int
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(f"depths has {len(depths)} entries and num_heads {len(num_heads)}; each is for one group")
    if any(embed_dim % heads for heads in num_heads):
        raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of each of num_heads ({list(num_heads)})")
    if (overlapping - window_size) % 2:
        raise ValueError(
            f"window_size {window_size} and overlap_ratio make overlapping windows of {overlapping}; the difference must be "
            "even"
        )
    if narrowing > embed_dim:
        raise ValueError(f"compress_ratio and squeeze_factor must be at most embed_dim ({embed_dim}), got {narrowing}")
