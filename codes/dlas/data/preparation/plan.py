"""What is made of each picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlas.errors import ConfigurationError


@dataclass(frozen=True)
class Plan:
    """Decides, with the pictures, about every byte that is written.

    Args:
        tile_size: side of the square tiles in pixels; None leaves pictures whole.
        step: from the start of a tile to that of the next one, in pixels; None is `tile_size`, so that they do not overlap.
        thresh_size: where more pixels than this are left over at the right or bottom, a last tile is laid along that edge.
        min_detail: tiles (or whole pictures) of less detail are left out; see `detail`.
        scale: pictures and tiles are cropped to multiples of this, and partners made that much smaller; 1 makes none.
        layout: `files` writes one folder of pictures (and one of partners); `chunks` a folder of tiles for each picture.

    Raises:
        ConfigurationError: options contradict each other.
    """

    tile_size: int | None = None
    step: int | None = None
    thresh_size: int = 0
    min_detail: float = 0.0
    scale: int = 1
    layout: Literal["files", "chunks"] = "files"

    def __post_init__(self) -> None:
        if self.tile_size is None:
            if self.step is not None or self.thresh_size:
                raise ConfigurationError("step and thresh-size are for tiles; give tile-size, too, or remove them")
            if self.layout == "chunks":
                raise ConfigurationError("chunk folders hold tiles; give tile-size, too")
        elif self.tile_size < self.scale:
            raise ConfigurationError(f"tile-size {self.tile_size} is less than a pixel at scale {self.scale}; raise it")
        if self.layout == "chunks" and self.scale > 1:
            raise ConfigurationError(
                "chunk folders have no low-quality pictures: the data set makes them as it reads; remove scale"
            )

    @property
    def hq_folder(self) -> str:
        """Of the pictures or tiles; with `chunks` it holds a folder for each picture."""
        return "HR" if self.layout == "files" else "chunks"

    @property
    def lq_folder(self) -> str:
        """Of the partners, of the same names."""
        return f"LR_x{self.scale}"
