"""Padding pictures to the sizes that a network takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int, *, minimum: int = 1, mode: str = "reflect") -> Tensor:
    """Pads pictures at the bottom and at the right.

    Args:
        x: (batch, channels, height, width).
        multiple: what height and width are to be multiples of.
        minimum: what they are to be at least.
        mode: ``reflect`` (again and again where the picture is smaller than what is added) or ``constant`` (zeros).

    Returns:
        The padded pictures; `x` itself if nothing is to be added. In a network that is exported, pictures must be of `minimum`
        and, if they are reflected, larger than what is added.
    """
    height, width = x.shape[-2:]
    if torch.compiler.is_exporting():  # one step that holds for every size
        to_height, to_width = ((length + multiple - 1) // multiple * multiple for length in (height, width))
        return F.pad(x, (0, to_width - width, 0, to_height - height), mode=mode)
    to_height = -(-max(height, minimum) // multiple) * multiple
    to_width = -(-max(width, minimum) // multiple) * multiple
    while (height, width) != (to_height, to_width):
        if mode == "constant":
            return F.pad(x, (0, to_width - width, 0, to_height - height))
        if min(height, width) == 1:  # one row has nothing to be reflected
            return F.pad(x, (0, to_width - width, 0, to_height - height), mode="replicate")
        x = F.pad(x, (0, min(to_width - width, width - 1), 0, min(to_height - height, height - 1)), mode="reflect")
        height, width = x.shape[-2:]
    return x
