"""Whole images to validate on, in the form that DL-Art-School's files name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dlas.data.base import BadSample
from dlas.data.images.paired import find_pairs, match_folders
from dlas.data.images.pairs import Files, ImagePairs, Planes, items_of
from dlas.data.inventory import Inventory
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS
from dlas.types import PositiveFloat, PositiveInt


@DATASETS.register("fullimage")
class FullImage(ImagePairs):
    """Whole images for validation, of any size.

    Gives `lq` and `hq` (float32 RGB in [0, 1]), `path` and a `name` unique in the set. To train on crops take `paired_images`.

    Args:
        phase: anything but "train".
        dataroot_GT: folder, or list of folders, of the high-quality images; subfolders are searched.
        dataroot_LQ: folder, or a list as long, of the low-quality partners, under the same relative paths. Without it the
            low-quality image is made with MATLAB's bicubic interpolation.
        scale: how many times larger the high-quality image is.
        force_multiple: images are cropped at the right and bottom until the sides of the low-quality image are multiples.
        cache: `none` decodes a file for every sample; `memory` keeps every decoded image, 3 bytes a pixel (6 at 16 bits);
            `mapped` keeps them in files that all processes share and of which a crop reads its own part.
        cache_dir: folder of the mapped cache; by default `$DLAS_CACHE_DIR`, or `dlas/images` in the user's folder of caches.
        cache_gb: size of the mapped cache in 10^9 bytes; what does not fit is decoded for every sample.
        on_bad_file: `error` stops at a damaged, unfit or too small file; `skip` leaves it out and reports it.

    Raises:
        ConfigurationError: it is to be trained on, or the lists differ in length.
        DataError: a folder is missing or empty, or images have no partner.
    """

    provides = ("lq", "hq", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataroot_GT: str | list[str],  # noqa: N803  # the name of the option
        dataroot_LQ: str | list[str] | None = None,  # noqa: N803
        scale: PositiveInt,
        force_multiple: PositiveInt = 1,
        cache: Literal["none", "memory", "mapped"] = "none",
        cache_dir: str | None = None,
        cache_gb: PositiveFloat = 32.0,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        if phase == "train":
            raise ConfigurationError("fullimage gives whole images of many sizes, to validate on; train on 'paired_images'")
        super().__init__(
            find_pairs(dataroot_GT, dataroot_LQ),
            training=False,
            scale=scale,
            target_size=scale,
            use_flip=False,
            use_rot=False,
            cache=cache,
            cache_dir=cache_dir,
            cache_gb=cache_gb,
            on_bad_file=on_bad_file,
        )
        self.multiple = force_multiple

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        pairing = match_folders(options["dataroot_GT"], options["dataroot_LQ"], "{}")
        scale = options["scale"]
        return Inventory(items_of(pairing.pairs), pairing.alone, scale, scale * options["force_multiple"])

    def _load(self, files: Files) -> Planes:
        hq, lq = super()._load(files)
        height, width = (size // self.multiple * self.multiple for size in lq.shape[1:])
        if min(height, width) == 0:
            raise BadSample(files.hq, f"its low-quality image has sides below force_multiple {self.multiple}; remove it")
        return Planes(hq[:, : height * self.scale, : width * self.scale], lq[:, :height, :width])
