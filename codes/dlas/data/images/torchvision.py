"""Labelled images of torchvision's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
import torch

from dlas.compat.torchvision import prepare_torchvision
from dlas.data.base import Dataset, Request, Sample, TensorSpec
from dlas.data.images.corruptions import FloatImage
from dlas.data.images.folder import imagenet_normalised
from dlas.data.images.squares import as_float, as_tensor, resize_area
from dlas.errors import ConfigurationError, DataError, MissingPackageError
from dlas.registry import DATASETS
from dlas.types import NonNegativeInt, PositiveInt

_CLASSES = {
    "mnist": "MNIST",
    "fmnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "imagenet": "ImageNet",
    "imagefolder": "ImageFolder",
}


@DATASETS.register("torch_dataset")
class TorchvisionDataset(Dataset):
    """Labelled images of torchvision's data sets, to train classifiers on.

    Gives `hq` and `lq` (the same, 3 x image_size x image_size, float32 RGB less ImageNet's mean and divided by its deviation),
    `labels` (int64), `name` and `path`. In the train phase images are mirrored at random, and cut at random places with
    `random_crop`. torchvision must be installed.

    Args:
        phase: "train", or anything else: no mirroring, and the middle of each image.
        dataset: which one; `imagefolder` reads folders of images named like their classes.
        kwargs: options of torchvision's class: `root`, `train`, `split`, `download`, ...
        image_size: height and width of the images; the shorter side is brought to it, or with `random_crop` to 8/7 of it.
        random_crop: cut at a random place.
        fixed_len: take as many images, at most.
        offset: leave out as many at the beginning.
        normalize: false leaves images in [0, 1].

    Raises:
        MissingPackageError: torchvision is not installed.
        DataError: it does not find its files.
        ConfigurationError: it refuses its options, or `offset` leaves nothing.
    """

    provides = ("lq", "hq", "labels", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataset: Literal["mnist", "fmnist", "cifar10", "cifar100", "imagenet", "imagefolder"],
        image_size: PositiveInt,
        kwargs: dict[str, Any] | None = None,
        random_crop: bool = False,
        fixed_len: PositiveInt | None = None,
        offset: NonNegativeInt = 0,
        normalize: bool = True,
    ) -> None:
        self.mode = dataset
        self.images = _open(dataset, dict(kwargs or {}))
        self.training = phase == "train"
        self.size, self.random_crop, self.normalize = image_size, random_crop, normalize
        self.offset = offset
        self.length = len(self.images) - offset
        if self.length <= 0:
            raise ConfigurationError(f"offset: {offset} leaves nothing of {len(self.images)} images")
        if fixed_len is not None:
            self.length = min(self.length, fixed_len)

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        image = TensorSpec((3, options["image_size"], options["image_size"]))
        words = {"path": f"{options['dataset']}/0", "name": "0"}
        return {"lq": image, "hq": image, "labels": TensorSpec((), torch.int64), **words}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: the files are torchvision's affair."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, request: Request) -> Sample:
        number = request.index + self.offset
        picture, label = self.images[number]
        image = self._cut(as_float(np.asarray(picture.convert("RGB"))), request)
        if self.training and request.rng("flip").random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        tensor = as_tensor(image)
        tensor = imagenet_normalised(tensor) if self.normalize else tensor
        return {
            "lq": tensor,
            "hq": tensor,
            "labels": torch.tensor(int(label)),
            "path": self.source(request.index),
            "name": str(number),
        }

    def source(self, index: int) -> str:
        number = index + self.offset
        return str(self.images.samples[number][0]) if hasattr(self.images, "samples") else f"{self.mode}/{number}"

    def _cut(self, image: FloatImage, request: Request) -> FloatImage:
        side = self.size * 8 // 7 if self.random_crop else self.size
        height, width = image.shape[:2]
        ratio = side / min(height, width)
        image = _resized(image, max(side, round(height * ratio)), max(side, round(width * ratio)))
        down, across = image.shape[0] - self.size, image.shape[1] - self.size
        top, left = down // 2, across // 2
        if self.random_crop and self.training:
            top, left = (int(request.rng(name).integers(room + 1)) for name, room in (("top", down), ("left", across)))
        return image[top : top + self.size, left : left + self.size]


def _resized(image: FloatImage, height: int, width: int) -> FloatImage:
    """Averages pixels to make an image smaller, and interpolates between them to make it larger."""
    if height <= image.shape[0]:
        return resize_area(image, height, width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _open(name: str, options: dict[str, Any]) -> Any:
    prepare_torchvision()
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingPackageError("torchvision", "the dataset mode torch_dataset") from error
    try:
        return getattr(datasets, _CLASSES[name])(**options)
    except TypeError as error:
        raise ConfigurationError(f"kwargs: torchvision's {_CLASSES[name]} refuses them: {error}") from error
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"torchvision's {_CLASSES[name]} cannot be read from 'root' {options.get('root')}: {error}; put its files there, "
            "or let it fetch them with 'kwargs: {download: true}'"
        ) from error
