"""Fixed positions of the patches of a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of columns, then of rows, counted from 0.

    Args:
        height: patches a column.
        width: patches a row.
        channels: a multiple of 4; a quarter each of sines and cosines of columns, and of rows.
        device: of the result.

    Returns:
        (height * width, channels), float32, row by row.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, for each axis as in He et al. 2022 (arXiv:2111.06377) and
    Peebles and Xie 2023 (arXiv:2212.09748).
    """
    exponents = torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4)
    frequencies = 10000.0**-exponents

    def waves(length: int) -> Tensor:
        angles = torch.outer(torch.arange(length, dtype=torch.float64, device=device), frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=1).float()

    columns = waves(width)[None].expand(height, -1, -1)
    rows = waves(height)[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), dim=2).flatten(0, 1)
