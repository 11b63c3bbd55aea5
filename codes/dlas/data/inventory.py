"""What a data set holds, told from its options without reading a file: for the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """What one sample is made from.

    Args:
        files: file by role: `hq`, `lq` or `video`. With both images, `lq` is to be `hq` made smaller.
        frames: of a video, the frames that are taken.
    """

    files: Mapping[str, Path]
    frames: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alone:
    """A file that is no part of any sample.

    Args:
        path: the file.
        reason: why not.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Inventory:
    """All that a data set would read.

    Args:
        items: each once, in the order of the data set, however often it is taken.
        alone: files beside them that should have been part of one: without a partner, or with two.
        scale: how many times larger than the low-quality image the other is.
        smallest: side in pixels below which a high-quality image cannot be used.
        enlarged_below: side below which a high-quality image is used, but enlarged first; 0 if none is.
    """

    items: list[Item]
    alone: list[Alone] = field(default_factory=list)
    scale: int = 1
    smallest: int = 1
    enlarged_below: int = 0
