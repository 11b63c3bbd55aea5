"""Pictures shifted by the mean of natural images and scaled, as many super-resolution networks take them, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean red, green and blue of DIV2K's training pictures."""


class InputRange(nn.Module):
    """`(x - mean) * img_range` and back. Has no entry in the state dict.

    Args:
        channels: of the pictures; the mean is subtracted only where there are as many as `mean` has.
        img_range: factor.
        mean: one number a channel, for pictures in [0, 1].
    """

    mean: Tensor

    def __init__(self, channels: int, img_range: float = 1.0, mean: Sequence[float] = DIV2K_MEAN) -> None:
        super().__init__()
        values = mean if channels == len(mean) else [0.0]
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def enter(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] to the network's range."""
        return (x - self.mean) * self.img_range

    def leave(self, x: Tensor) -> Tensor:
        """From the network's range to [0, 1]; in float32 where the mean is, under autocast too."""
        return x / self.img_range + self.mean
