"""An autoregressive model of several kinds of tokens behind one another: a text, then codes of the picture that it describes.

Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021 (arXiv:2102.12092), section 2.2; the transformer is GPT-2's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.gpt2 import GPT2, INIT_STD
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

Choose = Callable[[Tensor, int], Tensor]
"""Gives the next tokens (B,) of logits (B, V) and of their place, counted from 0 in the sequence that they belong to."""


@ARCHS.register("token_transformer")
class TokenTransformer(nn.Module):
    """Sequences of tokens behind one another, each kind with its own embedding, positions and head.

    The logits of a token know all tokens before it, of its own sequence and of those before that. Train it with
    `token_cross_entropy` of each sequence, and draw with the injector `token_sample`.

    Args:
        vocabularies: how many tokens there are of each kind: `[256, 512]` for texts and codes.
        lengths: most tokens of a sequence of each kind.
        channels: of vectors.
        depth: blocks.
        num_heads: heads of attention.
        dropout: of embeddings, of attention's weights, and of what each block adds.

    Raises:
        ValueError: there are not as many vocabularies as lengths, or `num_heads` does not divide the channels.
    """

    def __init__(
        self,
        *,
        vocabularies: list[PositiveInt],
        lengths: list[PositiveInt],
        channels: PositiveInt = 512,
        depth: PositiveInt = 8,
        num_heads: PositiveInt = 8,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if not vocabularies or len(vocabularies) != len(lengths):
            raise ValueError(f"each kind of token has a vocabulary and a length, got {vocabularies} and {lengths}")
        self.lengths = list(lengths)
        self.start = nn.Parameter(INIT_STD * torch.randn(channels))
        self.embeddings = nn.ModuleList(nn.Embedding(size, channels) for size in vocabularies)
        self.positions = nn.ModuleList(nn.Embedding(length, channels) for length in lengths)
        self.gpt = GPT2(channels, depth, num_heads, dropout)
        self.heads = nn.ModuleList(nn.Linear(channels, size) for size in vocabularies)
        for table in (*self.embeddings, *self.positions):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=INIT_STD)

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.gpt.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.gpt.checkpointing = on

    def forward(self, *sequences: Tensor) -> tuple[Tensor, ...]:
        """Logits of every token.

        Args:
            sequences: (B, T) integers for each kind, T up to its length; codes of pictures (B, h, w) row by row.

        Returns:
            For each sequence (B, T, vocabulary).

        Raises:
            ValueError: there are more or fewer sequences than kinds, or one is too long.
        """
        if len(sequences) != len(self.lengths):
            raise ValueError(f"the network has {len(self.lengths)} kinds of tokens, and got {len(sequences)} sequences")
        rows = [sequence.flatten(1) for sequence in sequences]
        x = self._begun(rows)
        found = self.gpt(x[:, :-1])
        parts = found.split([row.shape[1] for row in rows], dim=1)
        return tuple(head(part) for head, part in zip(self.heads, parts, strict=True))

    @torch.no_grad()
    def continued(self, given: Sequence[Tensor], choose: Choose, copies: int = 1) -> Tensor:
        """Draws the sequence behind those that are given, token by token, at its full length.

        Args:
            given: as for `forward`, of the first kinds, at least one.
            choose: picks each next token.
            copies: how many each sample of `given` becomes, behind one another; its logits are (B * copies, V).

        Returns:
            (B * copies, length) integers.

        Raises:
            ValueError: sequences of all kinds are given, or one is too long.
        """
        kind = len(given)
        if kind == 0 or kind >= len(self.lengths):
            raise ValueError(f"the network has {len(self.lengths)} kinds of tokens: give at least 1, and not all; got {kind}")
        begun = self._begun([sequence.flatten(1) for sequence in given])
        past = self.gpt.cache(len(begun), begun.shape[1] + self.lengths[kind], begun)
        last = self.gpt(begun, past)[:, -1:].repeat_interleave(copies, dim=0)
        past.expand(copies)
        tokens: list[Tensor] = []
        for place in range(self.lengths[kind]):
            tokens.append(choose(self.heads[kind](last[:, 0]), place))
            if place + 1 < self.lengths[kind]:
                last = self.gpt(self._embedded(kind, tokens[-1][:, None], place), past)
        return torch.stack(tokens, dim=1)

    def _begun(self, rows: Sequence[Tensor]) -> Tensor:
        """The start and the tokens of the first kinds, embedded: (B, 1 + T, channels)."""
        start = self.start.expand(len(rows[0]), 1, -1)
        return torch.cat((start, *(self._embedded(kind, row, 0) for kind, row in enumerate(rows))), dim=1)

    def _embedded(self, kind: int, tokens: Tensor, first: int) -> Tensor:
        end = first + tokens.shape[1]
        if end > self.lengths[kind]:
            raise ValueError(f"{end} tokens of kind {kind}, counted from 0, where 'lengths' allows {self.lengths[kind]}")
        places = torch.arange(first, end, device=tokens.device)
        return self.embeddings[kind](tokens) + self.positions[kind](places)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"vocabularies": [7, 5], "lengths": [3, 4], "channels": 8, "depth": 2, "num_heads": 2}
        return options, (torch.tensor([[6, 2, 0], [3, 1, 4]]), torch.tensor([[[0, 4], [2, 2]], [[1, 3], [4, 0]]]))
