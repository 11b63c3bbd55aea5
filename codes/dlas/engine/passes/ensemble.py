"""Self-ensemble: the mean over the eight ways of turning and mirroring a picture.

Timofte et al., "Seven Ways to Improve Example-Based Single Image Super Resolution", CVPR 2016 (arXiv:1511.02228), section 3.6.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def self_ensemble(forward: Callable[[Tensor], Tensor], picture: Tensor) -> Tensor:
    """The mean of the eight results, each turned back.

    Args:
        forward: (batch, channels, height, width) to pictures of the same proportions; called eight times.
        picture: (batch, channels, height, width).
    """
    total: Tensor | None = None
    for mirrored in (False, True):
        for turns in range(4):
            given = (picture.flip(-1) if mirrored else picture).rot90(turns, (-2, -1))
            output = forward(given).rot90(-turns, (-2, -1))
            output = output.flip(-1) if mirrored else output
            total = output.clone() if total is None else total.add_(output)
    assert total is not None
    return total.div_(8)
