"""Which token follows, given the logits of all: filters as they are known from text generation, and a draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes tokens that occurred less likely: positive logits are divided, negative ones multiplied.

    Args:
        logits: (B, V).
        seen: (B, V), bool: which tokens occurred.
        penalty: 1 changes nothing.

    Source: Keskar et al., "CTRL", 2019 (arXiv:1909.05858), section 4.1, in the form that holds for negative logits, too.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """Sets to -inf all but the tokens whose information is nearest to its mean, which together have a probability of `mass`.

    Source: Meister et al., "Locally Typical Sampling", TACL 2023 (arXiv:2202.00666), section 3.
    """
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).nansum(-1, keepdim=True)
    distance, order = (-log_p - entropy).abs().sort(-1)
    reached = log_p.exp().gather(-1, order).cumsum(-1)
    last = (reached < mass).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    too_far = distance > distance.gather(-1, last)
    return logits.masked_fill(too_far.scatter(-1, order, too_far), -torch.inf)


def keep_likely(logits: Tensor, top_k: int | None, top_p: float) -> tuple[Tensor, Tensor]:
    """The most likely tokens.

    Args:
        logits: (B, V).
        top_k: at most so many; None: all.
        top_p: of those, the fewest whose probability reaches this; one at least.

    Returns:
        Logits in descending order, -inf where `top_p` leaves a token out, and the tokens, int64; both (B, min(top_k, V)).

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020 (arXiv:1904.09751), sections 3.1, 5.3.
    """
    kept, tokens = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
    if top_p < 1:
        p = kept.softmax(-1)
        superfluous = p.cumsum(-1) - p >= top_p
        superfluous[..., 0] = False
        kept = kept.masked_fill(superfluous, -torch.inf)
    return kept, tokens


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn; the filters apply in the order of the arguments.

    Args:
        repetition_penalty: on tokens that occurred; 1: none.
        typical_mass: see `keep_typical`; 1: off.
        temperature: divides logits; 0: the most likely token is taken.
        top_k: see `keep_likely`; None: off.
        top_p: likewise; 1: off.

    Raises:
        ValueError: a number is out of its range.
    """

    repetition_penalty: float = 1.0
    typical_mass: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        for name in ("typical_mass", "top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; leave it out for all tokens")

    def candidates(self, logits: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, V), and which tokens occurred -> logits and tokens in descending order, as `keep_likely` gives them."""
        logits = logits.float()
        if self.repetition_penalty != 1 and seen is not None:
            logits = penalise_repetition(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return keep_likely(logits, 1, 1.0)
        if self.typical_mass < 1:
            logits = keep_typical(logits, self.typical_mass)
        return keep_likely(logits / self.temperature, self.top_k, self.top_p)

    def draw(self, logits: Tensor, uniform: Tensor, seen: Tensor | None = None) -> Tensor:
        """Draws a token for each row.

        Args:
            logits: (B, V).
            uniform: (B,), in [0, 1): the same numbers draw the same tokens, whatever else is in the batch.
            seen: (B, V), bool: which tokens occurred; None: none did.

        Returns:
            (B,), int64.
        """
        kept, tokens = self.candidates(logits, seen)
        below = kept.softmax(-1).cumsum(-1) <= uniform[:, None]
        choice = below.sum(-1, keepdim=True).clamp(max=kept.isfinite().sum(-1, keepdim=True) - 1)
        return tokens.gather(-1, choice).squeeze(-1)
