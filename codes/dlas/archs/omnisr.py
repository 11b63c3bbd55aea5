"""OmniSR, a light network that attends to places and to channels, within windows and across them.

Wang et al., "Omni Aggregation Networks for Lightweight Image Super-Resolution", CVPR 2023 (arXiv:2304.10244), section 3,
figures 2 to 4.

The layers have the names of published checkpoints: ``residual_layer.<i>.residual_layer.<j>.layer.<k>.fn``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.padding import pad_to_multiple
from dlas.layers.recompute import recompute
from dlas.layers.swin import as_map, as_picture, attend, position_bias
from dlas.layers.windows import cut_windows, join_windows, relative_position_index
from dlas.registry import ARCHS
from dlas.types import PositiveInt

HEADS = 4
"""Heads of all attentions."""

SMALLEST = 16
"""Least height and width for the pooling of the attention at the end of each group; smaller pictures are padded."""


class ChannelNorm(nn.Module):
    """Normalises each place over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return as_picture(F.layer_norm(as_map(x), self.weight.shape, self.weight, self.bias, eps=1e-6))


class PreNormResidual(nn.Module):
    """x + fn(norm(x))."""

    def __init__(self, norm: nn.Module, fn: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x + self.fn(self.norm(x))


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a number in (0, 1) made from the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 4
        linear = (nn.Linear(channels, hidden, bias=False), nn.SiLU(), nn.Linear(hidden, channels, bias=False), nn.Sigmoid())
        self.gate = nn.Sequential(nn.Identity(), *linear)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x * self.gate(x.mean((2, 3)))[..., None, None]


class LocalConvolution(nn.Module):
    """A depth-wise convolution between two of 1x1, with the channels weighted, in a residual branch (LCB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.GELU(),
            SqueezeExcitation(channels),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x + self.fn(x)


class PlaceAttention(nn.Module):
    """Attention between places: of a window (meso scale), or of a grid over the whole picture (global scale).

    Args:
        channels: width.
        window: side of a window, or rows and columns of a grid.
        grid: which of the two.
        with_pe: whether relative positions have a bias.
    """

    rel_pos_indices: Tensor

    def __init__(self, channels: int, window: int, grid: bool, with_pe: bool) -> None:
        super().__init__()
        self.window = (window, window)
        self.grid = grid
        self.scale = (channels // HEADS) ** -0.5
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels, bias=False))
        self.rel_pos_bias = nn.Embedding((2 * window - 1) ** 2, HEADS) if with_pe else None
        self.register_buffer("rel_pos_indices", relative_position_index(self.window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, channels) -> the same shape."""
        height, width = x.shape[1:3]
        windows = _cut_grid(x, self.window[0]) if self.grid else cut_windows(x, self.window)
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(2, 3) for each in self.to_qkv(windows).chunk(3, dim=-1))
        if self.rel_pos_bias is None:
            bias = q.new_zeros(())
        else:
            bias = position_bias(self.rel_pos_bias.weight, self.rel_pos_indices)
        windows = self.to_out(attend(q * self.scale, k, v, bias).transpose(2, 3).flatten(3))
        size = (height, width)
        return _join_grid(windows, self.window[0], size) if self.grid else join_windows(windows, self.window, size)


class PlaceBranch(nn.Module):
    """Attention between places, in a residual branch."""

    def __init__(self, channels: int, window: int, grid: bool, with_pe: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fn = PlaceAttention(channels, window, grid, with_pe)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x + as_picture(self.fn(self.norm(as_map(x))))


class ChannelAttention(nn.Module):
    """Attention between channels: over the places of a window, or over those with the same place in every window.

    Args:
        channels: width.
        window: side of a window.
        grid: the second of the two.
    """

    def __init__(self, channels: int, window: int, grid: bool) -> None:
        super().__init__()
        self.window = (window, window)
        self.grid = grid
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        size = (x.shape[2], x.shape[3])
        windows = cut_windows(as_map(self.qkv_dwconv(self.qkv(x))), self.window)
        if self.grid:
            windows = windows.transpose(1, 2)
        # batch, windows, heads, channels of a head, places
        q, k, v = (each.unflatten(-1, (HEADS, -1)).permute(0, 1, 3, 4, 2) for each in windows.chunk(3, dim=-1))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        windows = (weights.to(v.dtype) @ v).permute(0, 1, 4, 2, 3).flatten(3)
        if self.grid:
            windows = windows.transpose(1, 2)
        return self.project_out(as_picture(join_windows(windows, self.window, size)))


class GatedFeedForward(nn.Module):
    """Two depth-wise convolved halves, of which one, through a GELU, weights the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        gate, kept = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * kept)


class OmniBlock(nn.Module):
    """Local convolution, then attention to places and to channels within windows, then both across them (figure 2).

    The numbers of the layers are those of published checkpoints, in which rearrangements count.
    """

    def __init__(self, channels: int, window: int, with_pe: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [LocalConvolution(channels)]
        for grid in (False, True):
            layers += [
                nn.Identity(),
                PlaceBranch(channels, window, grid, with_pe),
                nn.Identity(),
                PreNormResidual(ChannelNorm(channels), GatedFeedForward(channels)),
                PreNormResidual(ChannelNorm(channels), ChannelAttention(channels, window, grid)),
                PreNormResidual(ChannelNorm(channels), GatedFeedForward(channels)),
            ]
        self.layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return self.layer(x)


class EnhancedSpatialAttention(nn.Module):
    """Multiplies each element by a number in (0, 1) made from its surroundings, near and far.

    Source: Liu et al., "Residual Feature Aggregation Network for Image Super-Resolution", CVPR 2020, section 3.3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 4, 16)
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv_f = nn.Conv2d(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv3 = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.conv4 = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        near = self.conv1(x)
        far = self.conv3(F.max_pool2d(self.conv2(near), kernel_size=7, stride=3))
        far = F.interpolate(far, x.shape[-2:], mode="bilinear", align_corners=False)
        return x * self.conv4(far + self.conv_f(near)).sigmoid()


class OmniGroup(nn.Module):
    """Blocks and a 1x1 convolution within a residual branch, then spatial attention (OSAG)."""

    def __init__(self, channels: int, block_num: int, window: int, with_pe: bool, bias: bool) -> None:
        super().__init__()
        blocks = (OmniBlock(channels, window, with_pe) for _ in range(block_num))
        self.residual_layer = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 1, bias=bias))
        self.esa = EnhancedSpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return self.esa(x + self.residual_layer(x))


@ARCHS.register("OmniSR")
class OmniSR(nn.Module):
    """OmniSR; the defaults are the published x4 network.

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        num_feat: width, a multiple of 4.
        block_num: blocks in each group.
        res_num: groups.
        pe: whether relative positions have a bias.
        window_size: side of the windows.
        scale: enlargement.
        bias: whether the convolutions outside of the blocks have a bias.

    Raises:
        ValueError: `num_feat` is no multiple of 4.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        num_feat: PositiveInt = 64,
        block_num: PositiveInt = 1,
        res_num: PositiveInt = 5,
        pe: bool = True,
        window_size: PositiveInt = 8,
        scale: PositiveInt = 4,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_feat % HEADS:
            raise ValueError(f"num_feat must be a multiple of {HEADS}, the number of heads; got {num_feat}")
        self.checkpointing = False
        self.scale = scale
        self.window_size = window_size
        self.residual_layer = nn.Sequential(*(OmniGroup(num_feat, block_num, window_size, pe, bias) for _ in range(res_num)))
        self.input = nn.Conv2d(num_in_ch, num_feat, 3, padding=1, bias=bias)
        self.output = nn.Conv2d(num_feat, num_feat, 3, padding=1, bias=bias)
        self.up = nn.Sequential(nn.Conv2d(num_feat, num_out_ch * scale**2, 3, padding=1, bias=bias), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1], of any size; padded with zeros to multiples of the window.

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        height, width = x.shape[-2:]
        first = self.input(pad_to_multiple(x, self.window_size, minimum=SMALLEST, mode="constant"))
        features = first
        for group in self.residual_layer:
            features = recompute(group, features, when=self.checkpointing and self.training)
        return self.up(first + self.output(features))[..., : height * self.scale, : width * self.scale]

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the counters of operations that some published checkpoints hold (``total_ops``, ``total_params``)."""
        counters = ("total_ops", "total_params")
        return {key: value for key, value in state_dict.items() if key.rpartition(".")[2] not in counters}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 8, "res_num": 2, "window_size": 4, "scale": 2}, (torch.rand(2, 3, 16, 18),)


def _cut_grid(x: Tensor, side: int) -> Tensor:
    """(batch, height, width, channels) -> (batch, grids, side * side, channels): each grid has one place of every part."""
    batch, height, width, channels = x.shape
    x = x.view(batch, side, height // side, side, width // side, channels)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, side**2, channels)


def _join_grid(grids: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Undoes `_cut_grid`, given height and width of the map."""
    batch, channels = grids.shape[0], grids.shape[-1]
    height, width = size
    x = grids.view(batch, height // side, width // side, side, side, channels)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, height, width, channels)
