"""How a codebook is used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUse(NamedTuple):
    """What a set's codes say of their codebook.

    Args:
        used: share of the codes that occur at all.
        perplexity: exp of the entropy of how often each occurs: as many equally frequent codes would be as hard to guess.
        repeated: share of the codes that are the same as the one before.
    """

    used: float
    perplexity: float
    repeated: float


def codebook_use(sequences: list[Tensor], size: int) -> CodebookUse:
    """Measures sequences of codes.

    Args:
        sequences: each (T,), whole numbers from 0 to `size` - 1.
        size: of the codebook.

    Raises:
        ValueError: there are no codes, or one is beyond the codebook.
    """
    codes = torch.cat([each.flatten() for each in sequences]) if sequences else torch.zeros(0, dtype=torch.long)
    if not len(codes) or int(codes.min()) < 0 or int(codes.max()) >= size:
        found = f"codes from {int(codes.min())} to {int(codes.max())}" if len(codes) else "no codes"
        raise ValueError(f"{found}; a codebook of {size} has codes from 0 to {size - 1}")
    shares = torch.bincount(codes, minlength=size).double() / len(codes)
    repeats = torch.cat([each[1:] == each[:-1] for each in (each.flatten() for each in sequences)])
    return CodebookUse(
        float((shares > 0).double().mean()),
        float(torch.special.entr(shares).sum().exp()),
        float(repeats.double().mean()) if len(repeats) else 0.0,
    )
