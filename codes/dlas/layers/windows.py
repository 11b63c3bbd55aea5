"""Cutting feature maps into windows, for attention within them.

Feature maps are (batch, height, width, channels), which is how memory lies under ``channels_last``.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (arXiv:2103.14030),
section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = tuple[int, int]
"""Height and width."""

MASKED = -100.0
"""Added to the logits of pairs of places that are not to see each other."""


def cut_windows(x: Tensor, window: Pair) -> Tensor:
    """(batch, height, width, channels) -> (batch, windows, places in a window, channels), row by row."""
    batch, height, width, channels = x.shape
    rows, columns = window
    x = x.view(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(batch, -1, rows * columns, channels)


def join_windows(windows: Tensor, window: Pair, size: Pair) -> Tensor:
    """Undoes `cut_windows`, given height and width of the feature map."""
    batch, channels = windows.shape[0], windows.shape[-1]
    (rows, columns), (height, width) = window, size
    x = windows.view(batch, height // rows, width // columns, rows, columns, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def shift_mask(size: Pair, window: Pair, shift: Pair, like: Tensor | None = None) -> Tensor:
    """What is added to the attention of windows of a map that was rolled by minus `shift`.

    Rolling brings places from one edge beside those of the other; within a window these are not to see each other (figure 4).

    Args:
        size: height and width of the map, multiples of those of the window.
        window: height and width of a window.
        shift: rows and columns.
        like: the result has its device and dtype.

    Returns:
        (windows, places, places): 0, or `MASKED` for pairs that are apart.
    """
    device = None if like is None else like.device
    regions = []
    for length, side, offset in zip(size, window, shift, strict=True):
        place = torch.arange(length, device=device)
        regions.append((place >= length - side).long() + (place >= length - offset).long())
    region = 3 * regions[0][:, None] + regions[1]
    region = cut_windows(region[None, :, :, None], window)[0, :, :, 0]
    apart = region[:, None, :] != region[:, :, None]
    return apart.to(torch.float32 if like is None else like.dtype) * MASKED


def relative_position_index(window: Pair) -> Tensor:
    """Which entry of a table of relative positions belongs to each pair of places of a window.

    Returns:
        (places, places), row by row of a (2 * rows - 1, 2 * columns - 1) table.
    """
    rows, columns = window
    y, x = places(window)
    return (y[:, None] - y + rows - 1) * (2 * columns - 1) + (x[:, None] - x + columns - 1)


def places(window: Pair) -> tuple[Tensor, Tensor]:
    """Row and column of each place of a window, row by row."""
    rows, columns = window
    return torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
