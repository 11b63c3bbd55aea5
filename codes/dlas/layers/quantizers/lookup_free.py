"""Codes without a codebook: the signs of a few channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.vector_quantizer import Quantized, Quantizer, counts_of, in_use
from dlas.registry import QUANTIZERS
from dlas.types import NonNegativeFloat, PositiveFloat

TINY = 1e-20
"""Least share of a batch whose logarithm is taken."""


@QUANTIZERS.register("lfq")
class LookupFreeQuantizer(Quantizer):
    """Lookup-free quantisation: linear layers lead to and from as many channels as a code has bits; each becomes its sign.

    The loss asks each vector for a clear decision, and all of a batch together for many different ones. It works with a table
    of the batch's vectors by codes.

    Args:
        commitment_weight: weight of how far channels are from their signs.
        entropy_weight: weight of the mean entropy of a vector's probabilities of codes, less the entropy of the batch's mean
            probabilities, nats.
        diversity: factor of the latter.
        temperature: probabilities are the softmax of negative squared distances over it.

    Raises:
        ValueError: the network's number of codes is no power of 2.

    Source: Yu et al. 2024, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (arXiv:2310.05737), section
    3.1.
    """

    places: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        /,
        *,
        commitment_weight: NonNegativeFloat = 0.25,
        entropy_weight: NonNegativeFloat = 0.1,
        diversity: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 0.01,
    ) -> None:
        super().__init__()
        bits = codes.bit_length() - 1
        if bits == 0 or 2**bits != codes:
            raise ValueError(f"lfq: codes are bits, so that their number must be a power of 2 above 1; the network has {codes}")
        self.codes, self.temperature = codes, temperature
        self.commitment_weight, self.entropy_weight, self.diversity = commitment_weight, entropy_weight, diversity
        self.project_in = nn.Linear(channels, bits)
        self.project_out = nn.Linear(bits, channels)
        self.register_buffer("places", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes."""
        with torch.autocast(z.device.type, enabled=False):
            x = self.project_in(z.movedim(1, -1).float())
            signs = torch.where(x > 0, 1.0, -1.0)
            indices = ((x > 0) * self.places).sum(dim=-1)
            loss = self.commitment_weight * F.mse_loss(x, signs)
            if self.entropy_weight:
                loss = loss + self.entropy_weight * self._entropies(x.flatten(0, -2))
            vectors = self.project_out(x + (signs - x).detach())
        figures = in_use(counts_of(indices, self.codes))
        return Quantized(vectors.movedim(-1, 1).to(z.dtype), loss, indices, *figures)

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, ...) -> (B, channels, ...)."""
        return self.project_out(self._signs(indices).to(self.project_out.weight.dtype)).movedim(-1, 1)

    def _signs(self, indices: Tensor) -> Tensor:
        return ((indices[..., None] // self.places) % 2 * 2 - 1).float()

    def _entropies(self, x: Tensor) -> Tensor:
        # |x - c|^2 without |x|^2 and |c|^2, which are the same for all codes.
        every = self._signs(torch.arange(self.codes, device=x.device))
        log_shares = (2 / self.temperature * x @ every.t()).log_softmax(dim=-1)
        shares = log_shares.exp()
        mean = shares.mean(dim=0)
        of_each, of_mean = -(shares * log_shares).sum(dim=-1).mean(), -(mean * mean.clamp(min=TINY).log()).sum()
        return of_each - self.diversity * of_mean
