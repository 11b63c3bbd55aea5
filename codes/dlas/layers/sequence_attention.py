"""Attention over the positions of a sequence with channels first, as TorToiSe's networks have it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import project, split_heads
from dlas.layers.group_norm import GroupNorm
from dlas.layers.relative_bias import RelativePositionBias
from dlas.layers.zeroed import zeroed


class SequenceAttention(nn.Module):
    """Normalisation, attention of all positions to all, a projection that starts at zero, and a residual.

    Args:
        channels: of input and output.
        heads: of attention; divides the channels.
        relative: whether scores have a learned bias for each distance.
        residual_normed: the normalised input takes part in the sum in place of the input itself. DL-Art-School has done so
            since June 2022; TorToiSe was trained before, and its published weights need the default.

    Raises:
        ValueError: `heads` does not divide the channels.
    """

    def __init__(self, channels: int, heads: int, *, relative: bool = False, residual_normed: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads of attention")
        self.heads, self.residual_normed = heads, residual_normed
        self.norm = GroupNorm(channels, "dlas")
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))
        self.relative_pos_embeddings = RelativePositionBias(heads, (channels / heads) ** 0.5) if relative else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> the same shape."""
        normed = self.norm(x)
        q, k, v = split_heads(project(normed.transpose(1, 2), self.qkv), self.heads, heads_first=True)
        bias = None if self.relative_pos_embeddings is None else self.relative_pos_embeddings(x.shape[-1]).to(q.dtype)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        residual = normed if self.residual_normed else x
        return residual + project(seen, self.proj_out).transpose(1, 2)
