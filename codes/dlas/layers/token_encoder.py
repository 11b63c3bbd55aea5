"""A sequence of tokens as one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenEncoder(nn.Module):
    """A transformer that sees in both directions, the mean of its vectors, and a projection of unit length.

    Args:
        vocabulary: tokens that there are.
        length: most tokens of a sequence.
        channels: of vectors.
        depth: blocks.
        heads: of attention.
        out_channels: of the result.
        padding: the token that fills sequences up, which nothing sees; None: all are seen.
    """

    def __init__(
        self, vocabulary: int, length: int, channels: int, depth: int, heads: int, out_channels: int, padding: int | None = None
    ) -> None:
        super().__init__()
        self.padding = padding
        self.tokens = nn.Embedding(vocabulary, channels)
        self.positions = nn.Parameter(0.01 * torch.randn(length, channels))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, heads, 4 * channels, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, out_channels, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) integers -> (B, out_channels), float32.

        Raises:
            ValueError: a sequence is too long.
        """
        if tokens.shape[1] > len(self.positions):
            raise ValueError(f"sequences of {tokens.shape[1]} tokens for a length of {len(self.positions)}")
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        seen = torch.ones_like(tokens, dtype=torch.bool) if self.padding is None else tokens != self.padding
        seen = seen | ~seen.any(dim=1, keepdim=True)  # attention to nothing has no value
        for block in self.blocks:
            x = block(x, src_key_padding_mask=~seen)
        weights = seen.unsqueeze(-1) / seen.sum(dim=1)[:, None, None]
        pooled = (self.norm(x) * weights).sum(dim=1)
        return nn.functional.normalize(self.projection(pooled).float(), dim=-1)
