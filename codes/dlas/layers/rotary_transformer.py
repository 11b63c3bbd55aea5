"""The encoders of CLVP and CVVP: a transformer with rotary positions, RMS normalisation and gated feed-forward layers.

The layers have the names of x-transformers (lucidrains), in the version that TorToiSe's checkpoints were written with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute

HEAD_CHANNELS = 64
"""Of each head, whatever the width."""

ROTATED = 32
"""Channels of each head that are rotated."""


class RMSNorm(nn.Module):
    """Division by the root mean square, and a learned factor a channel (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.g = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-8) * self.g


class RotaryPositions(nn.Module):
    """The angles of rotary positions (Su et al. 2021, arXiv:2104.09864), of `ROTATED` channels."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, ROTATED, 2) / ROTATED))

    def forward(self, length: int) -> Tensor:
        """(length, ROTATED); both halves of the channels have the same angles."""
        positions = torch.arange(length, device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        return torch.outer(positions, self.inv_freq).repeat(1, 2)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns the first channels of each position by its angles.

    Args:
        x: (..., T, channels).
        angles: (T, rotated channels); channel i turns together with channel i + half of them.
    """
    turned, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()
    return torch.cat((turned, rest), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Attention of all to all, with rotated queries, keys and also values, as these networks were trained.

    Args:
        channels: of input and output.
        heads: of `HEAD_CHANNELS` channels each.
        dropout: of the weights of attention.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        inner = heads * HEAD_CHANNELS
        self.heads, self.dropout = heads, dropout
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, angles: Tensor, keep: Tensor | None) -> Tensor:
        """(B, T, channels), (T, ROTATED), (B, T) or None -> (B, T, channels)."""
        q, k, v = (
            rotate(layer(x).unflatten(-1, (self.heads, HEAD_CHANNELS)).transpose(1, 2), angles)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        mask = None if keep is None else keep[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.to_out(seen.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """A linear layer whose first half is multiplied by the GELU of its second (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated layer and a linear one."""

    def __init__(self, channels: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(channels, inner), nn.Identity(), nn.Dropout(dropout), nn.Linear(inner, channels))

    def forward(self, x: Tensor, angles: Tensor, keep: Tensor | None) -> Tensor:
        """(B, T, channels) -> the same shape; positions do not see each other."""
        return self.net(x)


class Wrapped(nn.Module):
    """A branch whose weights have one more level in their names."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.wrap = branch

    def forward(self, x: Tensor, angles: Tensor, keep: Tensor | None) -> Tensor:
        """That of the branch."""
        return self.wrap(x, angles, keep)


class Normed(nn.ModuleList):
    """A branch behind its normalisation.

    Args:
        channels: of its input.
        branch: called with features, angles, and which positions may be seen.
    """

    def __init__(self, channels: int, branch: nn.Module) -> None:
        super().__init__([nn.ModuleList([RMSNorm(channels)]), branch])

    def forward(self, x: Tensor, angles: Tensor, keep: Tensor | None) -> Tensor:
        """What the branch says of x, (B, T, channels)."""
        norms, branch = self
        assert isinstance(norms, nn.ModuleList)
        return branch(norms[0](x), angles, keep)


class Layers(nn.Module):
    """Branches of attention and feed-forward layers in turn, each behind a normalisation and beside a residual."""

    def __init__(self, channels: int, depth: int, heads: int, ff_mult: float, dropout: float, wrapped: bool) -> None:
        super().__init__()
        self.rotary_pos_emb = RotaryPositions()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for branch in (Attention(channels, heads, dropout), FeedForward(channels, int(channels * ff_mult), dropout)):
                self.layers.append(Normed(channels, Wrapped(branch) if wrapped else branch))


class RotaryTransformer(nn.Module):
    """Encodes sequences; all positions see all others.

    Args:
        channels: of input and output.
        depth: pairs of attention and feed-forward layer.
        heads: of attention, 64 channels each.
        ff_mult: width of the feed-forward layers in `channels`.
        dropout: of attention and feed-forward layers.
        wrapped: whether the names of branches have a level ``wrap``, as CLVP's have.
    """

    def __init__(
        self, channels: int, depth: int, heads: int, *, ff_mult: float, dropout: float = 0.1, wrapped: bool = False
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.attn_layers = Layers(channels, depth, heads, ff_mult, dropout, wrapped)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encodes.

        Args:
            x: (B, T, channels).
            keep: (B, T), bool: the positions that may be seen; None: all.

        Returns:
            (B, T, channels). At positions that may not be seen it means nothing.
        """
        angles = self.attn_layers.rotary_pos_emb(x.shape[1])
        for layer in self.attn_layers.layers:
            x = x + recompute(layer, x, angles, keep, when=self.checkpointing and self.training, random=True)
        return self.norm(x)


def masked_mean(x: Tensor, keep: Tensor | None) -> Tensor:
    """Mean over the positions that are kept: (B, T, C), (B, T) -> (B, C)."""
    if keep is None:
        return x.mean(1)
    weight = keep[..., None].to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1)


def keep_some(shape: tuple[int, int], dropped: float, device: torch.device) -> Tensor:
    """A mask (B, T) that hides each position with the probability `dropped`, though never the first."""
    keep = torch.rand(shape, device=device) >= dropped
    keep[:, 0] = True
    return keep
