"""Texts and codes of pictures as vectors that are near where they belong together.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (arXiv:2103.00020), section
2.3; on codes in place of pixels, to choose among samples: Ramesh et al. 2021 (arXiv:2102.12092), section 2.6.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.token_encoder import TokenEncoder
from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt

LARGEST_SCALE = 100.0


@ARCHS.register("token_clip")
class TokenCLIP(nn.Module):
    """Two transformers that make unit vectors of texts and of codes. Train it with the loss `contrastive`.

    Args:
        vocabularies: how many tokens there are of texts, 0 being padding, and of codes.
        lengths: most tokens of a text and of a picture.
        channels: of the transformers.
        depth: blocks of each.
        num_heads: heads of attention.
        out_channels: of the vectors.
        temperature: that similarities are over at first; it is learned, and stays above 0.01.

    Raises:
        ValueError: there are not two vocabularies and two lengths, or `num_heads` does not divide the channels.
    """

    def __init__(
        self,
        *,
        vocabularies: list[PositiveInt],
        lengths: list[PositiveInt],
        channels: PositiveInt = 256,
        depth: PositiveInt = 4,
        num_heads: PositiveInt = 4,
        out_channels: PositiveInt = 256,
        temperature: PositiveFloat = 0.07,
    ) -> None:
        super().__init__()
        if len(vocabularies) != 2 or len(lengths) != 2:
            raise ValueError(f"texts and codes have a vocabulary and a length each, got {vocabularies} and {lengths}")
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be divided among {num_heads} heads of attention")
        sizes = (channels, depth, num_heads, out_channels)
        self.text = TokenEncoder(vocabularies[0], lengths[0], *sizes, padding=0)
        self.codes = TokenEncoder(vocabularies[1], lengths[1], *sizes)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, text: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of both, and the factor of their similarities.

        Args:
            text: (B, T) integers.
            codes: (B, N) or (B, h, w) integers.

        Returns:
            (B, out_channels) twice, of unit length, and a scalar.
        """
        return self.text(text), self.codes(codes.flatten(1)), self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def scores(self, text: Tensor, candidates: Tensor) -> Tensor:
        """How near each of several candidates (B, n, ...) is to its text (B, T): cosines (B, n)."""
        found = self.codes(candidates.flatten(0, 1).flatten(1)).unflatten(0, candidates.shape[:2])
        return (found * self.text(text)[:, None]).sum(dim=-1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"vocabularies": [7, 5], "lengths": [3, 4], "channels": 8, "depth": 1, "num_heads": 2, "out_channels": 4}
        return options, (torch.tensor([[6, 2, 0], [3, 1, 4]]), torch.tensor([[[0, 4], [2, 2]], [[1, 3], [4, 0]]]))
