"""Codes drawn from a distribution that the encoder gives, relaxed so that gradients pass."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.vector_quantizer import Quantized, Quantizer, counts_of, in_use
from dlas.registry import QUANTIZERS
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveFloat


@QUANTIZERS.register("gumbel")
class GumbelQuantizer(Quantizer):
    """A code is drawn with the probability that a linear layer gives it; in evaluation it is the most probable one.

    Args:
        temperature: of the relaxed draw at first; small ones are nearly one code, with gradients of large variance.
        final_temperature: what it falls to, exponentially.
        annealing_steps: forwards in training until then; 0: `temperature` stays.
        straight_through: the vector is that of one code, with the relaxed draw's gradient; false: it is a mixture in training.
        kl_weight: weight of how far the probabilities are from uniform ones (Kullback-Leibler, nats a code).

    Source: Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax" (arXiv:1611.01144); Ramesh et al. 2021
    (arXiv:2102.12092), section 2.1, which anneals from 1 to 1/16 in 150,000 steps.
    """

    steps: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        /,
        *,
        temperature: PositiveFloat = 1.0,
        final_temperature: PositiveFloat = 0.0625,
        annealing_steps: NonNegativeInt = 0,
        straight_through: bool = True,
        kl_weight: NonNegativeFloat = 5e-4,
    ) -> None:
        super().__init__()
        self.first, self.last, self.annealing_steps = temperature, final_temperature, annealing_steps
        self.straight_through, self.kl_weight = straight_through, kl_weight
        self.to_logits = nn.Linear(channels, codes)
        self.embed = nn.Embedding(codes, channels)
        self.register_buffer("steps", torch.zeros(()))

    def temperature(self) -> Tensor:
        """Of the next draw in training, a scalar."""
        done = (self.steps / self.annealing_steps).clamp(max=1) if self.annealing_steps else torch.zeros_like(self.steps)
        return self.first * (self.last / self.first) ** done

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes."""
        with torch.autocast(z.device.type, enabled=False):
            logits = self.to_logits(z.movedim(1, -1).float())
            if self.training:
                noisy = logits - torch.empty_like(logits).exponential_().log()
                indices, soft = noisy.argmax(dim=-1), (noisy / self.temperature()).softmax(dim=-1)
                hard = F.one_hot(indices, logits.shape[-1]).to(soft.dtype)
                weights = hard + soft - soft.detach() if self.straight_through else soft
                vectors = weights @ self.embed.weight
                if torch.is_grad_enabled():
                    self.steps += 1
            else:
                indices = logits.argmax(dim=-1)
                vectors = self.embed(indices)
            log_shares = logits.log_softmax(dim=-1)
            divergence = (log_shares.exp() * log_shares).sum(dim=-1).mean() + math.log(logits.shape[-1])
        figures = in_use(counts_of(indices, logits.shape[-1]))
        return Quantized(vectors.movedim(-1, 1).to(z.dtype), self.kl_weight * divergence, indices, *figures)

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, ...) -> (B, channels, ...)."""
        return self.embed(indices).movedim(-1, 1)
