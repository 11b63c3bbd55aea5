"""A folder of images, each used as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlas.data.base import BadSample, Request, Sample
from dlas.data.images.corruptions import Corruptor, FloatImage
from dlas.data.images.files import read_image
from dlas.data.images.pairs import unique_names
from dlas.data.images.squares import CutImages, as_float, as_tensor, images_below
from dlas.data.inventory import Inventory, Item
from dlas.errors import ConfigurationError, DataError, printable
from dlas.registry import DATASETS
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveInt, StateOut

_NORMALS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # mean and deviation of the training images
    "stylegan2_norm": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@DATASETS.register("imagefolder")
class ImageFolder(CutImages):
    """Images of a folder and all below it.

    Gives `hq` and `lq` (3, H, W) and (3, H / scale, W / scale), float32 RGB in [0, 1] unless `rgb_n1_to_1` or `normalize` says
    otherwise, `corruption_entropy` (the severity of each fixed corruption, in [0, 1]), `path` and a `name` unique in the set;
    with `labels` the image's class, too.

    Args:
        phase: in the train phase images are mirrored at random.
        paths: folder, or list of folders.
        weights: for a list of folders: how often each is taken.
        scale: how many times larger the high-quality image is.
        target_size: side that the high-quality image is brought to by averaging; not given: images keep their size.
        force_multiple: sides of the low-quality image are multiples of this.
        force_square: cut the largest square out of the middle of each image.
        center_crop_hq_sz: cut a square of this side, in pixels, out of the middle instead.
        skip_lq: `lq` is `hq`: nothing is made smaller or damaged.
        disable_flip: do not mirror images.
        rgb_n1_to_1: images are in [-1, 1].
        normalize: subtract the mean and divide by the deviation of ImageNet, or map to [-1, 1] (`stylegan2_norm`).
        fixed_parameters: further entries of every sample: name and number, or list of numbers.
        labels: key for the image's class, an int64: the number, by name, of its folder among those directly below `paths`. Give
            every phase folders of the same names.
        fixed_corruptions: damage to every low-quality image: `jpeg-broad`, `gaussian_blur`, ...
        random_corruptions: damages to draw from.
        num_corrupts_per_image: how many are drawn for an image.
        corruption_blur_scale: factor on the width of `gaussian_blur`.
        cosine_bias: damage is mostly mild.
        corrupt_before_downsize: damage before the image is made smaller.
        random_seed: damage an image alike at every visit.
        on_bad_file: `error` stops at a damaged or too small file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: options contradict each other.
        DataError: a folder is missing or has no images; with `labels`, an image is in no class's folder.
    """

    provides = ("lq", "hq", "corruption_entropy", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        paths: str | list[str],
        weights: list[PositiveInt] | None = None,
        scale: PositiveInt,
        target_size: PositiveInt | None = None,
        force_multiple: PositiveInt = 1,
        force_square: bool = True,
        center_crop_hq_sz: PositiveInt | None = None,
        skip_lq: bool = False,
        disable_flip: bool = False,
        rgb_n1_to_1: bool = False,
        normalize: Literal["imagenet", "stylegan2_norm"] | None = None,
        fixed_parameters: dict[str, Any] | None = None,
        labels: StateOut | None = None,
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
            images_below(paths, weights),
            scale=scale,
            target_size=target_size,
            force_multiple=force_multiple,
            corruptor=Corruptor(
                fixed_corruptions or [], random_corruptions or [], num_corrupts_per_image, corruption_blur_scale, cosine_bias
            ),
            corrupt_before_downsize=corrupt_before_downsize,
            random_seed=random_seed,
        )
        if rgb_n1_to_1 and normalize:
            raise ConfigurationError("rgb_n1_to_1 and normalize both change the range of the images; keep one of them")
        self.flip = phase == "train" and not disable_flip
        self.force_square = force_square
        self.crop = center_crop_hq_sz
        self.skip_lq = skip_lq
        normal = "stylegan2_norm" if rgb_n1_to_1 else normalize
        self.normal = None if normal is None else _NORMALS[normal]
        self.parameters = {name: torch.as_tensor(value) for name, value in (fixed_parameters or {}).items()}
        self.label_key = labels
        self.labels = [] if labels is None else class_numbers(self.files, paths)
        self.on_bad_file = on_bad_file
        self.names = unique_names(self.files)

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        unit, side = options["scale"] * options["force_multiple"], options["target_size"]
        smallest = options["center_crop_hq_sz"] or (1 if side else unit)
        items = [Item({"hq": path}) for path in images_below(options["paths"], None)]
        return Inventory(items, scale=options["scale"], smallest=smallest, enlarged_below=side or 0)

    def read(self, index: int) -> FloatImage:
        path = self.files[index]
        return self.sized(_middle(as_float(read_image(path)), self.crop, self.force_square, path), path)

    def __getitem__(self, request: Request) -> Sample:
        hq = self.read(request.index)
        if self.flip and request.rng("flip").random() < 0.5:
            hq = np.ascontiguousarray(hq[:, ::-1])
        lq, entropy = (hq, []) if self.skip_lq else self.degrade(hq, request)
        return {
            "lq": self._normalised(as_tensor(lq)),
            "hq": self._normalised(as_tensor(hq)),
            "corruption_entropy": torch.tensor(entropy),
            **self.parameters,
            **({} if self.label_key is None else {self.label_key: torch.tensor(self.labels[request.index])}),
            "path": str(self.files[request.index]),
            "name": self.names[request.index],
        }

    def _normalised(self, image: Tensor) -> Tensor:
        return image if self.normal is None else _normalised(image, self.normal)


def imagenet_normalised(image: Tensor) -> Tensor:
    """(3, H, W), RGB in [0, 1], less ImageNet's mean and divided by its deviation."""
    return _normalised(image, _NORMALS["imagenet"])


def _normalised(image: Tensor, normal: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (torch.tensor(each)[:, None, None] for each in normal)
    return (image - mean) / deviation


def class_numbers(files: Sequence[Path], paths: str | Sequence[str]) -> list[int]:
    """Classes of images: numbers of their folders, in the order of the folders' names.

    Args:
        files: the images.
        paths: folder, or folders, whose folders are the classes; one of the same name in several is one class.

    Raises:
        DataError: an image is in none of them.
    """
    roots = [Path(root).expanduser() for root in ([paths] if isinstance(paths, str) else paths)]
    names = []
    for file in files:
        inside = next(file.relative_to(root).parts for root in roots if file.is_relative_to(root))
        if len(inside) < 2:
            raise DataError(
                f"{printable(file)}: is in no class's folder; with 'labels' expected one more folder in between, such as "
                f"{printable(file.parent / 'cat' / file.name)}"
            )
        names.append(inside[0])
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return [numbers[name] for name in names]


def _middle(image: FloatImage, side: int | None, square: bool, path: Path) -> FloatImage:
    if side is None and not square:
        return image
    height, width = image.shape[:2]
    side = min(height, width) if side is None else side
    if side > min(height, width):
        raise BadSample(path, f"is {width} x {height} pixels; expected at least center_crop_hq_sz {side} each way; remove it")
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
