"""DAT, blocks that attend to places and to channels by turns, with a convolution beside each attention.

Chen et al., "Dual Aggregation Transformer for Image Super-Resolution", ICCV 2023 (arXiv:2308.03364), section 3, figures 2 to 4.

The layers have the names of published checkpoints, in which the masks and indices of the windows are, too:
``layers.<i>.blocks.<j>.attn.attns.<k>``, ``...attn_mask_0``, ``...relative_position_index``, ``...rpe_biases``.
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
from dlas.layers.swin import as_map, as_picture, attend, initialise_linear, position_bias, residual_convolution
from dlas.layers.upsample import SubPixelUpsample
from dlas.layers.windows import Pair, cut_windows, join_windows, relative_position_index, shift_mask
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt

WIDTH_BEFORE_UPSAMPLE = 64
"""Channels of the enlarging layers."""


class SpatialGateFeedForward(nn.Module):
    """A feed-forward network of which one half of the hidden channels, seen with its neighbours, weights the other (SGFN)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.sg = SpatialGate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        return self.fc2(self.sg(F.gelu(self.fc1(x))))


class SpatialGate(nn.Module):
    """The product of one half of the channels and of the other after a depth-wise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, 2 * channels) -> (batch, height, width, channels)."""
        kept, gate = x.chunk(2, dim=-1)
        return kept * as_map(self.conv(as_picture(self.norm(gate))))


class PositionNetwork(nn.Module):
    """Makes the bias of each relative position, one number a head, from its rows and columns.

    Source: Wang et al., "CrossFormer", ICLR 2022 (arXiv:2108.00154), section 3.3.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, channels)
        self.pos1 = self._layer(channels, channels)
        self.pos2 = self._layer(channels, channels)
        self.pos3 = self._layer(channels, heads)

    @staticmethod
    def _layer(channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(channels), nn.ReLU(inplace=True), nn.Linear(channels, out_channels))

    def forward(self, positions: Tensor) -> Tensor:
        """(positions, 2) -> (positions, heads)."""
        return self.pos3(self.pos2(self.pos1(self.pos_proj(positions))))


class RectangleAttention(nn.Module):
    """Attention within rectangular windows.

    Args:
        channels: of queries, keys and values each.
        window: rows and columns.
        heads: number of heads.
    """

    rpe_biases: Tensor
    relative_position_index: Tensor

    def __init__(self, channels: int, window: Pair, heads: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.pos = PositionNetwork(channels // 16, heads)
        rows, columns = window
        y, x = torch.arange(1 - rows, rows), torch.arange(1 - columns, columns)
        positions = torch.stack((y.repeat_interleave(len(x)), x.repeat(len(y))), dim=1)
        self.register_buffer("rpe_biases", positions.float())
        self.register_buffer("relative_position_index", relative_position_index(window))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Three times (batch, height, width, channels) -> the same shape; `mask` is added to the logits of each window."""
        size = (q.shape[1], q.shape[2])
        heads = (cut_windows(each, self.window).unflatten(-1, (self.heads, -1)).transpose(2, 3) for each in (q, k, v))
        q, k, v = heads
        bias = position_bias(self.pos(self.rpe_biases), self.relative_position_index)
        mixed = attend(q * self.scale, k, v, bias if mask is None else bias + mask[:, None])
        return join_windows(mixed.transpose(2, 3).flatten(3), self.window, size)


class _TwoBranches(nn.Module):
    """What both attentions have: a depth-wise convolution of the values, and maps by which the branches weight each other."""

    def __init__(self, channels: int, qkv_bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.dwconv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.GELU()
        )
        self.channel_interaction = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 8, 1),
            nn.BatchNorm2d(channels // 8),
            nn.GELU(),
            nn.Conv2d(channels // 8, channels, 1),
        )
        self.spatial_interaction = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1),
            nn.BatchNorm2d(channels // 16),
            nn.GELU(),
            nn.Conv2d(channels // 16, 1, 1),
        )

    def exchange(self, over_channels: Tensor, over_places: Tensor) -> Tensor:
        """The sum of two branches, each weighted by a map made from the other (AIM, figure 3).

        Args:
            over_channels: (batch, channels, height, width); a weight a channel is made of it for the other branch.
            over_places: the same shape; a weight a place is made of it for the other branch.

        Returns:
            (batch, height, width, channels).
        """
        channel_map = self.channel_interaction(over_channels).sigmoid()
        spatial_map = self.spatial_interaction(over_places).sigmoid()
        return self.proj(as_map(over_places * channel_map + over_channels * spatial_map))


class SpatialAttention(_TwoBranches):
    """Attention within upright windows of one half of the channels and lying ones of the other (AS-SA, figure 3a).

    Args:
        channels: width.
        side: of the pictures that the stored masks are for.
        window: rows and columns of the upright windows.
        shifted: whether windows are shifted by a half.
        heads: number of heads, half of which each half of the channels has.
        qkv_bias: whether queries, keys and values have a bias.
    """

    attn_mask_0: Tensor | None
    attn_mask_1: Tensor | None

    def __init__(self, channels: int, side: int, window: Pair, shifted: bool, heads: int, qkv_bias: bool) -> None:
        super().__init__(channels, qkv_bias)
        self.side = side
        self.windows = (window, window[::-1])
        self.shifts = tuple((rows // 2, columns // 2) for rows, columns in self.windows) if shifted else ()
        self.attns = nn.ModuleList(RectangleAttention(channels // 2, each, heads // 2) for each in self.windows)
        for number, each in enumerate(self.windows):
            mask = shift_mask((side, side), each, self.shifts[number]) if shifted else None
            self.register_buffer(f"attn_mask_{number}", mask)

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        qkv = self.qkv(x)
        attended = as_picture(recompute(self._attend, qkv, when=checkpointing))
        convolved = self.dwconv(as_picture(qkv.chunk(3, dim=-1)[2]))
        return self.exchange(convolved, attended)

    def _attend(self, qkv: Tensor) -> Tensor:
        height, width = qkv.shape[1:3]
        # Places beyond the edges take part with queries, keys and values of zero.
        qkv = as_map(pad_to_multiple(as_picture(qkv), max(self.windows[0]), mode="constant"))
        parts = qkv.chunk(6, dim=-1)  # halves of queries, of keys and of values
        found = []
        for number, attention in enumerate(self.attns):
            halves = parts[number::2]
            if not self.shifts:
                mixed = attention(*halves, None)
            else:
                down, right = self.shifts[number]
                rolled = [half.roll((-down, -right), (1, 2)) for half in halves]
                mixed = attention(*rolled, self._mask(number, rolled[0])).roll((down, right), (1, 2))
            found.append(mixed[:, :height, :width])
        return torch.cat(found, dim=-1)

    def _mask(self, number: int, x: Tensor) -> Tensor | None:
        size = (x.shape[1], x.shape[2])
        if size == (self.side, self.side):
            return self.attn_mask_1 if number else self.attn_mask_0
        return shift_mask(size, self.windows[number], self.shifts[number], x)


class ChannelAttention(_TwoBranches):
    """Attention between channels, over all places (AC-SA, figure 3b).

    Args:
        channels: width.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(self, channels: int, heads: int, qkv_bias: bool) -> None:
        super().__init__(channels, qkv_bias)
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        qkv = self.qkv(x)
        attended = as_picture(recompute(self._attend, qkv, when=checkpointing))
        convolved = self.dwconv(as_picture(qkv.chunk(3, dim=-1)[2]))
        return self.exchange(attended, convolved)

    def _attend(self, qkv: Tensor) -> Tensor:
        batch, height, width, _ = qkv.shape
        q, k, v = qkv.view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        return (weights.to(v.dtype) @ v).permute(0, 3, 1, 2).reshape(batch, height, width, -1)


class DualAttentionBlock(nn.Module):
    """An attention, then a feed-forward network, each in a residual branch (DATB, figure 2)."""

    def __init__(self, channels: int, attention: SpatialAttention | ChannelAttention, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attention
        self.drop_path = StochasticDepth(drop_path)
        self.ffn = SpatialGateFeedForward(channels, hidden)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        # Batch normalisation is outside of what is recomputed: it would count each batch twice in its running statistics.
        x = x + self.drop_path(self.attn(self.norm1(x), checkpointing))
        return x + self.drop_path(recompute(self.ffn, self.norm2(x), when=checkpointing))


class ResidualGroup(nn.Module):
    """Blocks and a convolution within a residual branch."""

    def __init__(self, channels: int, blocks: list[DualAttentionBlock], resi_connection: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = residual_convolution(channels, resi_connection)

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        features = x
        for block in self.blocks:
            features = block(features, checkpointing)
        return x + as_map(self.conv(as_picture(features)))


@ARCHS.register("DAT")
class DAT(nn.Module):
    """DAT; the defaults are the published x4 network. Training takes two pictures or more in each micro-batch, for the batch
    normalisation.

    DAT-S: `split_size` [8, 16], `expansion_factor` 2. DAT-2: `expansion_factor` 2. DAT-light: `embed_dim` 60, `depth` [18],
    `num_heads` [6], `expansion_factor` 2, `upsampler` pixelshuffledirect, `resi_connection` 3conv.

    Args:
        in_chans: channels of input and output.
        img_size: height and width, in pixels of the input, for which the masks in the state dict are made; a multiple of both
            of `split_size`. Pictures of any size are taken.
        embed_dim: width.
        split_size: rows and columns of the windows.
        depth: blocks in each group.
        num_heads: heads of attention in each group, even.
        expansion_factor: width of the feed-forward networks, in `embed_dim`.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path_rate: probability with which the last block's branches are left out of a training sample; it rises evenly up
            to it.
        scale: enlargement: 1, 2, 3, 4 or 8.
        img_range: the network works on pictures in [0, `img_range`].
        resi_connection: convolutions at the end of each group: `1conv` or `3conv`.
        upsampler: how pictures are made of features: `pixelshuffle` or `pixelshuffledirect` (light).

    Raises:
        ValueError: a value is not one of those named, or sizes do not go together.
    """

    constants = r".*\.attn_mask_[01]"

    def __init__(
        self,
        *,
        in_chans: PositiveInt = 3,
        img_size: PositiveInt = 64,
        embed_dim: PositiveInt = 180,
        split_size: Sequence[int] = (8, 32),
        depth: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        expansion_factor: PositiveFloat = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: Fraction = 0.1,
        scale: Literal[1, 2, 3, 4, 8] = 4,
        img_range: PositiveFloat = 1.0,
        resi_connection: Literal["1conv", "3conv"] = "1conv",
        upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle",
    ) -> None:
        super().__init__()
        _check(img_size, embed_dim, split_size, depth, num_heads, upsampler)
        self.checkpointing = False
        self.window_size = max(split_size)
        self.range = InputRange(in_chans, img_range)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        # The second entry of a sequence, as in published checkpoints.
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(embed_dim))
        window = (split_size[0], split_size[1])
        self.layers = nn.ModuleList()
        for group, (heads, chances) in enumerate(zip(num_heads, rising(drop_path_rate, depth), strict=True)):
            blocks = []
            for number, chance in enumerate(chances):
                attention: SpatialAttention | ChannelAttention
                if number % 2:
                    attention = ChannelAttention(embed_dim, heads, qkv_bias)
                else:
                    # Every other spatial attention is shifted; odd groups begin with one that is.
                    shifted = number % 4 == (0 if group % 2 else 2)
                    attention = SpatialAttention(embed_dim, img_size, window, shifted, heads, qkv_bias)
                blocks.append(DualAttentionBlock(embed_dim, attention, int(embed_dim * expansion_factor), chance))
            self.layers.append(ResidualGroup(embed_dim, blocks, resi_connection))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_convolution(embed_dim, resi_connection)
        if upsampler == "pixelshuffle":
            width = WIDTH_BEFORE_UPSAMPLE
            self.conv_before_upsample: nn.Module = nn.Sequential(
                nn.Conv2d(embed_dim, width, 3, padding=1), nn.LeakyReLU(inplace=True)
            )
            self.upsample: nn.Module = SubPixelUpsample(scale, width)
            self.conv_last: nn.Module = nn.Conv2d(width, in_chans, 3, padding=1)
        else:
            self.conv_before_upsample, self.conv_last = nn.Identity(), nn.Identity()
            conv = nn.Conv2d(embed_dim, in_chans * scale**2, 3, padding=1)
            self.upsample = nn.Sequential(conv, nn.PixelShuffle(scale))
        initialise_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, in_chans, height, width), RGB in [0, 1], of any size.

        Returns:
            (batch, in_chans, height * scale, width * scale), not clamped.
        """
        first = self.conv_first(self.range.enter(x))
        features = self.before_RG(as_map(first))
        for layer in self.layers:
            features = layer(features, self.checkpointing and self.training)
        features = first + self.conv_after_body(as_picture(self.norm(features)))
        return self.range.leave(self.conv_last(self.upsample(self.conv_before_upsample(features))))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"img_size": 8, "embed_dim": 32, "split_size": [2, 4], "depth": [3, 2], "num_heads": [2, 2], "scale": 2}
        return {**options, "expansion_factor": 1.0, "upsampler": "pixelshuffledirect"}, (torch.rand(2, 3, 8, 10),)


def _check(
    img_size: int,
    embed_dim: int,
    split_size: Sequence[int],
    depth: Sequence[int],
    num_heads: Sequence[int],
    upsampler: str,
) -> None:
    if upsampler not in ("pixelshuffle", "pixelshuffledirect"):
        raise ValueError(f"upsampler must be pixelshuffle or pixelshuffledirect, got {upsampler!r}")
    if len(split_size) != 2 or max(split_size) % min(split_size):
        raise ValueError(f"split_size must be two sides of which one is a multiple of the other, got {list(split_size)}")
    if img_size % max(split_size):
        raise ValueError(f"img_size ({img_size}) must be a multiple of both of split_size ({list(split_size)})")
    if len(depth) != len(num_heads):
        raise ValueError(f"depth has {len(depth)} entries and num_heads {len(num_heads)}; each is for one group")
    if any(heads % 2 or embed_dim % heads for heads in num_heads) or embed_dim < 32:
        raise ValueError(
            f"embed_dim ({embed_dim}) must be at least 32 and a multiple of each of num_heads ({list(num_heads)}), which must "
            "be even"
        )
