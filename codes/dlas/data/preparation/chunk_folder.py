"""DL-Art-School's folders of tiles: beside those of a picture, the whole of it made small, and where each lies in it."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import torch

from dlas.data.images.files import ImageArray
from dlas.data.preparation.tiles import Tile

_QUALITY = 95


def reference(image: ImageArray, size: int) -> bytes:
    """`ref.jpg`: the whole picture squeezed into a square of the tiles' size, 8 bits, by averaging over pixels.

    Args:
        image: (H, W, 3), uint8 or uint16.
        size: side of the square.
    """
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    if small.dtype == np.uint16:
        small = (small.astype(np.float32) / 257).round().astype(np.uint8)
    done, data = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return data.tobytes()


def centers(image: ImageArray, tiles: list[Tile], size: int) -> bytes:
    """`centers.pt`: `{number: ((row, column), width)}`, the centre and the width of each tile in pixels of the reference.

    A picture that is not square is squeezed in one direction; there the width is the mean of both sides of the tile.

    Args:
        image: (H, W, 3).
        tiles: those that are kept.
        size: side of the tiles and of the reference.
    """
    down, across = size / image.shape[0], size / image.shape[1]
    width = round(size * (down + across) / 2)
    places = {tile.number: ((int((tile.top + size / 2) * down), int((tile.left + size / 2) * across)), width) for tile in tiles}
    file = BytesIO()
    torch.save(places, file)
    return file.getvalue()
