"""How much attention prefers some distances between positions to others, learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BUCKETS = 32
MAX_DISTANCE = 64


def distance_buckets(
    length: int, device: torch.device | None = None, *, buckets: int = BUCKETS, most: int = MAX_DISTANCE
) -> Tensor:
    """Which bucket the distance of each pair of positions falls in.

    Half of the buckets are for keys at or before the query and half for keys behind it. Of each half, the first half holds one
    distance a bucket, and the others hold distances up to `most`, evenly spaced in their logarithm.

    Args:
        length: number of positions.
        device: of the result.
        buckets: how many there are, a multiple of 4.
        most: from this distance on all are in one bucket.

    Returns:
        (length, length), int64: query, key.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020
    (arXiv:1910.10683), section 2.1.
    """
    position = torch.arange(length, device=device)
    offset = position[None, :] - position[:, None]
    half, distance = buckets // 2, offset.abs()
    exact = half // 2
    share = torch.log(distance.float().clamp(min=1) / exact) / math.log(most / exact)
    far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class RelativePositionBias(nn.Module):
    """A number for each head and bucket of distances, to be added to the scores of attention.

    Args:
        heads: of the attention.
        scale: by which the learned numbers are multiplied.
    """

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, length: int) -> Tensor:
        """Biases (1, heads, length, length)."""
        table = self.relative_attention_bias.weight
        bias = nn.functional.embedding(distance_buckets(length, table.device), table)
        return bias.permute(2, 0, 1)[None] * self.scale
