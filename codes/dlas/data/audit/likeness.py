"""Which images are the same, or nearly: found without comparing all with all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dlas.data.images.files import ImageArray

NEAR_BITS = 16
"""Of the 256 bits of the difference hash, at most this many differ between near duplicates."""

NEAR_CORRELATION = 0.95
"""Near duplicates have thumbnails that correlate so well, or better, once a slope of brightness (two skies) is taken away."""

_ROWS, _COLUMNS = 16, 17
_BANDS = NEAR_BITS + 1  # of two hashes that differ in NEAR_BITS places, one band at least is equal
_SMALLEST_STEP = 0.5  # of 255; smaller differences between thumbnail pixels are as good as none
_SMALLEST_DETAIL = 1.0  # of 255; images with less have nothing to be recognised by
_CELLS = 4_000_000  # of a table of distances that is held at a time

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_slopes = np.linalg.qr(
    np.stack([np.ones(_ROWS * _COLUMNS), *(axis.ravel() for axis in np.mgrid[0:_ROWS, 0:_COLUMNS])], axis=1)
)[0]


@dataclass(frozen=True, slots=True)
class Likeness:
    """What an image is recognised by.

    Args:
        pixels: hash of size, depth and every pixel.
        bits: difference hash, 256 bits.
        thumbnail: 16 x 17 luma without its slope, scaled to int8; empty if there is no detail.
    """

    pixels: bytes
    bits: bytes
    thumbnail: bytes


def luma(image: ImageArray) -> NDArray[np.float32]:
    """(H, W, 3), 8 or 16 bits, to (H, W) in [0, 255]."""
    return (image.astype(np.float32) @ _LUMA) * np.float32(255 / np.iinfo(image.dtype).max)


def likeness(image: ImageArray, brightness: NDArray[np.float32]) -> Likeness:
    """What to recognise an image by: as it is, and after saving, resizing, or a change of brightness or contrast.

    Args:
        image: (H, W, 3), 8 or 16 bits.
        brightness: its luma.
    """
    digest = hashlib.blake2b(f"{image.dtype}{image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    thumbnail = cv2.resize(brightness, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
    bits = np.packbits(np.diff(thumbnail, axis=1) > _SMALLEST_STEP).tobytes()
    flat = thumbnail.ravel().astype(np.float64)
    flat -= _slopes @ (_slopes.T @ flat)
    detail = float(np.sqrt(np.mean(flat**2)))
    if detail < _SMALLEST_DETAIL:
        return Likeness(digest.digest(), bits, b"")
    return Likeness(digest.digest(), bits, np.round(flat / np.abs(flat).max() * 127).astype(np.int8).tobytes())


def near_duplicates(images: Sequence[Likeness]) -> dict[int, int]:
    """For each image that is nearly another one before it (but not the same pixels): the first of those.

    Hashes are cut into 17 bands, and only images that share a band are compared.
    """
    telling = [i for i, image in enumerate(images) if image.thumbnail]
    if len(telling) < 2:
        return {}
    bits = _unpacked([images[i] for i in telling])
    # Neighbouring bits agree in plain regions; scattered over the bands, they leave each with something to tell.
    scattered = bits[:, np.random.default_rng(0).permutation(bits.shape[1])]
    twins: dict[int, int] = {}
    for band in np.array_split(scattered, _BANDS, axis=1):
        keys = band.astype(np.int64) @ (1 << np.arange(band.shape[1], dtype=np.int64))
        for group in _groups(keys):
            for later, candidates in _close(group, bits):
                j = telling[later]
                for i in (telling[each] for each in candidates):
                    if i >= twins.get(j, j):
                        break
                    if images[i].pixels != images[j].pixels and _correlate(images[i], images[j]):
                        twins[j] = i
    return dict(sorted(twins.items()))


def find_like(image: Likeness, images: Sequence[Likeness]) -> int | None:
    """The first of `images` that shows the same picture as `image`, if any does."""
    if not image.thumbnail or not images:
        return None
    distance = (_unpacked(images) != _unpacked([image])).sum(axis=1)
    near = np.flatnonzero(distance <= NEAR_BITS).tolist()
    return next((i for i in near if images[i].thumbnail and _correlate(image, images[i])), None)


def _unpacked(images: Sequence[Likeness]) -> NDArray[np.uint8]:
    packed = np.frombuffer(b"".join(image.bits for image in images), np.uint8)
    return np.unpackbits(packed.reshape(len(images), -1), axis=1)


def _groups(keys: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    yield from (group for group in np.split(order, starts) if len(group) > 1)


def _close(group: NDArray[np.int64], bits: NDArray[np.uint8]) -> Iterator[tuple[int, list[int]]]:
    """Members of a group, each with the earlier ones whose hashes are near, in ascending order."""
    signs = bits[group].astype(np.float32) * 2 - 1
    rows = max(1, _CELLS // len(group))
    for start in range(0, len(group), rows):
        agreement = signs[start : start + rows] @ signs.T  # equal bits minus unequal ones
        near = agreement >= bits.shape[1] - 2 * NEAR_BITS
        for row in range(len(near)):
            earlier = np.flatnonzero(near[row, : start + row])
            if len(earlier):
                yield int(group[start + row]), group[earlier].tolist()


def _correlate(one: Likeness, other: Likeness) -> bool:
    a, b = (np.frombuffer(each.thumbnail, np.int8).astype(np.float64) for each in (one, other))
    return float(a @ b) >= NEAR_CORRELATION * float(np.linalg.norm(a) * np.linalg.norm(b))
