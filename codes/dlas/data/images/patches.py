"""Squares of the built-in photographs: real small pictures in colour that need no download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dlas.data.base import Dataset, Request, Sample, TensorSpec
from dlas.data.images.files import ImageArray, read_image, to_tensor
from dlas.data.images.held_out import is_held_out
from dlas.data.images.photographs import TRAIN, VALIDATION, locate
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS
from dlas.types import PositiveInt

_SMALLEST_SIDE = 300  # of a photograph


@DATASETS.register("builtin_patches")
class BuiltinPatches(Dataset):
    """Squares, side by side, of all the photographs of `builtin_photos`; for models that make small pictures of nothing.

    Gives `hq` (3, H, W), float32 RGB in [0, 1], `path` and a `name` unique in the set.

    A square is for validation if a hash of its pixels says so: about one in ten. Both sides are of the same photographs, so
    that they are samples of one distribution; neighbours may be on different sides.

    Args:
        phase: "train" for the training split, in which squares are mirrored at random, anything else for the other.
        target_size: height and width of a square; of 16 pixels there are 14 000, of 32 3500.
        use_flip: mirror squares left to right at random (train phase).

    Raises:
        ConfigurationError: a photograph is smaller than a square.
        MissingPackageError: scikit-image or scikit-learn is not installed.
        DataError: the installed version of a package lacks a file.
    """

    provides = ("hq", "path", "name")

    def __init__(self, phase: str, /, *, target_size: PositiveInt = 16, use_flip: bool = True) -> None:
        _check_side(target_size)
        self.flip = use_flip and phase == "train"
        self.names: list[str] = []
        kept: list[ImageArray] = []
        for photograph in (*TRAIN, *VALIDATION):
            path = locate(photograph, "the dataset mode builtin_patches")
            for number, square in enumerate(_squares(read_image(path), target_size)):
                if is_held_out(square) != (phase == "train"):
                    kept.append(square)
                    self.names.append(f"{path.stem}_{number}")
        self.pixels = np.stack(kept)

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        side = options["target_size"]
        _check_side(side)
        return {"hq": TensorSpec((3, side, side)), "path": "builtin_patches/coffee_0", "name": "coffee_0"}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: both splits are of the same files, which come with packages."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, request: Request) -> Sample:
        image = to_tensor(self.pixels[request.index])
        if self.flip and request.rng("flip").random() < 0.5:
            image = torch.flip(image, (-1,))
        return {"hq": image, "path": self.source(request.index), "name": self.names[request.index]}

    def source(self, index: int) -> str:
        return f"builtin_patches/{self.names[index]}"


def _squares(image: ImageArray, side: int) -> ImageArray:
    """All squares (N, side, side, 3) from the upper left corner on; what is left over at the right and bottom is not used."""
    rows, columns = (size // side for size in image.shape[:2])
    whole = image[: rows * side, : columns * side]
    return whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def _check_side(side: int) -> None:
    if side > _SMALLEST_SIDE:
        raise ConfigurationError(f"target_size {side} is more than the {_SMALLEST_SIDE} pixels that all photographs have")
