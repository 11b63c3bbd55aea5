"""One picture: read, cut, made smaller, written, and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from dlas.data.base import BadSample
from dlas.data.images.files import ImageArray, encode_png, read_image
from dlas.data.images.pairs import shrink
from dlas.data.preparation import records
from dlas.data.preparation.chunk_folder import centers, reference
from dlas.data.preparation.plan import Plan
from dlas.data.preparation.records import Planned, Record
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

    Args:
        picture: what to prepare.
        out: folder of the results.
        plan: what to make.
        whole: compare earlier results with their checksums.
    """
    seen = records.look(out, picture.name, picture.source, whole=whole)
    if seen.sound:
        return Outcome(seen.record, "there")
    try:
        image = read_image(picture.source)
        everything = tiles(image, plan, picture.source)
    except BadSample as error:
        records.forget(out, picture.name, seen.files)
        return Outcome(None, "too small" if isinstance(error, TooSmall) else "damaged", str(error))
    kept = [tile for tile in everything if not plan.min_detail or detail(tile.pixels) >= plan.min_detail]
    flat = len(everything) - len(kept)
    planned = list((_chunk if plan.layout == "chunks" else _files)(picture.name, image, kept, plan))
    record = records.make(out, picture.name, Record(str(picture.source), *seen.identity, flat), seen.files, planned)
    return Outcome(record, "made", spoiled=tuple(file.path for file in seen.spoiled if file.size >= 0))


def _files(name: str, image: ImageArray, kept: list[Tile], plan: Plan) -> Iterator[Planned]:
    for tile in kept:
        file = f"{name}.png" if plan.tile_size is None else f"{name}_s{tile.number:03d}.png"
        height, width = tile.pixels.shape[:2]
        yield Planned(f"{plan.hq_folder}/{file}", height, width, partial(encode_png, tile.pixels))
        if plan.scale > 1:
            encode = partial(_encode_small, tile.pixels, plan.scale)
            yield Planned(f"{plan.lq_folder}/{file}", height // plan.scale, width // plan.scale, encode)


def _encode_small(pixels: ImageArray, scale: int) -> bytes:
    return encode_png(shrink(pixels, scale))


def _chunk(name: str, image: ImageArray, kept: list[Tile], plan: Plan) -> Iterator[Planned]:
    if not kept or plan.tile_size is None:
        return
    folder = f"{plan.hq_folder}/{name}"
    for tile in kept:
        height, width = tile.pixels.shape[:2]
        yield Planned(f"{folder}/{tile.number:08d}.png", height, width, partial(encode_png, tile.pixels))
    yield Planned(f"{folder}/ref.jpg", 0, 0, partial(reference, image, plan.tile_size))
    yield Planned(f"{folder}/centers.pt", 0, 0, partial(centers, image, kept, plan.tile_size))
