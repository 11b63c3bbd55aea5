"""Codes of a codebook, compared by distance or direction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.vector_quantizer import Quantized, RowCodebook, VectorQuantizer, counts_of, drawn, nearest, totals
from dlas.registry import QUANTIZERS
from dlas.types import Fraction, NonNegativeFloat, PositiveInt


@QUANTIZERS.register("vq")
class CodebookQuantizer(VectorQuantizer):
    """The nearest code of a codebook, which follows averages of its vectors or is learned by gradients.

    Options and entries of the state dict have the names of the package vector-quantize-pytorch.

    Args:
        decay: of the averages; null: codes are learned by gradients.
        commitment_weight: weight of how far vectors are from their codes.
        use_cosine_sim: vectors and codes have unit length, so that directions decide.
        codebook_dim: channels of codes, to and from which linear layers lead; not given: those of the vectors.
        threshold_ema_dead_code: a code that stands for fewer vectors than this, averaged over steps, is replaced by one of the
            vectors of all processes; 0: none is. Needs `decay`.
        kmeans_init: the first batch that is trained on is clustered, and codes start as the clusters' means.
        kmeans_iters: iterations of that.

    Raises:
        ValueError: `threshold_ema_dead_code` without `decay`.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), equation 3 and appendix A.1; directions, and few channels: Yu et al.
    2022 (arXiv:2110.04627), section 3.2; replaced and clustered codes: Zeghidour et al. 2021 (arXiv:2107.03312), section III-C.
    """

    stage: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        /,
        *,
        decay: Fraction | None = 0.99,
        commitment_weight: NonNegativeFloat = 1.0,
        use_cosine_sim: bool = False,
        codebook_dim: PositiveInt | None = None,
        threshold_ema_dead_code: NonNegativeFloat = 0.0,
        kmeans_init: bool = False,
        kmeans_iters: PositiveInt = 10,
    ) -> None:
        nn.Module.__init__(self)
        if threshold_ema_dead_code and decay is None:
            raise ValueError("threshold_ema_dead_code counts with the averages that 'decay' makes; give a decay, or 0 here")
        self.commitment, self.decay, self.cosine = commitment_weight, decay, use_cosine_sim
        self.least_use, self.kmeans_iters = threshold_ema_dead_code, kmeans_iters if kmeans_init else 0
        self.project_in = nn.Identity() if codebook_dim is None else nn.Linear(channels, codebook_dim)
        self.project_out = nn.Identity() if codebook_dim is None else nn.Linear(codebook_dim, channels)
        learned = decay is None
        self._codebook = RowCodebook(codes, codebook_dim or channels, not learned, learned, fitted=kmeans_init)
        # Read by its length, which costs no wait for the device: 1 before the first batch, 2 afterwards. As a buffer it comes
        # back where a pass is made that is to leave no trace.
        self.register_buffer("stage", torch.zeros(1 if kmeans_init else 2), persistent=False)
        if use_cosine_sim:
            with torch.no_grad():
                self._codebook.embed.copy_(F.normalize(self._codebook.embed, dim=1))
                if not learned:
                    self._codebook.embed_avg.copy_(self._codebook.embed)

    def codebook(self) -> Tensor:
        """The codes, (codes, codebook_dim or channels)."""
        return F.normalize(self._codebook.embed, dim=1) if self.cosine else self._codebook.embed

    def averages(self) -> tuple[Tensor, Tensor]:
        """How many vectors each code stands for, (codes,), and their sums, (codes, channels)."""
        return self._codebook.cluster_size, self._codebook.embed_avg

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes; in training the codebook moves."""
        inner = self.project_in(z.movedim(1, -1)).movedim(-1, 1)
        if self.cosine:
            inner = F.normalize(inner.float(), dim=1)
        if len(self.stage) == 1 and self.training and torch.is_grad_enabled():
            self._fit(inner.movedim(1, -1).flatten(0, -2).float())
        found = super().forward(inner)
        return found._replace(vectors=self._expanded(found.vectors.to(z.dtype)))

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of indices, behind the linear layer: (B, ...) -> (B, channels, ...)."""
        return self._expanded(super().lookup(indices))

    def _expanded(self, codes: Tensor) -> Tensor:
        return self.project_out(codes.movedim(1, -1)).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, vectors: Tensor, indices: Tensor, used: Tensor, decay: float) -> None:
        super()._follow(vectors, indices, used, decay)
        if self.least_use:
            counts, sums = self.averages()
            dead, fresh = counts < self.least_use, drawn(vectors, len(counts))
            self._store(torch.where(dead[:, None], fresh, self._codebook.embed))
            counts.masked_fill_(dead, self.least_use)
            sums.copy_(torch.where(dead[:, None], fresh * self.least_use, sums))

    def _store(self, codes: Tensor) -> None:
        self._codebook.embed.copy_(F.normalize(codes, dim=1) if self.cosine else codes)

    @torch.no_grad()
    def _fit(self, vectors: Tensor) -> None:
        codes = drawn(vectors, len(self._codebook.embed))
        for _ in range(self.kmeans_iters):
            means, counts = clustered(vectors, codes)
            codes = F.normalize(means, dim=1) if self.cosine else means
        fresh = self._codebook.initted == 0  # stays on the device: nothing waits for it
        self._codebook.embed.copy_(torch.where(fresh, codes, self._codebook.embed))
        if self.decay is not None:
            now, sums = self.averages()
            now.copy_(torch.where(fresh, counts, now))
            sums.copy_(torch.where(fresh, means * counts[:, None], sums))
        self._codebook.initted.fill_(1)
        self.stage = self.stage.new_zeros(2)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.stage = self.stage.new_zeros(1 if self.kmeans_iters else 2)


def clustered(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """An iteration of k-means over the vectors (N, C) of all processes.

    Returns:
        Means of the vectors nearest to each of the codes (K, C), and how many these are, (K,), at least 1; a code that is
        nearest to none becomes one of the vectors.
    """
    indices = nearest(vectors, codes)
    sums, counts = totals(vectors, indices, counts_of(indices, len(codes)))
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], drawn(vectors, len(codes)))
    return means, counts.clamp(min=1)
