"""Vectors replaced by the nearest ones of a codebook."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.ranks import are_many, summed

EPS = 1e-5
"""Added to how often each code is used, so that none divides by 0."""


class Quantized(NamedTuple):
    """What a quantiser makes of vectors.

    Attributes:
        vectors: the codes in their places, (B, C, ...); gradients pass through to the vectors that were given.
        loss: commitment, and where the codebook is learned by gradients how far it is from the vectors; a scalar in float32.
        indices: which codes, (B, ...), int64.
        perplexity: exp of the entropy of how often each code is used here: how many codes are in use; a scalar in float32.
        usage: share of the codes that are used here at all; a scalar in float32.
    """

    vectors: Tensor
    loss: Tensor
    indices: Tensor
    perplexity: Tensor
    usage: Tensor


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


class Quantizer(nn.Module):
    """Replaces the vector of each pixel, or each step of a sequence, by one of finitely many."""

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, ...) -> (B, channels, ...)."""
        raise NotImplementedError


class VectorQuantizer(Quantizer):
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
            indices = self.search(flat, codebook.detach())
            found = F.embedding(indices, codebook).view_as(vectors)
            loss = self.commitment * F.mse_loss(vectors, found.detach())
            used = counts_of(indices, len(codebook))
            if self.decay is None:
                loss = loss + F.mse_loss(found, vectors.detach())
            elif self.training and torch.is_grad_enabled():
                self._follow(flat, indices, used, self.decay)
            passed = (vectors + (found - vectors).detach()).movedim(-1, 1)
        return Quantized(passed.to(z.dtype), loss, indices.view(vectors.shape[:-1]), *in_use(used))

    def search(self, vectors: Tensor, codebook: Tensor) -> Tensor:
        """Which codes (codes, channels) take the places of vectors (N, channels): (N,), int64."""
        return nearest(vectors, codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices: (B, ...) -> (B, channels, ...)."""
        return F.embedding(indices, self.codebook()).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor, used: Tensor, decay: float) -> None:
        counts, sums = self.averages()
        new_sums, new_counts = totals(vectors, indices, used)
        counts.lerp_(new_counts.to(counts.dtype), 1 - decay)
        sums.lerp_(new_sums.to(sums.dtype), 1 - decay)
        total_count = counts.sum()
        smoothed = (counts + EPS) / (total_count + len(counts) * EPS) * total_count
        self._store(sums / smoothed[:, None])

    def _store(self, codes: Tensor) -> None:
        self.codebook().copy_(codes)


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


class RowCodebook(nn.Module):
    """Codes as rows, as in older releases of vector-quantize-pytorch.

    Args:
        codes: how many.
        channels: of each.
        averaged: whether counts and sums are kept.
        learned: codes are a parameter.
        fitted: whether codes wait for a first batch.
    """

    initted: Tensor
    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(self, codes: int, channels: int, averaged: bool, learned: bool = False, fitted: bool = False) -> None:
        super().__init__()
        self.register_buffer("initted", torch.zeros(1) if fitted else torch.ones(1))
        if averaged:
            self.register_buffer("cluster_size", torch.ones(codes))
        initial = torch.randn(codes, channels)
        if learned:
            self.embed = nn.Parameter(initial)
        else:
            self.register_buffer("embed", initial)
        if averaged:
            self.register_buffer("embed_avg", self.embed.clone())


class ExpiringVectorQuantizer(VectorQuantizer):
    """Codes compared by their direction or their distance; those that are never used are replaced by vectors of the batch.

    Where directions are compared, a code moves towards the mean direction of its vectors; it need not have unit length.

    Args:
        codes: size of the codebook.
        channels: of the vectors.
        decay: of the averages.
        cosine: codes are compared by direction.
        patience: forwards in training without any use after which a code is replaced.
        compression: channels of codes, to and from which linear layers lead; None: those of the vectors.

    Source: Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN" (arXiv:2110.04627), section 3.2 (directions,
    compression); Zeghidour et al. 2021, "SoundStream" (arXiv:2107.03312), section III-C (replacement).
    """

    codebook_misses: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        *,
        decay: float = 0.8,
        cosine: bool = True,
        patience: int = 40,
        compression: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.commitment, self.decay, self.cosine, self.patience = 1.0, decay, cosine, patience
        self.project_in = nn.Identity() if compression is None else nn.Linear(channels, compression)
        self.project_out = nn.Identity() if compression is None else nn.Linear(compression, channels)
        self._codebook = RowCodebook(codes, compression or channels, averaged=not cosine)
        self.register_buffer("codebook_misses", torch.zeros(codes))

    def codebook(self) -> Tensor:
        """The codes, (codes, compression or channels)."""
        return self._codebook.embed

    def averages(self) -> tuple[Tensor, Tensor]:
        """How many vectors each code stands for, (codes,), and their sums; not where codes are compared by direction."""
        return self._codebook.cluster_size, self._codebook.embed_avg

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes; in training the codebook moves."""
        found = super().forward(self.project_in(z.movedim(1, -1)).movedim(-1, 1))
        return found._replace(vectors=self._expanded(found.vectors))

    def search(self, vectors: Tensor, codebook: Tensor) -> Tensor:
        """Which codes (codes, channels) take the places of vectors (N, channels): (N,), int64."""
        if self.cosine:
            return (F.normalize(vectors, dim=-1) @ F.normalize(codebook, dim=-1).t()).argmax(dim=1)
        return super().search(vectors, codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices, behind the linear layer: (B, ...) -> (B, channels, ...)."""
        return self._expanded(super().lookup(indices))

    def _expanded(self, codes: Tensor) -> Tensor:
        return self.project_out(codes.movedim(1, -1)).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor, used: Tensor, decay: float) -> None:
        codes = self.codebook()
        if self.cosine:
            vectors = F.normalize(vectors, dim=-1)
            sums, counts = totals(vectors, indices, used)
            means = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), F.normalize(codes, dim=-1))
            codes.lerp_(means, 1 - decay)
        else:
            super()._follow(vectors, indices, used, decay)
            counts = summed(used)
        self.codebook_misses.add_(1).mul_(counts == 0)
        expired = self.codebook_misses >= self.patience
        fresh = drawn(vectors, len(codes))
        codes.copy_(torch.where(expired[:, None], fresh, codes))
        if not self.cosine:
            counts, sums = self.averages()
            counts.masked_fill_(expired, 1.0)
            sums.copy_(torch.where(expired[:, None], fresh, sums))
        self.codebook_misses.masked_fill_(expired, 0.0)


def as_picture(indices: Tensor) -> Tensor:
    """Codes (B, h, w), also of those of squares row by row, (B, N).

    Raises:
        ValueError: N is no square.
    """
    if indices.dim() != 2:
        return indices
    side = math.isqrt(indices.shape[1])
    if side**2 != indices.shape[1]:
        raise ValueError(f"{indices.shape[1]} codes are no square picture; give them as (B, height, width)")
    return indices.unflatten(1, (side, side))


def counts_of(indices: Tensor, codes: int) -> Tensor:
    """How often each of `codes` codes is among indices, (codes,), float32."""
    flat = indices.flatten()
    return torch.zeros(codes, device=flat.device).index_add_(0, flat, torch.ones_like(flat, dtype=torch.float32))


def in_use(used: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity and usage, as of `Quantized`, of how often each code is used, (K,)."""
    shares = used / used.sum()
    return torch.special.entr(shares).sum().exp(), (used > 0).float().mean()


def drawn(vectors: Tensor, count: int) -> Tensor:
    """Rows drawn from the vectors (N, C) of all processes together: (count, C), the same in each of them.

    Every vector is as likely as any other, on whichever process it is and however many that has.
    """
    places = torch.rand(count, dtype=torch.float64, device=vectors.device)
    if not are_many():
        return vectors[(places * len(vectors)).long()]
    torch.distributed.broadcast(places, 0)
    sizes = torch.zeros(torch.distributed.get_world_size(), dtype=torch.int64, device=vectors.device)
    sizes[torch.distributed.get_rank()] = len(vectors)
    torch.distributed.all_reduce(sizes)
    own = (places * sizes.sum()).long() - sizes[: torch.distributed.get_rank()].sum()
    here = (own >= 0) & (own < len(vectors))
    found = torch.where(here[:, None], vectors[own.clamp(0, len(vectors) - 1)], 0.0)
    torch.distributed.all_reduce(found)  # each row is zero in all processes but the one that has it
    return found


def totals(vectors: Tensor, indices: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Over all processes: the sums of vectors (N, C) that have each code, (K, C), and how many these are, (K,)."""
    sums = vectors.new_zeros(len(used), vectors.shape[1]).index_add_(0, indices, vectors)
    return summed(sums), summed(used)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Indices (N,) of the codes (K, C) that are nearest to vectors (N, C)."""
    # |v - c|^2 without |v|^2, which is the same for all codes.
    return torch.addmm(codebook.square().sum(1), vectors, codebook.t(), alpha=-2.0).argmin(dim=1)
