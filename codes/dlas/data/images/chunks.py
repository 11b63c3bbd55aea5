"""Large images that were cut into tiles beforehand, one folder of tiles an image."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from dlas.data.base import Request, Sample
from dlas.data.images.corruptions import Corruptor
from dlas.data.images.pairs import unique_names
from dlas.data.images.squares import CutImages, as_tensor, images_below
from dlas.data.inventory import Inventory, Item
from dlas.errors import DataError
from dlas.registry import DATASETS
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveInt


@DATASETS.register("single_image_extensible")
class SingleImageExtensible(CutImages):
    """Tiles of images: folders of `00000001.jpg`, ..., each with the whole image as `ref.jpg` and tile places in `centers.pt`.

    Gives `hq` (3, S, S) and `lq` (3, S / scale, S / scale), float32 RGB in [0, 1], `path`, and a `name` that is unique in the
    set. A tile is brought to `target_size` and made smaller by averaging over pixels, so it is best cut at that size. The
    picture and the places of the tiles are not read.

    Args:
        phase: what the set is used for; a tile is treated the same for all uses.
        paths: folder, or list of folders, that hold the folders of tiles.
        weights: for a list of folders: how often each is taken.
        target_size: side of the high-quality tile in pixels; a multiple of `scale` times `force_multiple`.
        scale: how many times larger the high-quality tile is.
        force_multiple: the side of the low-quality tile is a multiple of this.
        ignore_first: number of tiles left out at the start of each folder.
        strict: stop if a folder of tiles has no `centers.pt`: it was not cut for this.
        eval: the low-quality tile is the high-quality one, undamaged.
        fixed_corruptions: damage to every low-quality tile: `jpeg-broad`, `gaussian_blur`, ...
        random_corruptions: damages to draw from.
        num_corrupts_per_image: how many are drawn for a tile.
        corruption_blur_scale: factor on the width of `gaussian_blur`.
        cosine_bias: damage is mostly mild.
        corrupt_before_downsize: damage before the tile is made smaller.
        random_seed: damage a tile alike at every visit.
        on_bad_file: `error` stops at a damaged file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: options contradict each other.
        DataError: a folder is missing or has no tiles.
    """

    provides = ("lq", "hq", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        paths: str | list[str],
        weights: list[PositiveInt] | None = None,
        target_size: PositiveInt,
        scale: PositiveInt,
        force_multiple: PositiveInt = 1,
        ignore_first: NonNegativeInt = 0,
        strict: bool = False,
        eval: bool = False,
        fixed_corruptions: list[str] | None = None,
        random_corruptions: list[str] | None = None,
        num_corrupts_per_image: NonNegativeInt = 0,
        corruption_blur_scale: NonNegativeFloat = 1.0,
        cosine_bias: bool = True,
        corrupt_before_downsize: bool = False,
        random_seed: NonNegativeInt | None = None,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__(
            find_tiles(paths, weights, ignore_first, strict),
            scale=scale,
            target_size=target_size,
            force_multiple=force_multiple,
            corruptor=Corruptor(
                fixed_corruptions or [], random_corruptions or [], num_corrupts_per_image, corruption_blur_scale, cosine_bias
            ),
            corrupt_before_downsize=corrupt_before_downsize,
            random_seed=random_seed,
        )
        self.undamaged = eval
        self.on_bad_file = on_bad_file
        self.names = unique_names(self.files)

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        tiles = find_tiles(options["paths"], None, options["ignore_first"], options["strict"])
        return Inventory([Item({"hq": path}) for path in tiles], scale=options["scale"], enlarged_below=options["target_size"])

    def __getitem__(self, request: Request) -> Sample:
        hq = self.read(request.index)
        lq = hq if self.undamaged else self.degrade(hq, request)[0]
        name = self.names[request.index]
        return {"lq": as_tensor(lq), "hq": as_tensor(hq), "path": str(self.files[request.index]), "name": name}


def find_tiles(paths: str | list[str], weights: list[int] | None, ignore_first: int, strict: bool) -> list[Path]:
    """The tiles below folders of folders; the pictures of the whole images (`ref`) are left out.

    Raises:
        DataError: there is no tile, or with `strict` a folder of tiles has no `centers.pt`.
    """
    files = [file for file in images_below(paths, weights) if file.stem != "ref"]
    tiles = []
    for folder, inside in groupby(files, key=lambda file: file.parent):
        if strict and not (folder / "centers.pt").is_file():
            raise DataError(f"{folder} has no centers.pt; cut the images into tiles again, or write 'strict: false'")
        tiles += list(inside)[ignore_first:]
    if not tiles:
        raise DataError(f"{paths}: no tiles in these folders (ignore_first is {ignore_first})")
    return tiles
