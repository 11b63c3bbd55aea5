"""Transformer blocks over the pixels of a picture, which also attend to a sequence of vectors.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv:2112.10752), section 3.3 and
appendix E.2. Layers have the names of the published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import as_pixels
from dlas.layers.token_norm import TokenNorm
from dlas.layers.zeroed import zeroed


class CrossAttention(nn.Module):
    """Attention of tokens to a sequence of vectors, or to themselves.

    Args:
        channels: of the tokens.
        heads: number of heads; divides the channels.
        context_channels: of the vectors; None for attention of the tokens to themselves.
        dropout: probability with which results are dropped.
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        seen = channels if context_channels is None else context_channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(seen, channels, bias=False)
        self.to_v = nn.Linear(seen, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What tokens see.

        Args:
            x: tokens, (B, T, channels).
            context: what they attend to, (B, S, context channels); None for themselves.
            mask: (B, S), true for the vectors that are there; a sample without any sees zeros. None for all of them.

        Returns:
            (B, T, channels).
        """
        context = x if context is None else context
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        if mask is None:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            mask = mask.bool()
            some = mask.any(dim=1, keepdim=True)
            # A row without a single vector would be 0 / 0.
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~some)[:, None, None])
            seen = seen * some[..., None, None].to(seen.dtype)
        return self.to_out(seen.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer with a gate by GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., out_channels)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with a gate between them, for each token."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention of tokens to themselves, then to the context, then an MLP, each in a residual branch."""

    def __init__(self, channels: int, heads: int, context_channels: int, dropout: float, low_precision: bool) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, heads, dropout=dropout)
        self.ff = FeedForward(channels, dropout)
        self.attn2 = CrossAttention(channels, heads, context_channels, dropout)
        self.norm1 = TokenNorm(channels, low_precision=low_precision)
        self.norm2 = TokenNorm(channels, low_precision=low_precision)
        self.norm3 = TokenNorm(channels, low_precision=low_precision)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """See `CrossAttention.forward`."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A residual branch: normalisation, a projection, transformer blocks over all pixels, a projection that starts at zero.

    Args:
        norm: normalises (B, channels, H, W).
        channels: of input and output.
        heads: number of heads; divides the channels.
        context_channels: of the vectors that pixels attend to.
        depth: transformer blocks.
        dropout: probability with which results within blocks are dropped.
        low_precision: precision of the blocks' normalisations, see `TokenNorm`.

    Raises:
        ValueError: `heads` does not divide the channels.
    """

    def __init__(
        self,
        norm: nn.Module,
        channels: int,
        heads: int,
        context_channels: int,
        depth: int = 1,
        dropout: float = 0.0,
        low_precision: bool = False,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads of attention")
        self.norm = norm
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_channels, dropout, low_precision) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, channels, H, W), (B, S, context channels) and (B, S), see `CrossAttention` -> (B, channels, H, W)."""
        tokens = as_pixels(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, context, mask)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
