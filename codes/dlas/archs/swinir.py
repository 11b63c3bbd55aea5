"""SwinIR, groups of Swin Transformer blocks for restoration.

Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021 (arXiv:2108.10257), section 3.1 and
figure 2.

The layers have the names of published checkpoints, in which the masks and indices of the windows are, too:
``layers.<i>.residual_group.blocks.<j>.attn.qkv``, ``...attn_mask``, ``...relative_position_index``.
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
    initialise_linear,
    residual_convolution,
)
from dlas.layers.upsample import SubPixelUpsample
from dlas.layers.windows import cut_windows, join_windows, relative_position_index, shift_mask
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt

WIDTH_BEFORE_UPSAMPLE = 64
"""Channels of the enlarging layers."""

UPSAMPLERS = ("pixelshuffle", "pixelshuffledirect", "nearest+conv", "")


class IndexedWindowAttention(WindowAttention):
    """Attention that keeps its own index of relative positions, as published checkpoints have it."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, heads: int, qkv_bias: bool) -> None:
        super().__init__(channels, window, heads, qkv_bias)
        self.register_buffer("relative_position_index", relative_position_index((window, window)))


class SwinBlock(nn.Module):
    """Attention within (shifted) windows, then a feed-forward network, each in a residual branch (figure 2b).

    Args:
        channels: width.
        side: of the pictures that the stored mask is for.
        window: side of a window.
        shift: by how much windows are shifted, 0 or half a window.
        heads: number of heads.
        mlp_ratio: width of the feed-forward network, in `channels`.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability with which a branch is left out in training.
    """

    attn_mask: Tensor | None

    def __init__(
        self,
        channels: int,
        side: int,
        window: int,
        shift: int,
        heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.side = side
        self.window = (window, window)
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = IndexedWindowAttention(channels, window, heads, qkv_bias)
        self.drop_path = StochasticDepth(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, int(channels * mlp_ratio))
        mask = shift_mask((side, side), self.window, (shift, shift)) if shift else None
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape; height and width are multiples of the window's."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        size = (x.shape[1], x.shape[2])
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(cut_windows(x, self.window), self.attn.relative_position_index, self._mask(size, x))
        x = join_windows(windows, self.window, size)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _mask(self, size: tuple[int, int], x: Tensor) -> Tensor | None:
        if size == (self.side, self.side) or self.attn_mask is None:
            return self.attn_mask
        return shift_mask(size, self.window, (self.shift, self.shift), x)


class _Blocks(nn.Module):
    def __init__(self, blocks: list[SwinBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class ResidualSwinGroup(nn.Module):
    """Blocks and a convolution within a residual branch (RSTB, figure 2a)."""

    def __init__(self, channels: int, blocks: list[SwinBlock], resi_connection: str) -> None:
        super().__init__()
        self.residual_group = _Blocks(blocks)
        self.conv = residual_convolution(channels, resi_connection)

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        features = x
        for block in self.residual_group.blocks:
            features = recompute(block, features, when=checkpointing, random=True)
        return x + as_map(self.conv(as_picture(features)))


class _PatchEmbed(nn.Module):
    """Holds the normalisation of the first features under the name it has in checkpoints."""

    def __init__(self, channels: int, patch_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if patch_norm else nn.Identity()


@ARCHS.register("SwinIR")
class SwinIR(nn.Module):
    """SwinIR; the defaults are the published network for classical x4 super-resolution (SwinIR-M).

    SwinIR-S (light): `embed_dim` 60, `depths` and `num_heads` of four times 6, `upsampler` pixelshuffledirect. SwinIR-L (real
    world): `embed_dim` 240, nine groups of 6 blocks with 8 heads, nearest+conv, 3conv. Denoising: `scale` 1, `upsampler` '',
    `img_size` 128. JPEG artefacts: as this with `img_size` 126, `window_size` 7, `img_range` 255.

    Args:
        in_chans: channels of input and output.
        img_size: height and width, in pixels of the input, for which the masks in the state dict are made; a multiple of
            `window_size`. Pictures of any size are taken.
        embed_dim: width, a multiple of each of `num_heads`.
        depths: blocks in each group.
        num_heads: heads of attention in each group.
        window_size: side of the windows.
        mlp_ratio: width of the feed-forward networks, in `embed_dim`.
        qkv_bias: whether queries, keys and values have a bias.
        patch_norm: normalise the first features.
        drop_path_rate: probability with which the last block's branches are left out of a training sample; it rises evenly up
            to it.
        scale: enlargement: 1, 2, 3, 4 or 8.
        img_range: the network works on pictures in [0, `img_range`].
        upsampler: how pictures are made of features: `pixelshuffle` (classical), `pixelshuffledirect` (light), `nearest+conv`
            (real world; scale 2, 4 or 8), or '' (restoration at scale 1: the result is added to the input).
        resi_connection: convolutions at the end of each group: `1conv` or `3conv`.

    Raises:
        ValueError: a value is not one of those named, or sizes do not go together.
    """

    constants = r".*\.attn_mask"

    def __init__(
        self,
        *,
        in_chans: PositiveInt = 3,
        img_size: PositiveInt = 64,
        embed_dim: PositiveInt = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: PositiveInt = 8,
        mlp_ratio: PositiveFloat = 2.0,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        drop_path_rate: Fraction = 0.1,
        scale: Literal[1, 2, 3, 4, 8] = 4,
        img_range: PositiveFloat = 1.0,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", ""] = "pixelshuffle",
        resi_connection: Literal["1conv", "3conv"] = "1conv",
    ) -> None:
        super().__init__()
        _check(img_size, embed_dim, depths, num_heads, window_size, scale, upsampler)
        self.checkpointing = False
        self.scale = scale
        self.window_size = window_size
        self.upsampler = upsampler
        self.range = InputRange(in_chans, img_range)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = _PatchEmbed(embed_dim, patch_norm)
        self.layers = nn.ModuleList()
        for heads, chances in zip(num_heads, rising(drop_path_rate, depths), strict=True):
            blocks = []
            for number, chance in enumerate(chances):
                # With one window a picture there is nothing to shift.
                shift = window_size // 2 if number % 2 and img_size > window_size else 0
                blocks.append(SwinBlock(embed_dim, img_size, window_size, shift, heads, mlp_ratio, qkv_bias, chance))
            self.layers.append(ResidualSwinGroup(embed_dim, blocks, resi_connection))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_convolution(embed_dim, resi_connection)
        self._build_reconstruction(embed_dim, in_chans)
        initialise_linear(self)

    def _build_reconstruction(self, channels: int, out_channels: int) -> None:
        width = WIDTH_BEFORE_UPSAMPLE
        if self.upsampler in ("pixelshuffle", "nearest+conv"):
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(inplace=True))
        if self.upsampler == "pixelshuffle":
            self.upsample: nn.Module = SubPixelUpsample(self.scale, width)
            self.conv_last = nn.Conv2d(width, out_channels, 3, padding=1)
        elif self.upsampler == "pixelshuffledirect":
            conv = nn.Conv2d(channels, out_channels * self.scale**2, 3, padding=1)
            self.upsample = nn.Sequential(conv, nn.PixelShuffle(self.scale))
        elif self.upsampler == "nearest+conv":
            for number in range(1, self.scale.bit_length()):
                self.add_module(f"conv_up{number}", nn.Conv2d(width, width, 3, padding=1))
            self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
            self.conv_last = nn.Conv2d(width, out_channels, 3, padding=1)
        else:
            self.conv_last = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges or restores pictures.

        Args:
            x: (batch, in_chans, height, width), RGB in [0, 1], of any size; padded to multiples of the window within.

        Returns:
            (batch, in_chans, height * scale, width * scale), not clamped.
        """
        height, width = x.shape[-2:]
        x = self.range.enter(pad_to_multiple(x, self.window_size))
        first = self.conv_first(x)
        features = first + self.conv_after_body(self._transform(first))
        picture = self._reconstruct(features)
        if not self.upsampler:
            picture = x + picture
        return self.range.leave(picture)[..., : height * self.scale, : width * self.scale]

    def _transform(self, features: Tensor) -> Tensor:
        features = self.patch_embed.norm(as_map(features))
        for layer in self.layers:
            features = layer(features, self.checkpointing and self.training)
        return as_picture(self.norm(features))

    def _reconstruct(self, features: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(features)))
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(features)
        if not self.upsampler:
            return self.conv_last(features)
        features = self.conv_before_upsample(features)
        for number in range(1, self.scale.bit_length()):
            features = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = F.leaky_relu_(self.get_submodule(f"conv_up{number}")(features), 0.2)
        return self.conv_last(F.leaky_relu_(self.conv_hr(features), 0.2))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"img_size": 8, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "scale": 2}
        return options, (torch.rand(2, 3, 8, 10),)


def _check(
    img_size: int,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: int,
    scale: int,
    upsampler: str,
) -> None:
    if upsampler not in UPSAMPLERS:
        raise ValueError(f"upsampler must be one of {', '.join(map(repr, UPSAMPLERS))}, got {upsampler!r}")
    if not upsampler and scale != 1:
        raise ValueError(f"upsampler '' is for scale 1, got scale {scale}; choose an upsampler")
    if upsampler == "nearest+conv" and scale not in (2, 4, 8):
        raise ValueError(f"upsampler 'nearest+conv' is for scale 2, 4 or 8, got scale {scale}")
    if len(depths) != len(num_heads):
        raise ValueError(f"depths has {len(depths)} entries and num_heads {len(num_heads)}; each is for one group")
    if any(embed_dim % heads for heads in num_heads):
        raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of each of num_heads ({list(num_heads)})")
    if img_size % window_size:
        raise ValueError(f"img_size ({img_size}) must be a multiple of window_size ({window_size})")
