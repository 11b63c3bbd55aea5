"""Vectors replaced by the nearest ones of a codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
"""Added to how often each code is used, so that none divides by 0."""


class Quantized(NamedTuple):
    """What a quantiser makes of vectors.

    Attributes:
        vectors: the codes in their places, (B, C, ...); gradients pass through to the vectors that were given.
        loss: commitment, and where the codebook is learned by gradients how far it is from the vectors; a scalar in float32.
        indices: which codes, (B, ...), int64.
        perplexity: exp of the entropy of how often each code is used here: how many codes are in use; a scalar in float32.
    """

    vectors: Tensor
    loss: Tensor
    indices: Tensor
    perplexity: Tensor


class Codebook(nn.Module):
    """The codes: a parameter, or a buffer with its running counts and sums where they follow averages.

    Args:
        codes: how many.
        channels: of each.
        averaged: whether they follow averages.
    """

    weight: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, channels: int, averaged: bool) -> None:
        super().__init__()
        initial = torch.empty(codes, channels).uniform_(-1 / codes, 1 / codes)
        if averaged:
            self.register_buffer("weight", initial)
            self.register_buffer("counts", torch.ones(codes))
            self.register_buffer("sums", initial.clone())
        else:
            self.weight = nn.Parameter(initial)


class VectorQuantizer(nn.Module):
    """The nearest code in the sense of Euclid, in the place of the vector of each pixel, or each step of a sequence.

    Args:
        codes: size of the codebook.
        channels: of the vectors.
        commitment: weight of how far vectors are from their codes (beta).
        decay: of averages that the codes follow, 0.99 for instance; None: codes are learned by gradients.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv:1711.00937), equations 2 and 3; by
    averages: appendix A.1.
    """

    def __init__(self, codes: int, channels: int, commitment: float = 0.25, decay: float | None = None) -> None:
        super().__init__()
        self.commitment, self.decay = commitment, decay
        self.embedding = Codebook(codes, channels, averaged=decay is not None)

    def codebook(self) -> Tensor:
        """The codes, (codes, channels)."""
        return self.embedding.weight

    def averages(self) -> tuple[Tensor, Tensor]:
        """Where codes follow averages: how many vectors each code stands for, (codes,), and their sums, (codes, channels)."""
        return self.embedding.counts, self.embedding.sums

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes; in training the averages move."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.movedim(1, -1).float()
            codebook = self.codebook().float()
            flat = vectors.detach().flatten(0, -2)
            indices = nearest(flat, codebook.detach())
            found = F.embedding(indices, codebook).view_as(vectors)
            loss = self.commitment * F.mse_loss(vectors, found.detach())
            used = torch.zeros(len(codebook), device=z.device).index_add_(
                0, indices, torch.ones_like(indices, dtype=torch.float32)
            )
            if self.decay is None:
                loss = loss + F.mse_loss(found, vectors.detach())
            elif self.training and torch.is_grad_enabled():
                self._follow(flat, indices, used, self.decay)
            shares = used / len(flat)
            perplexity = (-(shares * (shares + 1e-10).log()).sum()).exp()
            passed = (vectors + (found - vectors).detach()).movedim(-1, 1)
        return Quantized(passed.to(z.dtype), loss, indices.view(vectors.shape[:-1]), perplexity)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices: (B, ...) -> (B, channels, ...)."""
        return F.embedding(indices, self.codebook()).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor, used: Tensor, decay: float) -> None:
        counts, sums = self.averages()
        new_sums = torch.zeros_like(sums).index_add_(0, indices, vectors.to(sums.dtype))
        new_counts = used.to(counts.dtype)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            new_counts = new_counts.clone()
            for total in (new_sums, new_counts):  # one codebook for all processes
                torch.distributed.all_reduce(total)
        counts.lerp_(new_counts, 1 - decay)
        sums.lerp_(new_sums, 1 - decay)
        total_count = counts.sum()
        smoothed = (counts + EPS) / (total_count + len(counts) * EPS) * total_count
        self.codebook().copy_(sums / smoothed[:, None])


class ColumnVectorQuantizer(VectorQuantizer):
    """The same with a codebook that follows averages, kept as rosinality's VQ-VAE-2 keeps it: each code is a column.

    Args:
        codes: size of the codebook.
        channels: of the vectors.
        commitment: weight of how far vectors are from their codes.
        decay: of the averages.
    """

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, codes: int, channels: int, commitment: float = 1.0, decay: float = 0.99) -> None:
        nn.Module.__init__(self)
        self.commitment, self.decay = commitment, decay
        self.register_buffer("embed", torch.randn(channels, codes))
        self.register_buffer("cluster_size", torch.ones(codes))
        self.register_buffer("embed_avg", self.embed.clone())

    def codebook(self) -> Tensor:
        """The codes, (codes, channels): a view."""
        return self.embed.t()

    def averages(self) -> tuple[Tensor, Tensor]:
        """How many vectors each code stands for, (codes,), and their sums, (codes, channels): views."""
        return self.cluster_size, self.embed_avg.t()


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices (N,) of the codes (K, C) that are nearest to vectors (N, C)."""
    # |v - c|^2 without |v|^2, which is the same for all codes.
    return torch.addmm(codebook.square().sum(1), vectors, codebook.t(), alpha=-2.0).argmin(dim=1)
