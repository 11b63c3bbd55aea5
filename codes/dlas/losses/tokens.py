"""Losses of tokens: which comes next, and which belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.losses.base import Loss, LossResult, State
from dlas.registry import LOSSES
from dlas.types import StateIn


@LOSSES.register("token_cross_entropy")
class TokenCrossEntropyLoss(Loss):
    """Mean negative log-likelihood of tokens, in nats, in float32. Logs the share of tokens that are the most probable ones.

    Args:
        logits: key of the network's output, (B, T, vocabulary).
        tokens: key of the tokens, (B, T), or (B, h, w) row by row.
        ignore: a token that does not count, padding for instance.
    """

    def __init__(self, *, logits: StateIn, tokens: StateIn, ignore: int | None = None) -> None:
        super().__init__()
        self.logits, self.tokens, self.ignore = logits, tokens, ignore

    def forward(self, state: State, context: Context) -> LossResult:
        logits, tokens = state[self.logits].float(), state[self.tokens].flatten(1)
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"token_cross_entropy: logits '{self.logits}' {tuple(logits.shape)} must be (B, T, vocabulary) for tokens "
                f"'{self.tokens}' {tuple(tokens.shape)}"
            )
        counted = torch.ones_like(tokens, dtype=torch.bool) if self.ignore is None else tokens != self.ignore
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(counted)
        right = logits.detach().argmax(dim=-1) == tokens
        count = counted.sum().clamp(min=1)
        return (each * counted).sum() / count, {"accuracy": (right & counted).sum() / count}


@LOSSES.register("contrastive")
class ContrastiveLoss(Loss):
    """CLIP's: among all pairs of a micro-batch those that belong together should be the most similar. In float32.

    Logs the share of first vectors whose most similar second one belongs to them.

    Args:
        first: key of unit vectors, (B, C): of texts.
        second: key of unit vectors, (B, C): of what they describe.
        scale: key of the factor of similarities, a scalar.
        same: key of what says which pairs are alike, (B, ...): where two rows are equal, all four combinations belong together.
            Not given: only a pair's own two vectors do.

    Source: Radford et al. 2021 (arXiv:2103.00020), figure 3; several that belong together: Khosla et al. 2020, "Supervised
    Contrastive Learning" (arXiv:2004.11362), equation 2.
    """

    def __init__(self, *, first: StateIn, second: StateIn, scale: StateIn, same: StateIn | None = None) -> None:
        super().__init__()
        self.first, self.second, self.scale, self.same = first, second, scale, same

    def forward(self, state: State, context: Context) -> LossResult:
        first, second = state[self.first].float(), state[self.second].float()
        similarities = state[self.scale].float() * first @ second.t()
        together = torch.eye(len(first), device=first.device)
        if self.same is not None:
            rows: Tensor = state[self.same].flatten(1) if state[self.same].dim() > 1 else state[self.same][:, None]
            together = (rows[:, None] == rows).all(dim=-1).float()
        shares = together / together.sum(dim=1, keepdim=True)  # symmetric: rows that are alike are equally many
        loss = (F.cross_entropy(similarities, shares) + F.cross_entropy(similarities.t(), shares)) / 2
        nearest = together.gather(1, similarities.detach().argmax(dim=1, keepdim=True))
        return loss, {"accuracy": nearest.mean()}
