"""Contrastive learning of pairs: what belongs together is more alike than anything else in the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.ranks import gather_with_gradient


def pair_similarity(first: Tensor, second: Tensor, log_scale: Tensor) -> Tensor:
    """How alike each pair is: the cosine of (B, C) and (B, C), times exp of `log_scale`; (B,)."""
    return (F.normalize(first, dim=-1) * F.normalize(second, dim=-1)).sum(-1) * log_scale.exp()


def contrastive_loss(first: Tensor, second: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of the cross-entropies of finding each vector's partner, in both directions, in float32.

    Of several processes that train each finds its partners among the vectors of all of them, as one would with the whole batch.

    Args:
        first: (B, C).
        second: (B, C), partners row by row.
        log_scale: logarithm of the factor on cosines.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
    (arXiv:2103.00020), figure 3.
    """
    if torch.is_grad_enabled():  # processes evaluate each for itself
        first, second = gather_with_gradient(first), gather_with_gradient(second)
    with torch.autocast(first.device.type, enabled=False):
        scores = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T * log_scale.exp()
        partner = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2
