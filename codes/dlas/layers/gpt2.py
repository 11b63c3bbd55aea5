"""GPT-2's stack of causal attention, for inputs that are embedded already, with the names of Hugging Face's weights.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute

INIT_STD = 0.02


class KeysAndValues:
    """What attention has seen so far, so that a further position costs one position.

    Memory is taken once, for the whole length.

    Args:
        layers: of the stack.
        shape: (batch, heads, most positions, channels of a head).
        like: gives device and type.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self._memory = like.new_empty((layers, 2, *shape))
        self._length = 0

    @property
    def length(self) -> int:
        """Positions seen."""
        return self._length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds those of new positions, (batch, heads, new, channels); all that were seen, new ones included.

        The positions count as seen after `advance`.
        """
        end = self._length + keys.shape[2]
        room = self._memory.shape[4]
        if end > room:
            raise ValueError(f"a cache of {room} positions got position {end}")
        kept = self._memory[layer, :, :, :, :end]
        kept[0, :, :, self._length :] = keys
        kept[1, :, :, self._length :] = values
        return kept[0], kept[1]

    def advance(self, positions: int) -> None:
        """Counts positions that every layer has added."""
        self._length += positions

    def expand(self, copies: int) -> None:
        """Gives each row of a batch `copies` successors next to each other, which go on differently."""
        self._memory = self._memory.repeat_interleave(copies, dim=2)


class LinearInOut(nn.Module):
    """A linear layer whose weight is (in, out), as Hugging Face's GPT-2 keeps it."""

    def __init__(self, in_channels: int, out_channels: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_channels, out_channels) * std)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight.T, self.bias)


class CausalAttention(nn.Module):
    """Attention of each position to itself and those before."""

    def __init__(self, channels: int, heads: int, dropout: float, std: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.c_attn = LinearInOut(channels, 3 * channels)
        self.c_proj = LinearInOut(channels, channels, std)

    def forward(self, x: Tensor, past: KeysAndValues | None, layer: int) -> Tensor:
        """(B, T, channels) -> the same shape; with `past`, the T positions follow those seen."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        if past is not None:
            k, v = past.append(layer, k, v)
        new, known = q.shape[2], k.shape[2]
        # `is_causal` aligns the first positions of both; one that comes alone sees everything.
        mask = x.new_ones(new, known, dtype=torch.bool).tril(known - new) if 1 < new < known else None
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=new == known)
        return F.dropout(self.c_proj(seen.transpose(1, 2).flatten(2)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with a GELU (its tanh approximation) in between."""

    def __init__(self, channels: int, dropout: float, std: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = LinearInOut(channels, 4 * channels)
        self.c_proj = LinearInOut(4 * channels, channels, std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """Attention and an MLP, each behind a normalisation and beside a residual."""

    def __init__(self, channels: int, heads: int, dropout: float, std: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels)
        self.attn = CausalAttention(channels, heads, dropout, std)
        self.ln_2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, dropout, std)

    def forward(self, x: Tensor, past: KeysAndValues | None = None, layer: int = 0) -> Tensor:
        """(B, T, channels) -> the same shape."""
        x = x + self.attn(self.ln_1(x), past, layer)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The stack and its last normalisation.

    Args:
        channels: of input and output.
        layers: blocks.
        heads: of attention; divides the channels.
        dropout: of the input, of attention, and of what each branch adds.

    Raises:
        ValueError: `heads` does not divide the channels.
    """

    def __init__(self, channels: int, layers: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads of attention")
        self.channels, self.heads, self.dropout = channels, heads, dropout
        self.checkpointing = False
        std = INIT_STD / (2 * layers) ** 0.5
        self.h = nn.ModuleList(Block(channels, heads, dropout, std) for _ in range(layers))
        self.ln_f = nn.LayerNorm(channels)

    def forward(self, x: Tensor, past: KeysAndValues | None = None) -> Tensor:
        """(B, T, channels) -> the same shape; with `past`, positions follow what it has seen, and are added to it."""
        x = F.dropout(x, self.dropout, self.training)
        for layer, block in enumerate(self.h):
            if past is None:
                x = recompute(block, x, when=self.checkpointing and self.training, random=True)
            else:
                x = block(x, past, layer)
        if past is not None:
            past.advance(x.shape[1])
        return self.ln_f(x)

    def cache(self, batch: int, positions: int, like: Tensor) -> KeysAndValues:
        """An empty cache for so many positions, with the device and type of `like`."""
        return KeysAndValues(len(self.h), (batch, self.heads, positions, self.channels // self.heads), like)
