"""Where tiles lie in a picture, and which of them are flat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlas.data.base import BadSample
from dlas.data.images.files import ImageArray
from dlas.data.images.pairs import whole_multiple
from dlas.data.preparation.plan import Plan

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class TooSmall(BadSample):  # as its base
    """A picture is smaller than a tile, or than the scale."""


class Tile(NamedTuple):
    """A part of a picture.

    Args:
        number: its place in the order of rows and columns, from 1; those that are left out count.
        top: row of its first pixel.
        left: column of its first pixel.
        pixels: (h, w, 3), cropped to multiples of the scale.
    """

    number: int
    top: int
    left: int
    pixels: ImageArray


def tiles(image: ImageArray, plan: Plan, path: Path) -> list[Tile]:
    """All tiles of a picture, as views, flat ones too; without `tile_size` the whole of it is the only one.

    Args:
        image: (H, W, 3).
        plan: says how they lie.
        path: of the picture, for messages.

    Raises:
        TooSmall: there is no room for one.
    """
    if plan.tile_size is None:
        if min(image.shape[:2]) < plan.scale:
            raise TooSmall(path, _small(image, plan.scale, "the scale"))
        return [Tile(1, 0, 0, whole_multiple(image, plan.scale, path))]
    if min(image.shape[:2]) < plan.tile_size:
        raise TooSmall(path, _small(image, plan.tile_size, "tile-size"))
    return [
        Tile(
            number, top, left, whole_multiple(image[top : top + plan.tile_size, left : left + plan.tile_size], plan.scale, path)
        )
        for number, (top, left) in enumerate(_places(image, plan.tile_size, plan), 1)
    ]


def _small(image: ImageArray, least: int, name: str) -> str:
    return f"is {image.shape[1]} x {image.shape[0]} pixels; expected {least} x {least} ({name}) at least; lower it or remove it"


def _places(image: ImageArray, size: int, plan: Plan) -> Iterator[tuple[int, int]]:
    rows, columns = (starts(side, size, plan.step or size, plan.thresh_size) for side in image.shape[:2])
    return ((top, left) for top in rows for left in columns)


def starts(length: int, size: int, step: int, thresh_size: int) -> list[int]:
    """First pixels of the tiles along a side, as BasicSR's extract_subimages has them.

    Args:
        length: of the side in pixels, `size` at least.
        size: of a tile.
        step: from a start to the next.
        thresh_size: a last tile that ends with the side is added if more pixels than this are left over.
    """
    found = list(range(0, length - size + 1, step))
    if length - (found[-1] + size) > thresh_size:
        found.append(length - size)
    return found


def detail(image: ImageArray) -> float:
    """Mean absolute difference of neighbouring pixels of the luma (BT.601), of 255, averaged over both directions.

    0 for one colour; it does not depend on the depth.

    Args:
        image: (H, W, 3), uint8 or uint16.
    """
    luma = image.astype(np.float32) @ (_LUMA * (np.float32(255) / np.float32(np.iinfo(image.dtype).max)))
    differences = [float(np.abs(np.diff(luma, axis=axis)).mean()) for axis in (0, 1) if luma.shape[axis] > 1]
    return sum(differences) / len(differences) if differences else 0.0
