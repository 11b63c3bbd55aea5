"""Networks that take pictures of one size."""

from __future__ import annotations

from torch import Tensor


def check_size(x: Tensor, side: int) -> None:
    """Refuses pictures of another size than a discriminator was built for.

    Args:
        x: (..., height, width).
        side: height and width that it must have.

    Raises:
        ValueError: it has others.
    """
    height, width = x.shape[-2:]
    if (height, width) != (side, side):
        raise ValueError(
            f"the discriminator was built for {side}x{side} pictures and got {height}x{width}; "
            "set its size in the options to that of the pictures, or give it patches of its size"
        )
