"""A small text encoder that is trained with what it conditions.

A table of embeddings with learned places, and as an option a transformer over them (Vaswani et al., "Attention Is All You
Need",
NeurIPS 2017, arXiv:1706.03762; normalised before each part, as in Radford et al. 2021, arXiv:2103.00020, but seeing in both
directions).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt

PADDING = 0


@ARCHS.register("text_embedding")
class TextEmbedding(nn.Module):
    """Numbers of words or bytes to vectors, for networks that attend to them.

    Vectors of padding are 0, and nothing attends to it: the empty text is all zeros, which is what `unconditional: {context:
    0}` of a diffusion injector means, too.

    Args:
        vocabulary_size: numbers that there are, padding included: `size` of the injector `tokenize` (257 for bytes).
        length: most numbers of a text: its `length`.
        width: channels of the vectors.
        depth: blocks of the transformer; 0: a word's vector knows its place and nothing of the other words.
        num_heads: heads of attention.

    Raises:
        ValueError: `width` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        *,
        vocabulary_size: PositiveInt = 4096,
        length: PositiveInt = 32,
        width: PositiveInt = 64,
        depth: NonNegativeInt = 0,
        num_heads: PositiveInt = 4,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.words = nn.Embedding(vocabulary_size, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) integers, S up to `length`, 0 being padding -> (B, S, width).

        Raises:
            ValueError: a text is longer than `length`.
        """
        if tokens.shape[1] > len(self.places):
            raise ValueError(f"texts of {tokens.shape[1]} numbers for a network of length {len(self.places)}; raise 'length'")
        padding = tokens == PADDING
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        # Attention over nothing has no value: in an empty text the padding sees itself, and is set to 0 below.
        unseen = padding & ~padding.all(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=unseen)
        return self.norm(x).masked_fill(padding.unsqueeze(-1), 0)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"vocabulary_size": 16, "length": 6, "width": 8, "depth": 1, "num_heads": 2}
        return options, (torch.tensor([[3, 4, 0, 0], [5, 1, 9, 15]]),)
