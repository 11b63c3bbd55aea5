"""How far a network looks: by how many pixels beyond a part of a picture what is there still changes the part's result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

EXACT = 2e-6
"""Largest difference, for pictures in [0, 1], that counts as none: tiles join to within 1e-5."""

INVISIBLE = 1 / 2048
"""An eighth of a step of 8 bits: enough for pictures of 8 bits, and much nearer."""

VISIBLE = 1 / 510
"""Half a step of 8 bits."""

FIRST, LIMIT = 8, 256
"""Halos that are tried, doubling from the first to the last."""

MARGIN = 4
"""A halo is made larger than what was measured by this part of it: other places may need more than the ones that were tried."""

_PATCH = 16
_FINE = 4  # steps in which a halo is looked for in the end

Forward = Callable[[Tensor], Tensor]
"""(1, channels, height, width) to the network's picture of it."""


@dataclass(frozen=True)
class Reach:
    """What was measured.

    Args:
        halo: pixels of the input around a tile that it is given to see.
        exact: whether what lies beyond them changes nothing. If not, as with windows and means over the whole picture, the
            halo is where the difference becomes invisible, or as far as was looked.
    """

    halo: int
    exact: bool


def measure_reach(forward: Forward, picture: Tensor, scale: float, grid: int = 1, tolerance: float = EXACT) -> Reach:
    """Gives patches of a picture more and more of their surroundings until the result no longer changes.

    The patches are where the border of a tile would matter most: where there is most detail, and where it is brightest.

    Args:
        forward: the network, in float32.
        picture: (1, channels, height, width) in [0, 1].
        scale: enlargement.
        grid: patches and halos are multiples of it, so that windows lie as they do in the whole picture.
        tolerance: largest difference that counts as none.

    Returns:
        The reach on this picture. Where the picture is smaller than a halo, its edges end the surroundings, as for tiles.
    """
    side = _round_up(_PATCH, grid)
    found = [_reach_at(forward, picture, scale, grid, side, place, tolerance) for place in _places(picture, side, grid)]
    return Reach(max(reach.halo for reach in found), all(reach.exact for reach in found))


def _reach_at(
    forward: Forward, picture: Tensor, scale: float, grid: int, side: int, place: tuple[int, int], tolerance: float
) -> Reach:
    top, left = place

    def patch(halo: int, before: int | None = None) -> Tensor:
        before = halo if before is None else before
        up, start = max(top - before, 0), max(left - before, 0)
        output = forward(picture[..., up : top + side + halo, start : left + side + halo])
        rows, columns = (round(scale * (top - up)), round(scale * (left - start)))
        size = round(scale * side)
        return output[..., rows : rows + size, columns : columns + size].float()

    halos, patches = [_round_up(FIRST, grid)], [patch(_round_up(FIRST, grid))]
    while halos[-1] < LIMIT:
        halos.append(_round_up(2 * halos[-1], grid))
        patches.append(patch(halos[-1]))
        if _difference(patches[-1], patches[-2]) <= tolerance and (
            # What grows evenly on all sides may keep, for instance, its mean.
            _difference(patches[-1], patch(halos[-2], before=halos[-1])) <= tolerance
        ):
            low, high = halos[-3] if len(halos) > 2 else 0, halos[-2]
            step = _round_up(_FINE, grid)
            while high - low > step:
                middle = low + _round_up((high - low) // 2, step)
                if middle >= high:
                    break
                if _difference(patch(middle), patches[-1]) <= tolerance:
                    high = middle
                else:
                    low = middle
            return Reach(_round_up(high + high // MARGIN, step), True)
    invisible = (halo for halo, each in zip(halos, patches, strict=True) if _difference(each, patches[-1]) <= VISIBLE)
    # With an output that is not finite there is no difference that is small, not even from itself.
    return Reach(max(next(invisible, LIMIT), _round_up(4 * FIRST, grid)), False)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _places(picture: Tensor, side: int, grid: int) -> set[tuple[int, int]]:
    height, width = picture.shape[-2:]
    # As far from the picture's edges as the longest halo, where there is room.
    top, left = (max(min(LIMIT, (size - side) // 2) // grid * grid, 0) for size in (height, width))
    inner = picture[..., top : max(height - top, top + side), left : max(width - left, left + side)].float().mean(1, True)
    if min(inner.shape[-2:]) < side:
        return {(top, left)}
    detail = F.pad((inner[..., 1:, :] - inner[..., :-1, :]).abs(), (0, 0, 0, 1))
    found = set()
    for quantity in (detail, inner):
        means = F.avg_pool2d(quantity, side, stride=max(grid, side // 2))
        place = int(means.flatten().argmax())
        stride = max(grid, side // 2)
        found.add((top + place // means.shape[-1] * stride, left + place % means.shape[-1] * stride))
    return {(y, x) for y, x in found if y + side <= height and x + side <= width} or {(top, left)}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
