"""High-quality images whose low-quality partners are made anew at every visit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlas.data.base import BadSample, Dataset, Request, Sample, TensorSpec
from dlas.data.images.cache import MappedCache
from dlas.data.images.files import ImageArray, open_rows, read_image
from dlas.data.images.paired import check_repeats, find_pairs
from dlas.data.images.pairs import Kept, KeptImage, items_of, unique_names
from dlas.data.images.png_rows import PngRows
from dlas.data.inventory import Inventory
from dlas.degradations import create_degradation
from dlas.degradations.base import Recipe, Sharpen
from dlas.degradations.host import FloatImage, apply, degrade
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS
from dlas.types import DegradationOptions, PositiveFloat, PositiveInt


@DATASETS.register("degraded_images", "RealESRGANDataset")
class DegradedImages(Dataset):
    """Folders of high-quality images for blind super-resolution and restoration; `degradation` makes the low-quality images.

    Gives `lq`, `hq` and `hq_usm` (float32 RGB in [0, 1]; `hq_usm` is `hq` as the degradation sharpened it, or `hq` itself),
    `recipe` (what was done, in words) and `path`; outside the train phase the whole image and its `name`. What is drawn depends
    on the seed of the run and the place of the sample in its order alone, so that every visit differs and every restart agrees.

    Args:
        phase: "train" for random crops, anything else for whole images.
        dataroot_gt: folder, or list of folders, of the high-quality images; subfolders are searched.
        meta_info: text file that names the images to take from `dataroot_gt`, one relative path a line (BasicSR's
            `meta_info_file`); for several folders a list of such files.
        repeats: for several folders: how often the images of each are taken in an epoch (train phase).
        scale: how many times larger the high-quality image is.
        degradation: how the low-quality image is made: `{type: realesrgan}` or another of `dlas list degradations`.
        target_size: height and width in pixels of the high-quality crop (train phase); a multiple of `scale`.
        degradation_size: side in pixels of the larger crop that is degraded before `target_size` is cut from it, so that blurs
            see what lies around; smaller images are continued by their mirror image. A multiple of `scale`.
        use_flip: mirror crops left to right at random (train phase).
        use_rot: turn crops by a random multiple of 90 degrees (train phase).
        cache: `none` decodes a file for every sample; `memory` keeps every decoded image, 3 bytes a pixel (6 at 16 bits);
            `mapped` keeps them in files that all processes share and of which a crop reads its own part.
        cache_dir: folder of the mapped cache; by default `$DLAS_CACHE_DIR`, or `dlas/images` in the user's folder of caches.
        cache_gb: size of the mapped cache in 10^9 bytes; what does not fit is decoded for every sample.
        on_bad_file: `error` stops at a damaged or too small file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: sizes are no multiples of `scale`, or the degradation's options contradict each other.
        DataError: a folder is missing or empty.
    """

    provides = ("lq", "hq", "hq_usm", "recipe", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataroot_gt: str | list[str],
        meta_info: str | list[str] | None = None,
        repeats: list[PositiveInt] | None = None,
        scale: PositiveInt,
        degradation: DegradationOptions,
        target_size: PositiveInt = 256,
        degradation_size: PositiveInt = 400,
        use_flip: bool = True,
        use_rot: bool = False,
        cache: Literal["none", "memory", "mapped"] = "none",
        cache_dir: str | None = None,
        cache_gb: PositiveFloat = 32.0,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        _check_sizes(scale, target_size, degradation_size)
        check_repeats(phase, repeats)
        self.files = [pair.hq for pair in find_pairs(dataroot_gt, meta_info=meta_info, repeats=repeats)]
        self.training = phase == "train"
        self.scale = scale
        self.on_bad_file = on_bad_file
        self.degradation = create_degradation(degradation)
        self._names = unique_names(self.files)
        self._size = target_size
        self._context_size = degradation_size
        self._use_flip = use_flip
        self._use_rot = use_rot
        self._kept: dict[Path, ImageArray] | None = {} if cache == "memory" else None
        self._mapped = MappedCache(cache_dir, cache_gb) if cache == "mapped" else None

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        if phase != "train":  # whole images, of any size
            return None
        scale, size = options["scale"], options["target_size"]
        _check_sizes(scale, size, options["degradation_size"])
        hq = TensorSpec((3, size, size))
        lq = TensorSpec((3, size // scale, size // scale))
        return {"lq": lq, "hq": hq, "hq_usm": hq, "recipe": "", "path": "image.png"}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        items = items_of(find_pairs(options["dataroot_gt"], meta_info=options["meta_info"]))
        smallest = options["target_size"] if phase == "train" else 2 * options["scale"]
        return Inventory(items, scale=options["scale"], smallest=smallest)

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> str:
        return str(self.files[index])

    def prepare(self) -> None:
        """Fills the memory cache, which worker processes then share. A bad file is reported when its sample is asked for.

        The mapped cache is filled by the workers, side by side.
        """
        if self._mapped is not None:
            self._mapped.open()
        for index in range(len(self)) if self._kept is not None else ():
            try:
                self._read(index)
            except BadSample:
                continue

    def kept_images(self) -> Kept | None:
        if self._mapped is None:
            return None
        return Kept(self._mapped, [(KeptImage(path),) for path in dict.fromkeys(self.files)])

    def __getitem__(self, request: Request) -> Sample:
        if self.training:
            hq = self._cut(self._readable(request.index), request)
        else:
            hq = self._whole(self._read(request.index), request.index)
        rng = request.rng("degradation")
        recipe = self.degradation.draw(rng, hq.shape[0], hq.shape[1], self.scale)
        sharp, lq = self._degrade(hq, recipe, rng)
        words = " | ".join(str(operation) for operation in recipe)
        sample: Sample = {"recipe": words, "path": str(self.files[request.index])}
        if self.training:
            top, left = (int(place * ((self._context_size - self._size) // self.scale + 1)) for place in rng.random(2))
            side, scale = self._size // self.scale, self.scale
            lq = lq[top : top + side, left : left + side]
            window = np.s_[top * scale : top * scale + self._size, left * scale : left * scale + self._size]
            hq, sharp = hq[window], sharp[window]
        else:
            sample["name"] = self._names[request.index]
        return {"lq": _tensor(lq), "hq": _tensor(hq), "hq_usm": _tensor(sharp), **sample}

    def _degrade(self, hq: FloatImage, recipe: Recipe, rng: np.random.Generator) -> tuple[FloatImage, FloatImage]:
        sharp, rest = hq, recipe
        if isinstance(recipe[0], Sharpen):
            sharp, rest = apply(hq, recipe[0], torch.Generator()), recipe[1:]
        return sharp, degrade(sharp, rest, rng)

    def _readable(self, index: int) -> ImageArray | PngRows:
        """The image, or, where nothing is kept, its file if that can be decoded in part."""
        rows = open_rows(self.files[index]) if self._kept is None and self._mapped is None else None
        return self._read(index) if rows is None else rows

    def _read(self, index: int) -> ImageArray:
        if self._mapped is not None:
            path = self.files[index]
            return self._mapped.image(path, "", lambda: read_image(path))
        image = self._kept.get(self.files[index]) if self._kept is not None else None
        if image is None:
            image = read_image(self.files[index])
            if self._kept is not None:
                self._kept[self.files[index]] = image
        return image

    def _whole(self, image: ImageArray, index: int) -> FloatImage:
        height, width = (side // self.scale * self.scale for side in image.shape[:2])
        if min(height, width) < 2 * self.scale:
            raise BadSample(
                self.files[index],
                f"is {image.shape[1]} x {image.shape[0]} pixels; expected {2 * self.scale} or more each way; remove it",
            )
        return _float(image[:height, :width])

    def _cut(self, image: ImageArray | PngRows, request: Request) -> FloatImage:
        side = self._context_size
        height, width = image.shape[:2]
        if min(height, width) < self._size:
            raise BadSample(
                self.files[request.index],
                f"is {width} x {height} pixels; expected {self._size} x {self._size} at least (target_size); lower "
                "target_size or remove it",
            )
        # All four are always drawn, so that switching an option leaves the other draws as they were.
        down, right, turn, mirror = request.rng("crop").random(4).tolist()
        top, left = int(down * max(height - side + 1, 1)), int(right * max(width - side + 1, 1))
        crop = _float(image[top : top + side, left : left + side])
        missing = [(0, max(side - present, 0)) for present in crop.shape[:2]]
        if missing != [(0, 0), (0, 0)]:
            crop = np.pad(crop, (*missing, (0, 0)), mode="reflect")
        if self._use_flip and mirror < 0.5:
            crop = crop[:, ::-1]
        if self._use_rot:
            crop = np.rot90(crop, int(turn * 4))
        return np.ascontiguousarray(crop)


def _check_sizes(scale: int, target_size: int, degradation_size: int) -> None:
    for name, size in (("target_size", target_size), ("degradation_size", degradation_size)):
        if size % scale:
            raise ConfigurationError(f"{name} {size} must be a multiple of scale {scale}; take {size // scale * scale + scale}")
    if degradation_size < target_size:
        raise ConfigurationError(
            f"degradation_size {degradation_size} is smaller than target_size {target_size}, which is cut from it; raise it"
        )


def _float(image: ImageArray) -> FloatImage:
    result: FloatImage = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    return result


def _tensor(image: FloatImage) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
