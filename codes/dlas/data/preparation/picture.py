"""One picture: read, cut, made smaller, written, and recorded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from dlas.data.base import BadSample
from dlas.data.images.files import ImageArray, encode_png, read_image, write_whole
from dlas.data.images.pairs import shrink
from dlas.data.preparation import records
from dlas.data.preparation.chunk_folder import centers, reference
from dlas.data.preparation.plan import Plan
from dlas.data.preparation.records import Record, Written
from dlas.data.preparation.tiles import Tile, TooSmall, detail, tiles


class Picture(NamedTuple):
    """A picture that is to be prepared.

    Args:
        source: its file.
        name: what its results are called; no two pictures share one.
    """

    source: Path
    name: str


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Args:
        record: what there is of it now; None if it cannot be used.
        state: `made` now, `there` already, `too small`, or `damaged`.
        fault: why it cannot be used.
        spoiled: files of an earlier call that were missing or not as they were written.
    """

    record: Record | None
    state: Literal["made", "there", "too small", "damaged"]
    fault: str = ""
    spoiled: tuple[str, ...] = ()


def prepare_picture(picture: Picture, *, out: Path, plan: Plan, whole: bool) -> Outcome:
    """Makes what is missing of a picture.

    The names of its files are recorded before the first is written and their checksums after the last, so that after a kill the
    next call knows both what is missing and what may be there.

    Args:
        picture: what to prepare.
        out: folder of the results.
        plan: what to make.
        whole: compare earlier results with their checksums.
    """
    before = records.read(records.file_of(out, picture.name))
    spoiled: list[Written] = []
    try:
        if before is not None and before.is_of(picture.source):
            spoiled = records.faults(out, before, whole=whole)
            if not spoiled:
                return Outcome(before, "there")
        identity = records.identify(picture.source)
    except OSError:  # to read the file says more of what is wrong with it
        identity = (-1, -1)
    earlier = before.files if before is not None else []
    try:
        image = read_image(picture.source)
        everything = tiles(image, plan, picture.source)
    except BadSample as error:
        records.remove(out, earlier)
        records.file_of(out, picture.name).unlink(missing_ok=True)
        return Outcome(None, "too small" if isinstance(error, TooSmall) else "damaged", str(error))
    kept = [tile for tile in everything if not plan.min_detail or detail(tile.pixels) >= plan.min_detail]
    flat = len(everything) - len(kept)
    planned = list((_chunk if plan.layout == "chunks" else _files)(picture.name, image, kept, plan))
    paths = {each.path for each in planned}
    leftover = [file for file in earlier if file.path not in paths]
    begun = [Written(each.path, each.height, each.width) for each in planned]
    records.write(out, picture.name, Record(str(picture.source), *identity, flat, begun + leftover))
    records.remove(out, leftover)
    written = []
    for each in planned:
        data = each.encode()
        write_whole(out / each.path, data)
        written.append(Written(each.path, each.height, each.width, len(data), zlib.crc32(data)))
    record = Record(str(picture.source), *identity, flat, written)
    records.write(out, picture.name, record)
    return Outcome(record, "made", spoiled=tuple(file.path for file in spoiled if file.size >= 0))


class _Planned(NamedTuple):
    path: str
    height: int
    width: int
    encode: Callable[[], bytes]


def _files(name: str, image: ImageArray, kept: list[Tile], plan: Plan) -> Iterator[_Planned]:
    for tile in kept:
        file = f"{name}.png" if plan.tile_size is None else f"{name}_s{tile.number:03d}.png"
        height, width = tile.pixels.shape[:2]
        yield _Planned(f"{plan.hq_folder}/{file}", height, width, partial(encode_png, tile.pixels))
        if plan.scale > 1:
            encode = partial(_encode_small, tile.pixels, plan.scale)
            yield _Planned(f"{plan.lq_folder}/{file}", height // plan.scale, width // plan.scale, encode)


def _encode_small(pixels: ImageArray, scale: int) -> bytes:
    return encode_png(shrink(pixels, scale))


def _chunk(name: str, image: ImageArray, kept: list[Tile], plan: Plan) -> Iterator[_Planned]:
    if not kept or plan.tile_size is None:
        return
    folder = f"{plan.hq_folder}/{name}"
    for tile in kept:
        height, width = tile.pixels.shape[:2]
        yield _Planned(f"{folder}/{tile.number:08d}.png", height, width, partial(encode_png, tile.pixels))
    yield _Planned(f"{folder}/ref.jpg", 0, 0, partial(reference, image, plan.tile_size))
    yield _Planned(f"{folder}/centers.pt", 0, 0, partial(centers, image, kept, plan.tile_size))
