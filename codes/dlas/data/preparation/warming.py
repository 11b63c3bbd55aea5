"""The mapped cache of data sets filled, and looked through, ahead of the first epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from dlas.data.base import BadSample
from dlas.data.images.cache import MappedCache, Room, State, size_of
from dlas.data.images.files import read_size
from dlas.data.images.pairs import Kept, KeptImage
from dlas.data.pool import DIED, map_in_processes
from dlas.errors import DataError, printable

_Sample = tuple[KeptImage, ...]


class NamedKept(NamedTuple):
    """What a data set keeps, and what to call the data set."""

    name: str
    kept: Kept


@dataclass
class Warmed:
    """What became of the images of a cache.

    Args:
        folder: of the cache.
        there: images that were kept already.
        made: images that were put there.
        bytes_made: size of these.
        spoiled: images whose pixels were damaged, and which were made again.
        faults: why files could not be used.
        left_out: images for which there was no room after all.
    """

    folder: str
    there: int = 0
    made: int = 0
    bytes_made: int = 0
    spoiled: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_out: int = 0


def warm(
    sets: Sequence[NamedKept],
    workers: int,
    *,
    whole: bool = False,
    say: Callable[[str], object] = lambda words: None,
    advance: Callable[[], object] = lambda: None,
) -> list[Warmed]:
    """Puts into each cache what it lacks.

    Args:
        sets: what is kept; sets may share caches, and images.
        workers: processes; 0 works in this one.
        whole: compare what is there with its checksum, and make it again if it is spoiled.
        say: told the size of what is missing, before it is made.
        advance: called after each sample.

    Returns:
        One for each folder.

    Raises:
        DataError: what is missing is more than a cache, or its disk, has room for. Nothing has been written then.
    """
    shared: dict[str, tuple[MappedCache, dict[_Sample, None]]] = {}
    for _, kept in sets:
        key = str(kept.cache.folder)
        # The smallest budget holds for all: a run with it would not add beyond.
        cache, samples = shared.setdefault(key, (kept.cache, {}))
        if kept.cache.budget < cache.budget:
            cache = kept.cache
        samples.update(dict.fromkeys(kept.samples))
        shared[key] = (cache, samples)
    surveys = []
    for cache, samples in shared.values():
        room = cache.room()
        survey = list(map_in_processes(partial(_survey, cache=cache, whole=whole), samples, workers, _nothing_known))
        needed = _missing_bytes(samples, survey)
        say(f"cache {printable(cache.folder)}: {needed / 1e9:.3f} GB are missing")
        _check_room(cache, room, needed)
        surveys.append(survey)
    return [
        _fill(cache, list(samples), survey, workers, advance)
        for (cache, samples), survey in zip(shared.values(), surveys, strict=True)
    ]


class _Seen(NamedTuple):
    state: State
    size: int


def _survey(sample: _Sample, *, cache: MappedCache, whole: bool) -> list[_Seen]:
    return [_look(image, cache, whole) for image in sample]


def _look(image: KeptImage, cache: MappedCache, whole: bool) -> _Seen:
    state = cache.state(image.path, image.variant, whole=whole)
    if state == "sound":
        return _Seen(state, 0)
    try:
        height, width, itemsize = read_size(image.path)
    except BadSample:  # told when it is to be filled
        return _Seen(state, 0)
    return _Seen(state, size_of(height // image.scale, width // image.scale, itemsize))


def _nothing_known(sample: _Sample) -> list[_Seen]:
    return [_Seen("absent", 0) for _ in sample]


def _missing_bytes(samples: Sequence[_Sample] | dict[_Sample, None], survey: list[list[_Seen]]) -> int:
    sizes = {
        image: seen.size
        for sample, found in zip(samples, survey, strict=True)
        for image, seen in zip(sample, found, strict=True)
    }
    return sum(sizes.values())


def _check_room(cache: MappedCache, room: Room, needed: int) -> None:
    if needed > room.budget:
        raise DataError(
            f"{printable(cache.folder)}: {needed / 1e9:.3f} GB are missing in the cache, which takes "
            f"{room.budget / 1e9:.3f} GB more; raise cache_gb (now {cache.budget / 1e9:g}), or give another cache_dir. Nothing "
            "was put there"
        )
    if needed > room.disk:
        raise DataError(
            f"{printable(cache.folder)}: {needed / 1e9:.3f} GB are missing in the cache, and the disk has room for "
            f"{room.disk / 1e9:.3f} GB, a GB left to others; free some, or give another cache_dir. Nothing was put there"
        )


@dataclass(frozen=True)
class _Visit:
    states: list[State]
    fault: str = ""


def _fill(
    cache: MappedCache, samples: list[_Sample], survey: list[list[_Seen]], workers: int, advance: Callable[[], object]
) -> Warmed:
    result = Warmed(str(cache.folder))
    before = {
        image: seen for sample, found in zip(samples, survey, strict=True) for image, seen in zip(sample, found, strict=True)
    }
    result.there = sum(seen.state == "sound" for seen in before.values())
    result.spoiled = [str(image.path) for image, seen in before.items() if seen.state == "spoiled"]
    for image, seen in before.items():
        if seen.state == "spoiled":
            cache.discard(image.path, image.variant)
    missing = [sample for sample in samples if any(before[image].state != "sound" for image in sample)]
    counted: set[KeptImage] = set()
    for sample, visit in zip(missing, map_in_processes(partial(_visit, cache=cache), missing, workers, _died), strict=True):
        if visit.fault:
            result.faults.append(visit.fault)
        for image, state in zip(sample, visit.states, strict=True):
            if before[image].state == "sound" or image in counted:
                continue
            counted.add(image)
            if state == "sound":
                result.made += 1
                result.bytes_made += before[image].size
            elif not visit.fault:
                result.left_out += 1
        advance()
    return result


def _visit(sample: _Sample, *, cache: MappedCache) -> _Visit:
    fault = ""
    for image in sample:
        try:
            image.visit(cache)
        except BadSample as error:
            fault = fault or str(error)
    return _Visit([cache.state(image.path, image.variant) for image in sample], fault)


def _died(sample: _Sample) -> _Visit:
    return _Visit(["absent" for _ in sample], f"{printable(sample[0].path)}: {DIED}")
