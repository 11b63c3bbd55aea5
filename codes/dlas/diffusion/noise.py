"""Which noise goes to which sample, and which samples lose their condition.

All of it is decided before a sample is made noisy: `Objective.ask` takes the noise that results, for the noisy sample and for
the target alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Assignment: TypeAlias = Literal["independent", "assignment", "nearest"]
"""How samples get their noise.

===========  ===================================================================================================
independent  each its own
assignment   that of the batch, permuted so that distances are least in total; a sample's noise depends on the
             others of its micro-batch, and the device is waited for
nearest      the nearest of some candidates of its own: independent of the batch, and nothing is waited for
===========  ===================================================================================================

Source: Li et al. 2024 (arXiv:2406.12303); nearest: Li et al. 2025 (arXiv:2505.18521).
"""

Draw: TypeAlias = Callable[[tuple[int, ...], str], Tensor]
"""Standard normal noise (B, *shape) of the samples: the same for the same sample and name, such as a context's `randn`."""


def draw_noise(
    x0: Tensor, draw: Draw, assignment: Assignment = "independent", candidates: int = 4, offset: float = 0.0
) -> Tensor:
    """Noise of samples `x0` (B, C, ...), float32.

    Args:
        x0: data.
        draw: noise by shape of a sample and name.
        assignment: which noise goes to which sample.
        candidates: of each sample, for `nearest`.
        offset: standard deviation of a further noise that is one number a channel, so that the mean brightness is learnt, too
            (Guttenberg, "Diffusion with Offset Noise", 2023); 0 is none.

    Raises:
        ValueError: the assignment is unknown.
    """
    if assignment not in ("independent", "assignment", "nearest"):
        raise ValueError(f"an assignment is independent, assignment or nearest; given: {assignment!r}")
    shape = tuple(x0.shape[1:])

    def candidate(k: int) -> Tensor:
        noise = draw(shape, f"noise {k}")
        if offset == 0:
            return noise
        return noise + offset * draw((shape[0], *(1,) * (len(shape) - 1)), f"offset {k}")

    if assignment == "nearest":
        return nearest_of(x0, candidate, candidates)
    return candidate(0) if assignment == "independent" else assigned(x0, candidate(0))


def assigned(x0: Tensor, noise: Tensor) -> Tensor:
    """The noises of a batch (B, ...), in the order that is nearest to `x0` (B, ...) in total; waits for the device."""
    return noise[_best_order(torch.cdist(x0.detach().flatten(1).float(), noise.flatten(1).float()))]


@torch.library.custom_op("dlas::best_order", mutates_args=())
def _best_order(distances: Tensor) -> Tensor:
    """Which column goes to which row, so that the sum of distances is least: (B, B) -> (B,), int64."""
    from scipy.optimize import linear_sum_assignment  # comes with scikit-image; slow to import

    _, order = linear_sum_assignment(distances.cpu().numpy())
    return torch.from_numpy(order).to(distances.device)


@_best_order.register_fake
def _(distances: Tensor) -> Tensor:
    return torch.empty(distances.shape[0], dtype=torch.int64, device=distances.device)


def nearest_of(x0: Tensor, candidate: Callable[[int], Tensor], count: int) -> Tensor:
    """The nearest to `x0` (B, ...) of `count` candidates, for each sample; candidate(k) is the k-th of all samples."""
    best = candidate(0)
    least = _squared_distance(x0, best)
    for k in range(1, count):
        other = candidate(k)
        distance = _squared_distance(x0, other)
        nearer = distance < least
        best = torch.where(nearer.reshape(-1, *(1,) * (x0.dim() - 1)), other, best)
        least = torch.where(nearer, distance, least)
    return best


def _squared_distance(x0: Tensor, noise: Tensor) -> Tensor:
    return (x0.detach().float() - noise).square().flatten(1).sum(1)


def dropped(uniform: Tensor, probability: float) -> Tensor:
    """Which samples (B,) lose their condition: those whose uniform number in [0, 1) is less than `probability`."""
    return uniform < probability


def without_condition(condition: Tensor, null: Tensor, drop: Tensor) -> Tensor:
    """The condition (B, ...), and `null`, which broadcasts against one sample's, where `drop` (B,) is true.

    Source: Ho and Salimans 2022 (arXiv:2207.12598), algorithm 1.
    """
    return torch.where(drop.reshape(-1, *(1,) * (condition.dim() - 1)), null.to(condition.dtype), condition)
