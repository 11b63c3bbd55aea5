"""GPT-2's transformer: each place sees those before it; with a cache, places come one by one at the cost of one.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Layers have the names, and weights the layout, of
the published checkpoints and of those that grew from them: ``h.<i>.ln_1``, ``attn.c_attn``, ``attn.c_proj``, ``ln_2``,
``mlp.c_fc``, ``mlp.c_proj``, ``ln_f``. Embeddings and heads belong to the network around it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute

INITIAL_STD = 0.02


class LayerCache:
    """Keys and values that a layer has seen."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes those of further places, (B, heads, T, C), and gives all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def repeat(self, times: int) -> None:
        """Each sample becomes as many, behind one another."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.repeat_interleave(times, dim=0)
            self.values = self.values.repeat_interleave(times, dim=0)


class Projection(nn.Module):
    """A linear layer whose weight lies as GPT-2's do: (in, out)."""

    def __init__(self, channels: int, out_channels: int, std: float = INITIAL_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., out_channels)."""
        return F.linear(x, self.weight.t(), self.bias)


class CausalAttention(nn.Module):
    """Attention of each place to itself and those before it.

    Args:
        channels: of input and output.
        heads: of attention.
        dropout: of its weights and of its output.
        std: of the last projection's initial weights.
    """

    def __init__(self, channels: int, heads: int, dropout: float, std: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = Projection(channels, 3 * channels)
        self.c_proj = Projection(channels, channels, std)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, channels) -> the same shape; with a cache, behind the places that it has seen."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(k, v)
        new, all_of_them = q.shape[2], k.shape[2]
        # `is_causal` aligns the first places of both; one that comes alone sees everything.
        behind = 1 < new < all_of_them
        mask = x.new_ones(new, all_of_them, dtype=torch.bool).tril(all_of_them - new) if behind else None
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=new == all_of_them)
        return F.dropout(self.c_proj(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two projections with a GELU between them, in the approximation by a hyperbolic tangent."""

    def __init__(self, channels: int, inner: int, dropout: float, std: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = Projection(channels, inner)
        self.c_proj = Projection(inner, channels, std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then a feed-forward network, each behind a normalisation and added to its input."""

    def __init__(self, channels: int, heads: int, inner: int, dropout: float, std: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels)
        self.attn = CausalAttention(channels, heads, dropout, std)
        self.ln_2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, inner, dropout, std)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, channels) -> the same shape."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class CausalTransformer(nn.Module):
    """The blocks, and the normalisation behind them.

    Args:
        channels: of the vectors.
        depth: blocks.
        heads: of attention.
        dropout: of the input, of attention's weights, and of what each block adds.
        inner: channels within feed-forward networks; None: four times `channels`.

    Raises:
        ValueError: `heads` does not divide the channels.
    """

    def __init__(self, channels: int, depth: int, heads: int, dropout: float = 0.0, inner: int | None = None) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads of attention")
        self.dropout = dropout
        # What is added to the residual stream starts smaller, the more additions there are (GPT-2, section 2.3).
        std = INITIAL_STD / (2 * depth) ** 0.5
        self.h = nn.ModuleList(Block(channels, heads, inner or 4 * channels, dropout, std) for _ in range(depth))
        self.ln_f = nn.LayerNorm(channels)

    def forward(self, x: Tensor, caches: list[LayerCache] | None = None, checkpointing: bool = False) -> Tensor:
        """Vectors that have seen those before them.

        Args:
            x: (B, T, channels), positions included.
            caches: of `empty_caches`: `x` comes behind what they have seen, which is seen, too.
            checkpointing: compute blocks again in the backward pass in place of keeping what is within.

        Returns:
            (B, T, channels), normalised.
        """
        x = F.dropout(x, self.dropout, self.training)
        for number, block in enumerate(self.h):
            x = recompute(block, x, when=checkpointing) if caches is None else block(x, caches[number])
        return self.ln_f(x)

    def empty_caches(self) -> list[LayerCache]:
        """For a sequence that begins."""
        return [LayerCache() for _ in self.h]
