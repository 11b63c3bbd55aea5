"""Which token comes next: logits narrowed down, and a draw."""

from __future__ import annotations

import torch
from torch import Tensor


def narrowed(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits over a temperature, with those of improbable tokens at minus infinity.

    Args:
        logits: (B, V).
        temperature: above 0; below 1 the probable becomes more so.
        top_k: only so many of the most probable tokens stay; None: all. Equals of the last of them stay, too.
        top_p: then only the fewest whose probabilities sum to this stay (nucleus sampling), at least one.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (arXiv:1904.09751), section 3.1.
    """
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, places = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, places, before >= top_p)
        dropped.scatter_(-1, places[..., :1], False)
        logits = logits.masked_fill(dropped, -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) with the probabilities that logits (B, V) give, from numbers uniform in [0, 1), (B,)."""
    summed = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # A number that rounding puts behind the last sum would draw a token that is not there.
    target = uniform.double()[:, None] * summed[:, -1:]
    return (summed <= target).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
