"""PLKSR and RealPLKSR: one large kernel over a part of the channels in each block.

Lee et al., "Partial Large Kernel CNNs for Efficient Super-Resolution", 2024 (arXiv:2404.11848), section 3, figure 3.
RealPLKSR is the form that neosr and traiNNer-redux train for real photographs: normalised blocks, Mish, and a choice of
upsampler: Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023 (arXiv:2308.15085), equations 1 to 5.

The layers have the names of published checkpoints: ``feats.<i>.lk.conv``, ``feats.<i>.attn.f.0``, and
``feats.<i>.channe_mixer`` (so spelt) in PLKSR, ``feats.<i>.channel_mixer`` in RealPLKSR.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

INITIAL_DEVIATION = 0.02
"""Most kernels are drawn from a truncated normal distribution of this width."""

MIXERS = {"CCM": (3, 1), "ICCM": (1, 3), "DCCM": (3, 3)}
"""Sides of the two kernels of a channel mixer (table 5)."""


def _conv(in_channels: int, out_channels: int, side: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, side, padding=side // 2)
    nn.init.trunc_normal_(conv.weight, std=INITIAL_DEVIATION)
    return conv


def _mixer(channels: int, sides: tuple[int, int], activation: nn.Module) -> nn.Sequential:
    """Two convolutions, twice as wide between them (the first is drawn as torch draws it)."""
    widen = nn.Conv2d(channels, 2 * channels, sides[0], padding=sides[0] // 2)
    return nn.Sequential(widen, activation, _conv(2 * channels, channels, sides[1]))


class PartialLargeKernel(nn.Module):
    """A convolution of the first channels; the others pass."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = _conv(channels, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, all channels, height, width) -> the same shape."""
        return torch.cat((self.conv(x[:, : self.channels]), x[:, self.channels :]), dim=1)


class ElementwiseAttention(nn.Module):
    """Weights each element by a number in (0, 1) made from its neighbourhood."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(_conv(channels, channels, 3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x * self.f(x)


class PLKBlock(nn.Module):
    """Channel mixer, partial large kernel, attention and a 1x1 convolution within a residual branch (figure 3b)."""

    def __init__(self, dim: int, ccm_type: str, kernel_size: int, split_ratio: float, use_ea: bool) -> None:
        super().__init__()
        self.channe_mixer = _mixer(dim, MIXERS[ccm_type], nn.GELU())
        self.lk = PartialLargeKernel(int(dim * split_ratio), kernel_size)
        self.attn = ElementwiseAttention(dim) if use_ea else nn.Identity()
        self.refine = _conv(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> the same shape."""
        return x + self.refine(self.attn(self.lk(self.channe_mixer(x))))


class LayerNorm2d(nn.Module):
    """Normalises each pixel over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class RealPLKBlock(nn.Module):
    """The block of RealPLKSR, normalised at its beginning (over channels) or at its end (over groups of them)."""

    def __init__(
        self, dim: int, kernel_size: int, split_ratio: float, use_ea: bool, norm_groups: int, layer_norm: bool
    ) -> None:
        super().__init__()
        self.layer_norm = LayerNorm2d(dim) if layer_norm else nn.Identity()
        self.channel_mixer = _mixer(dim, MIXERS["DCCM"], nn.Mish())
        self.lk = PartialLargeKernel(int(dim * split_ratio), kernel_size)
        self.attn = ElementwiseAttention(dim) if use_ea else nn.Identity()
        self.refine = _conv(dim, dim, 1)
        self.norm = nn.Identity() if layer_norm else nn.GroupNorm(norm_groups, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> the same shape."""
        return x + self.norm(self.refine(self.attn(self.lk(self.channel_mixer(self.layer_norm(x))))))


class DySample(nn.Module):
    """Enlarges by sampling the features bilinearly at places that are learned.

    Args:
        in_channels: of the features, a multiple of `groups`.
        out_channels: of the picture.
        scale: enlargement.
        groups: parts of the channels that are sampled at places of their own.

    Source: arXiv:2308.15085, section 3.2 (with the dynamic scope factor).
    """

    init_pos: Tensor

    def __init__(self, in_channels: int, out_channels: int, scale: int, groups: int) -> None:
        super().__init__()
        self.scale = scale
        self.groups = groups
        self.end_conv = nn.Conv2d(in_channels, out_channels, 1) if scale != 1 else nn.Identity()
        self.offset = _conv(in_channels, 2 * groups * scale**2, 1)
        self.scope = nn.Conv2d(in_channels, 2 * groups * scale**2, 1, bias=False)
        nn.init.zeros_(self.scope.weight)
        # Where, from the centre of its input pixel, each output pixel lies: (x, y) x groups x rows x columns.
        steps = (torch.arange(scale) - (scale - 1) / 2) / scale
        across = steps.expand(scale, scale)
        start = torch.stack((across, across.t()))[:, None].expand(2, groups, scale, scale)
        self.register_buffer("init_pos", start.reshape(1, -1, 1, 1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height * scale, width * scale)."""
        batch, _, height, width = x.shape
        offset = self.offset(x) * self.scope(x).sigmoid() * 0.5 + self.init_pos
        offset = F.pixel_shuffle(offset, self.scale).view(batch, 2, self.groups, height * self.scale, width * self.scale)
        places = []
        for axis, size in ((0, width), (1, height)):
            centre = torch.arange(size, device=x.device, dtype=offset.dtype) + 0.5
            centre = centre.repeat_interleave(self.scale)
            centre = centre if axis == 0 else centre[:, None]
            places.append(2 * (offset[:, axis] + centre) / size - 1)
        grid = torch.stack(places, dim=-1).flatten(0, 1)
        features = x.reshape(batch * self.groups, -1, height, width).to(grid.dtype)
        sampled = F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return self.end_conv(sampled.view(batch, -1, height * self.scale, width * self.scale))


class _PLKNet(nn.Module):
    """What both networks are: layers one after another, the repeated input added, and an upsampler."""

    feats: nn.Sequential
    to_img: nn.Module

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, channels, height, width), RGB in [0, 1].

        Returns:
            (batch, channels, height * scale, width * scale), not clamped.
        """
        features = x
        for layer in self.feats:
            # Kept are the results of the blocks; what is within them, twice as wide, is computed again.
            inner = self.checkpointing and self.training and isinstance(layer, PLKBlock | RealPLKBlock)
            features = recompute(layer, features, when=inner)
        return self.to_img(features + x.repeat_interleave(self.scale**2, dim=1))


@ARCHS.register("PLKSR")
class PLKSR(_PLKNet):
    """PLKSR; the defaults are the published x4 network. PLKSR-tiny: `n_blocks` 12, `kernel_size` 13, `use_ea` false.

    Args:
        dim: width.
        n_blocks: blocks.
        scale: enlargement.
        ccm_type: kernels of the channel mixers: 3x3 and 1x1 (`CCM`), 1x1 and 3x3 (`ICCM`), or 3x3 twice (`DCCM`).
        kernel_size: side of the large kernels, odd.
        split_ratio: share of the channels that they see.
        use_ea: whether blocks have attention.

    Raises:
        ValueError: `ccm_type` is another, `kernel_size` is even, or no channel is left for the large kernels.
    """

    def __init__(
        self,
        *,
        dim: PositiveInt = 64,
        n_blocks: PositiveInt = 28,
        scale: PositiveInt = 4,
        ccm_type: Literal["CCM", "ICCM", "DCCM"] = "DCCM",
        kernel_size: PositiveInt = 17,
        split_ratio: Fraction = 0.25,
        use_ea: bool = True,
    ) -> None:
        super().__init__(scale)
        if ccm_type not in MIXERS:
            raise ValueError(f"ccm_type must be one of {', '.join(MIXERS)}, got {ccm_type!r}")
        _check(dim, kernel_size, split_ratio)
        blocks = (PLKBlock(dim, ccm_type, kernel_size, split_ratio, use_ea) for _ in range(n_blocks))
        self.feats = nn.Sequential(_conv(3, dim, 3), *blocks, _conv(dim, 3 * scale**2, 3))
        self.to_img = nn.PixelShuffle(scale)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"dim": 8, "n_blocks": 2, "kernel_size": 5, "scale": 2}, (torch.rand(2, 3, 12, 9),)


@ARCHS.register("RealPLKSR")
class RealPLKSR(_PLKNet):
    """RealPLKSR; the defaults are neosr's x4 network.

    Args:
        in_ch: input channels.
        out_ch: output channels.
        dim: width.
        n_blocks: blocks.
        scale: enlargement.
        kernel_size: side of the large kernels, odd.
        split_ratio: share of the channels that they see.
        use_ea: whether blocks have attention.
        norm_groups: groups of the normalisation at the end of each block.
        layer_norm: normalise over the channels of each pixel at the beginning of each block in place of that (traiNNer-redux).
        dropout: probability with which a channel is left out before the last convolution.
        upsampler: `pixelshuffle`, or `dysample` (learned places).

    Raises:
        ValueError: `upsampler` is another, input and output channels differ, `kernel_size` is even, or no channel is left for
            the large kernels.
    """

    def __init__(
        self,
        *,
        in_ch: PositiveInt = 3,
        out_ch: PositiveInt = 3,
        dim: PositiveInt = 64,
        n_blocks: PositiveInt = 28,
        scale: PositiveInt = 4,
        kernel_size: PositiveInt = 17,
        split_ratio: Fraction = 0.25,
        use_ea: bool = True,
        norm_groups: PositiveInt = 4,
        layer_norm: bool = False,
        dropout: Fraction = 0.0,
        upsampler: Literal["pixelshuffle", "dysample"] = "pixelshuffle",
    ) -> None:
        super().__init__(scale)
        if upsampler not in ("pixelshuffle", "dysample"):
            raise ValueError(f"upsampler must be pixelshuffle or dysample, got {upsampler!r}")
        if in_ch != out_ch:
            raise ValueError(f"the input is added to the output, so in_ch ({in_ch}) must be out_ch ({out_ch})")
        _check(dim, kernel_size, split_ratio)
        channels = out_ch * scale**2
        self.feats = nn.Sequential(
            _conv(in_ch, dim, 3),
            *(RealPLKBlock(dim, kernel_size, split_ratio, use_ea, norm_groups, layer_norm) for _ in range(n_blocks)),
            nn.Dropout2d(dropout),
            _conv(dim, channels, 3),
        )
        if upsampler == "dysample":
            self.to_img: nn.Module = DySample(channels, out_ch, scale, groups=out_ch if scale % 2 else 4)
        else:
            self.to_img = nn.PixelShuffle(scale)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"dim": 8, "n_blocks": 2, "kernel_size": 5, "scale": 2}, (torch.rand(2, 3, 12, 9),)


def _check(dim: int, kernel_size: int, split_ratio: float) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    if not 0 < int(dim * split_ratio) <= dim:
        raise ValueError(f"split_ratio {split_ratio} of {dim} channels leaves none for the large kernels")
