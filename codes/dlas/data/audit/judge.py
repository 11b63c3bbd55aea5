"""From what was measured to what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlas.data.audit.facts import FileFacts, ItemFacts, PairFacts
from dlas.data.audit.findings import Finding
from dlas.data.audit.likeness import Likeness, find_like, near_duplicates
from dlas.data.images.files import EXTENSIONS
from dlas.data.inventory import Inventory
from dlas.errors import printable

SHIFT_ERROR = 0.45
"""Low-quality pixels: half a pixel, less the resolution of the estimate."""

SHIFT_WARNING = 0.2

UNLIKE_PSNR = 15.0
"""dB. A low-quality image is called unlike its partner below this, if it does not correlate with it either: strong noise or
another brightness lowers the first and not the second."""

UNLIKE_CORRELATION = 0.5

BLANK_DEVIATION = 1.0
"""Of 255."""

_USUAL_FORMAT = {extension: extension[1:].upper() for extension in EXTENSIONS}
_USUAL_FORMAT |= {".jpg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}
_ALSO = {"MPO": "JPEG", "DIB": "BMP"}
_CONVERTED = ("CMYK", "YCbCr", "LAB", "HSV")


def judge_set(name: str, inventory: Inventory, facts: Sequence[ItemFacts]) -> Iterator[Finding]:
    """Faults of the files and pairs of one data set, and of its images among each other."""
    for each in inventory.alone:
        yield Finding("alone", name, (each.path,), each.reason)
    for item in facts:
        for file in item.files.values():
            yield from (Finding(kind, name, (file.path,), detail) for kind, detail in _file(file))
        yield from _sizes(name, inventory, item)
        if item.pair is not None:
            yield from _pair(name, item, item.pair, facts)
    yield from _repeated(name, facts)


def judge_leaks(training: str, known: Sequence[ItemFacts], name: str, facts: Sequence[ItemFacts]) -> Iterator[Finding]:
    """Images of a validation set that are in the training set too."""
    ours, theirs = _recognisable(facts), _recognisable(known)
    by_pixels: dict[bytes, Path] = {}
    for path, like in theirs:
        by_pixels.setdefault(like.pixels, path)
    exact = set()
    for place, (path, like) in enumerate(ours):
        if like.pixels in by_pixels:
            exact.add(place)
            twin = by_pixels[like.pixels]
            same_file = "the same file is" if twin == path else f"{printable(twin)} has the same pixels and is"
            yield Finding("leak", name, (path, twin), f"{same_file} in datasets.{training}")
    for j, i in near_duplicates([like for _, like in theirs] + [like for _, like in ours]).items():
        if i < len(theirs) <= j and j - len(theirs) not in exact:
            path, twin = ours[j - len(theirs)][0], theirs[i][0]
            yield Finding("near_leak", name, (path, twin), f"like {printable(twin)} in datasets.{training}")


def main_file(item: ItemFacts) -> FileFacts | None:
    """The file that says what a sample shows: the high-quality one where there is one."""
    return item.files.get("hq") or item.files.get("lq")


def _file(file: FileFacts) -> Iterator[tuple[str, str]]:
    if file.error is not None:
        yield "unreadable", file.error
        return
    if file.likeness is None:  # a video
        return
    if file.deviation < BLANK_DEVIATION:
        plain = "every pixel is the same" if file.deviation == 0 else f"luma deviates by {file.deviation:.2f} of 255"
        yield "blank", f"{file.width} x {file.height}: {plain}"
    if file.alpha == "transparent":
        yield "transparent", f"{file.format}, {file.mode}"
    if file.profile and "srgb" not in file.profile.lower():
        yield "profile", f"profile '{printable(file.profile)}'"
    if file.frames > 1:
        yield "animated", f"{file.format} of {file.frames} pictures or more"
    if file.mode in ("1", "L", "LA", "I;16"):
        yield "grey", f"{file.format}, {file.bits} bits"
    if file.mode in _CONVERTED:
        yield "converted", file.mode
    if file.orientation in range(2, 9):
        yield "turned", f"orientation {file.orientation}; {file.width} x {file.height} once upright"
    usual = _USUAL_FORMAT.get(file.path.suffix.lower())
    if usual is not None and _ALSO.get(file.format, file.format) != usual:
        yield "ending", f"is a {file.format} file"


def _sizes(name: str, inventory: Inventory, item: ItemFacts) -> Iterator[Finding]:
    hq, lq = item.files.get("hq"), item.files.get("lq")
    if hq is None or hq.error is not None:
        return
    scale = inventory.scale
    side = min(hq.width, hq.height) // scale * scale
    if side < inventory.smallest:
        detail = f"{hq.width} x {hq.height}; expected at least {inventory.smallest} each way"
        yield Finding("too_small", name, (hq.path,), detail)
    elif min(hq.width, hq.height) < inventory.enlarged_below:
        yield Finding("enlarged", name, (hq.path,), f"{hq.width} x {hq.height}, brought to {inventory.enlarged_below}")
    if lq is None or lq.error is not None:
        return
    expected = (hq.width // scale, hq.height // scale)
    if (lq.width, lq.height) != expected:
        found = f"{lq.width} x {lq.height}, and {printable(hq.path)} is {hq.width} x {hq.height}"
        likely = _likely_scale(hq, lq)
        hint = f"; looks like scale {likely}" if likely else ""
        detail = f"{found}; scale {scale} makes {expected[0]} x {expected[1]}{hint}"
        yield Finding("size", name, (lq.path, hq.path), detail)
    if hq.bits != lq.bits:
        yield Finding("depth", name, (lq.path, hq.path), f"{lq.bits} bits, and {printable(hq.path)} has {hq.bits}")


def _likely_scale(hq: FileFacts, lq: FileFacts) -> int | None:
    if (lq.width, lq.height) == (hq.height, hq.width):
        return None
    scale = round(hq.width / lq.width)
    return scale if scale >= 1 and (lq.width, lq.height) == (hq.width // scale, hq.height // scale) else None


def _pair(name: str, item: ItemFacts, pair: PairFacts, facts: Sequence[ItemFacts]) -> Iterator[Finding]:
    files = (item.files["lq"].path, item.files["hq"].path)
    if pair.correlation is not None and pair.correlation < UNLIKE_CORRELATION and pair.psnr < UNLIKE_PSNR:
        detail = f"PSNR {pair.psnr:.1f} dB and correlation {pair.correlation:.2f} against its partner made smaller"
        own = item.files["lq"].likeness
        candidates = _recognisable(facts)
        match = find_like(own, [like for _, like in candidates]) if own is not None else None
        if match is not None:
            detail += f"; it looks like {printable(candidates[match][0])}"
        yield Finding("unlike", name, files, detail)
    elif pair.shift is not None and (length := math.hypot(*pair.shift)) >= SHIFT_WARNING:
        down, right = pair.shift
        detail = f"by {right:+.2f} right and {down:+.2f} down, in low-quality pixels"
        yield Finding("shifted" if length >= SHIFT_ERROR else "slightly_shifted", name, files, detail)


def _repeated(name: str, facts: Sequence[ItemFacts]) -> Iterator[Finding]:
    images = _recognisable(facts)
    first: dict[bytes, Path] = {}
    files: set[Path] = set()
    for path, like in images:
        if path in files:
            yield Finding("listed_twice", name, (path,), "the folders that are named overlap")
        elif like.pixels in first:
            yield Finding("duplicate", name, (path, first[like.pixels]), f"same pixels as {printable(first[like.pixels])}")
        first.setdefault(like.pixels, path)
        files.add(path)
    for j, i in near_duplicates([like for _, like in images]).items():
        yield Finding("near_duplicate", name, (images[j][0], images[i][0]), f"like {printable(images[i][0])}")


def _recognisable(facts: Sequence[ItemFacts]) -> list[tuple[Path, Likeness]]:
    files = [file for item in facts if (file := main_file(item)) is not None]
    return [(file.path, file.likeness) for file in files if file.likeness is not None]
