"""Codes without a codebook: every channel is rounded to a few values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlas.layers.vector_quantizer import Quantized, Quantizer, counts_of, in_use
from dlas.registry import QUANTIZERS
from dlas.types import PositiveInt

MARGIN = 1e-3
"""How much further than the outermost values channels may reach, so that these are met."""


@QUANTIZERS.register("fsq")
class FiniteScalarQuantizer(Quantizer):
    """Finite scalar quantisation: linear layers lead to and from a few channels, each bounded and rounded to its levels.

    There is no loss, and nothing that could collapse.

    Args:
        levels: values of each channel; their product is how many codes there are. Of the paper: [8, 6, 5] for 240, [8, 5, 5, 5]
            for 1000, [7, 5, 5, 5, 5] for 4375, [8, 8, 8, 6, 5] for 15360, [8, 8, 8, 5, 5, 5] for 64000.

    Raises:
        ValueError: the product is not the network's number of codes, or there are fewer than 2 levels.

    Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv:2309.15505), section 3 and appendix A.
    """

    levels: Tensor
    steps: Tensor

    def __init__(self, codes: int, channels: int, /, *, levels: list[PositiveInt]) -> None:
        super().__init__()
        if min(levels, default=0) < 2:
            raise ValueError(f"fsq: each of 'levels' must be 2 or more, got {levels}")
        if math.prod(levels) != codes:
            raise ValueError(f"fsq: levels {levels} make {math.prod(levels)} codes, but the network has {codes}")
        self.codes = codes
        self.project_in = nn.Linear(channels, len(levels))
        self.project_out = nn.Linear(len(levels), channels)
        steps = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("steps", torch.tensor(steps), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bounded(self.project_in(z.movedim(1, -1).float()))
            rounded = bounded + (bounded.round() - bounded).detach()
            halves = self.levels // 2
            indices = ((rounded.detach() + halves).long() * self.steps).sum(dim=-1)
            vectors = self.project_out(rounded / halves)
        figures = in_use(counts_of(indices, self.codes))
        return Quantized(vectors.movedim(-1, 1).to(z.dtype), vectors.new_zeros(()), indices, *figures)

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, ...) -> (B, channels, ...)."""
        halves = self.levels // 2
        values = (indices[..., None] // self.steps % self.levels - halves) / halves
        return self.project_out(values.to(self.project_out.weight.dtype)).movedim(-1, 1)

    def _bounded(self, z: Tensor) -> Tensor:
        """Each channel between the outermost of its values, which are integers; an even number of them lies about -1/2."""
        half = (self.levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (z + (offset / half).atanh()).tanh() * half - offset
