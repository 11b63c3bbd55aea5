"""SPAN, a small convolutional network whose attention has no weights of its own.

Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPR workshops 2024 (arXiv:2311.12770),
section 3, figures 2 and 3.

Each 3x3 convolution is trained as a chain of three with a shortcut beside it, and is one convolution when it is used: composing
linear maps changes no result. The layers have the names of published checkpoints, which hold both forms: ``<layer>.sk`` and
``<layer>.conv.<k>`` are trained, ``<layer>.eval_conv`` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.input_range import InputRange
from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt

GAIN = 2
"""How much wider than its ends the chain of a convolution is."""

BLOCKS = 6


class ReparametrisedConv(nn.Module):
    """A 3x3 convolution, trained as 1x1, 3x3, 1x1 beside a 1x1 shortcut.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        fused: hold the one convolution only, and train that.
    """

    def __init__(self, in_channels: int, out_channels: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if not fused:
            self.sk = nn.Conv2d(in_channels, out_channels, 1)
            self.conv = nn.Sequential(
                nn.Conv2d(in_channels, GAIN * in_channels, 1),
                nn.Conv2d(GAIN * in_channels, GAIN * out_channels, 3),
                nn.Conv2d(GAIN * out_channels, out_channels, 1),
            )
        self.eval_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if not fused:
            self.eval_conv.requires_grad_(False)  # follows from the others

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height, width)."""
        if self.fused:
            return self.eval_conv(x)
        if self.training:
            return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)
        weight, bias = self.compose()
        return F.conv2d(x, weight, bias, padding=1)

    def compose(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the one convolution that does what the chain and the shortcut do."""
        narrow, middle, last = (cast(nn.Conv2d, layer) for layer in self.conv)
        assert narrow.bias is not None and middle.bias is not None and last.bias is not None and self.sk.bias is not None
        first, end = narrow.weight[..., 0, 0], last.weight[..., 0, 0]
        with torch.autocast(first.device.type, enabled=False):
            weight = torch.einsum("om,mnhw,ni->oihw", end, middle.weight, first) + F.pad(self.sk.weight, (1, 1, 1, 1))
            inner = middle.bias + torch.einsum("mnhw,n->m", middle.weight, narrow.bias)
            return weight, end @ inner + last.bias + self.sk.bias

    @torch.no_grad()
    def update(self) -> None:
        """Writes the composed convolution into `eval_conv`."""
        if not self.fused and not self.sk.weight.is_meta:
            weight, bias = self.compose()
            self.eval_conv.weight.copy_(weight)
            assert self.eval_conv.bias is not None
            self.eval_conv.bias.copy_(bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.update()  # so that what is saved is what was trained
        super()._save_to_state_dict(destination, prefix, keep_vars)


class AttentionBlock(nn.Module):
    """Three convolutions; their result, with the input added, is weighted by an odd function of the result (SPAB)."""

    def __init__(self, channels: int, fused: bool) -> None:
        super().__init__()
        self.c1_r = ReparametrisedConv(channels, channels, fused)
        self.c2_r = ReparametrisedConv(channels, channels, fused)
        self.c3_r = ReparametrisedConv(channels, channels, fused)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, height, width) -> the result, and the features behind the first activation."""
        first = F.silu(self.c1_r(x))
        last = self.c3_r(F.silu(self.c2_r(first)))
        return (last + x) * (torch.sigmoid(last) - 0.5), first


@ARCHS.register("SPAN")
class SPAN(nn.Module):
    """SPAN; the defaults are the published x4 network. SPAN-S has `feature_channels` 48.

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        feature_channels: width.
        scale: enlargement.
        norm: work on pictures in [0, `img_range`] of which `rgb_mean` was subtracted; if false, on pictures as they are.
        img_range: see `norm`.
        rgb_mean: see `norm`; one number a channel, for pictures in [0, 1]; not subtracted from other than 3 channels.
        fused: hold the one convolution that each chain amounts to, and nothing else; `fuse` makes such a network of a trained
            one.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        feature_channels: PositiveInt = 52,
        scale: PositiveInt = 4,
        norm: bool = True,
        img_range: PositiveFloat = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.range = InputRange(num_in_ch, img_range, rgb_mean) if norm else None
        if not norm:
            self.register_buffer("no_norm", torch.zeros(1))  # tells readers of the checkpoint
        self.conv_1 = ReparametrisedConv(num_in_ch, feature_channels, fused)
        for number in range(1, BLOCKS + 1):
            self.add_module(f"block_{number}", AttentionBlock(feature_channels, fused))
        self.conv_cat = nn.Conv2d(4 * feature_channels, feature_channels, 1)
        self.conv_2 = ReparametrisedConv(feature_channels, feature_channels, fused)
        self.upsampler = nn.Sequential(nn.Conv2d(feature_channels, num_out_ch * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1].

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        first = self.conv_1(x if self.range is None else self.range.enter(x))
        after_one = features = self.get_submodule("block_1")(first)[0]
        inner = features
        for number in range(2, BLOCKS + 1):
            features, inner = self.get_submodule(f"block_{number}")(features)
        # The features joined are those behind the first convolution, the first block, the last, and within the last.
        return self.upsampler(self.conv_cat(torch.cat((first, self.conv_2(features), after_one, inner), dim=1)))

    def fuse(self) -> SPAN:
        """A network that does the same with one convolution in place of each chain; this one stays as it is."""
        fused = copy.deepcopy(self)
        for layer in fused.modules():
            if isinstance(layer, ReparametrisedConv) and not layer.fused:
                layer.update()
                del layer.sk, layer.conv
                layer.fused = True
                layer.eval_conv.requires_grad_(True)
        return fused

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"feature_channels": 8, "scale": 2, "img_range": 1.0}, (torch.rand(2, 3, 12, 9),)
