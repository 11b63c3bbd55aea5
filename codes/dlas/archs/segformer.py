"""SegFormer: a hierarchical transformer (MiT) and a decoder of linear layers, for a map of classes or of features.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021
(arXiv:2105.15203), section 3 and table 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.byol import without_byol
from dlas.layers.recompute import recompute
from dlas.layers.stochastic_depth import StochasticDepth, rising
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

_EPS = 1e-6
_PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Kernel and stride of the convolution before each stage."""


class ReducedAttention(nn.Module):
    """Attention of every place to a map that is `reduction` times smaller."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H * W, channels) -> the same shape."""
        source = x
        if self.reduction > 1:
            source = self.norm(self.sr(_as_map(x, size)).flatten(2).transpose(1, 2))
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj(found)
        return projected


class MixFeedForward(nn.Module):
    """Two linear layers with a 3 x 3 depthwise convolution between them, which tells places apart."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H * W, channels) -> the same shape."""
        hidden = self.dwconv(_as_map(self.fc1(x), size)).flatten(2).transpose(1, 2)
        found: Tensor = self.fc2(F.gelu(hidden))
        return found


class Block(nn.Module):
    """Attention and feed-forward, each behind a normalisation and beside a shortcut."""

    def __init__(self, channels: int, heads: int, reduction: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_EPS)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = MixFeedForward(channels, mlp_ratio * channels)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x), size))
        return _as_map(x, size)


class Stage(nn.Module):
    """A convolution that makes the map smaller, then blocks."""

    def __init__(
        self, inside: int, channels: int, patch: tuple[int, int], heads: int, reduction: int, mlp_ratio: int, drops: list[float]
    ) -> None:
        super().__init__()
        kernel, stride = patch
        self.proj = nn.Conv2d(inside, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(Block(channels, heads, reduction, mlp_ratio, drop) for drop in drops)
        self.last_norm = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, x: Tensor, again: bool) -> Tensor:
        """(B, inside, H, W) -> (B, channels, H / stride, W / stride); `again`: recompute blocks in the backward pass."""
        x = _normalised(self.norm, self.proj(x))
        for block in self.blocks:
            x = recompute(block, x, when=again, random=True)
        return _normalised(self.last_norm, x)


class Tail(nn.Module):
    """The maps of all stages as one: linear layers, the size of the first, a linear layer."""

    def __init__(self, channels: list[int], out: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Conv2d(each, out, 1) for each in channels)
        self.fuse = nn.Sequential(nn.Conv2d(len(channels) * out, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, channels, H / 4, W / 4) and smaller -> (B, out, H / 4, W / 4)."""
        size = maps[0].shape[-2:]
        parts = [linear(each) for linear, each in zip(self.linears, maps, strict=True)]
        parts = [F.interpolate(part, size, mode="bilinear", align_corners=False) for part in parts]
        fused: Tensor = self.fuse(torch.cat(parts[::-1], dim=1))
        return fused


@ARCHS.register("segformer")
class SegFormer(nn.Module):
    """SegFormer; the defaults are B0.

    Its layer `tail` gives features of each fourth pixel, which `pixel_local_byol` trains. DL-Art-School's network of this name
    was another one, and is lost: files of its weights do not fit.

    `path.pretrain` takes checkpoints of a `pixel_local_byol` or `byol` whose `subnet` this network was.

    Args:
        num_classes: give logits for as many classes, at a quarter of the picture's size; not given: the tail's features.
        embed_dims: channels of the stages.
        depths: blocks of each.
        num_heads: heads of attention of each.
        reductions: by how much attention's keys are smaller than its queries, in each.
        mlp_ratio: width of feed-forward layers, in channels.
        decoder_dim: channels of the tail.
        drop_path: highest probability with which a branch is left out (stochastic depth).
        dropout: probability with which a feature is dropped before the classes.

    Raises:
        ValueError: the lists are not of the same length, one to four, or channels cannot be divided among heads.
    """

    def __init__(
        self,
        *,
        num_classes: PositiveInt | None = None,
        embed_dims: list[PositiveInt] = [32, 64, 160, 256],  # noqa: B006 -- defaults of options are literals
        depths: list[PositiveInt] = [2, 2, 2, 2],  # noqa: B006
        num_heads: list[PositiveInt] = [1, 2, 5, 8],  # noqa: B006
        reductions: list[PositiveInt] = [8, 4, 2, 1],  # noqa: B006
        mlp_ratio: PositiveInt = 4,
        decoder_dim: PositiveInt = 256,
        drop_path: Fraction = 0.1,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        lengths = {len(each) for each in (embed_dims, depths, num_heads, reductions)}
        if len(lengths) != 1 or not lengths <= {1, 2, 3, 4}:
            raise ValueError(f"embed_dims, depths, num_heads and reductions must be one to four numbers each, got {lengths}")
        for channels, heads in zip(embed_dims, num_heads, strict=True):
            if channels % heads:
                raise ValueError(f"embed_dims: {channels} channels cannot be divided among {heads} heads (num_heads)")
        self.checkpointing = False
        inside = [3, *embed_dims[:-1]]
        drops = rising(drop_path, depths)
        self.stages = nn.ModuleList(
            Stage(before, channels, patch, heads, reduction, mlp_ratio, drop)
            for before, channels, patch, heads, reduction, drop in zip(
                inside, embed_dims, _PATCHES, num_heads, reductions, drops, strict=False
            )
        )
        self.tail = Tail(embed_dims, decoder_dim)
        self.head = None
        if num_classes is not None:
            self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(decoder_dim, num_classes, 1))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), less ImageNet's mean and divided by its deviation, H and W at least 32.

        Returns:
            Features (B, decoder_dim, H / 4, W / 4), or logits (B, num_classes, H / 4, W / 4); sizes are rounded up.
        """
        maps = []
        for stage in self.stages:
            x = stage(x, self.checkpointing and self.training)
            maps.append(x)
        features: Tensor = self.tail(maps)
        return features if self.head is None else self.head(features)

    @staticmethod
    def rename_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Of a checkpoint of `pixel_local_byol` or `byol` the online sub-network."""
        return without_byol(state_dict)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"embed_dims": [4, 8], "depths": [1, 2], "num_heads": [1, 2], "reductions": [2, 1], "decoder_dim": 8}
        return options, (torch.randn(2, 3, 32, 40),)


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.transpose(1, 2).unflatten(2, size)


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    normalised: Tensor = norm(x.movedim(1, -1)).movedim(-1, 1)
    return normalised


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
