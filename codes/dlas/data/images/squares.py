"""What data sets of ready-cut images share: an image brought to a size, made smaller, and damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dlas.data.base import BadSample, Dataset, Request
from dlas.data.images.corruptions import Corruptor, FloatImage
from dlas.data.images.files import ImageArray, list_images, read_image
from dlas.errors import ConfigurationError


class CutImages(Dataset):
    """Images that are used whole; base class. Sizes are changed by averaging over pixels (area interpolation).

    Args:
        files: the images.
        scale: how many times larger the high-quality image is.
        target_size: side that the high-quality image is brought to; None keeps its size.
        force_multiple: sides of the low-quality image are multiples of this.
        corruptor: damages the low-quality image.
        corrupt_before_downsize: damage a copy of the high-quality image, before it is made smaller.
        random_seed: damage an image alike in every run and at every visit.

    Raises:
        ConfigurationError: the sizes do not go together.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        scale: int,
        target_size: int | None,
        force_multiple: int,
        corruptor: Corruptor,
        corrupt_before_downsize: bool,
        random_seed: int | None,
    ) -> None:
        if target_size is not None and (target_size % scale or (target_size // scale) % force_multiple):
            raise ConfigurationError(
                f"target_size {target_size} must be a multiple of scale x force_multiple = {scale * force_multiple}"
            )
        self.files = list(files)
        self.scale = scale
        self.target_size = target_size
        self.multiple = scale * force_multiple
        self.corruptor = corruptor
        self.corrupt_first = corrupt_before_downsize
        self.random_seed = random_seed

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> str:
        return str(self.files[index])

    def read(self, index: int) -> FloatImage:
        """The high-quality image, (H, W, 3) in [0, 1]."""
        return self.sized(as_float(read_image(self.files[index])), self.files[index])

    def sized(self, image: FloatImage, path: Path) -> FloatImage:
        """Brought to `target_size`; without one, cropped at the right and bottom to whole multiples."""
        if self.target_size is not None:
            return resize_area(image, self.target_size, self.target_size)
        height, width = (size // self.multiple * self.multiple for size in image.shape[:2])
        if min(height, width) == 0:
            raise BadSample(
                path,
                f"leaves {image.shape[1]} x {image.shape[0]} pixels to use; expected at least {self.multiple} each way "
                "(scale x force_multiple); remove it or give a target_size",
            )
        return image[:height, :width]

    def degrade(self, hq: FloatImage, request: Request) -> tuple[FloatImage, list[float]]:
        """The low-quality image, and the severities of the fixed corruptions."""
        fixed = None if self.random_seed is None else np.random.default_rng((self.random_seed, request.index))
        rng = fixed or request.rng("corruption")
        plan = self.corruptor.plan(rng)
        image = self.corruptor.apply(hq, plan, rng) if self.corrupt_first else hq
        if self.scale > 1:
            image = resize_area(image, image.shape[0] // self.scale, image.shape[1] // self.scale)
        return (image if self.corrupt_first else self.corruptor.apply(image, plan, rng)), self.corruptor.entropy(plan)


def as_float(image: ImageArray) -> FloatImage:
    """Full range to [0, 1]."""
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def as_tensor(image: FloatImage) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def resize_area(image: FloatImage, height: int, width: int) -> FloatImage:
    """Resizes by averaging over pixels."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)


def images_below(paths: str | Sequence[str], weights: Sequence[int] | None) -> list[Path]:
    """The images below one folder or several; those of a folder with weight n appear n times.

    Raises:
        ConfigurationError: there are not as many weights as folders.
        DataError: a folder is missing or empty.
    """
    roots = [paths] if isinstance(paths, str) else list(paths)
    if not roots:
        raise ConfigurationError("paths is an empty list; give at least one folder")
    counts = [1] * len(roots) if weights is None else list(weights)
    if len(counts) != len(roots):
        raise ConfigurationError(f"there are {len(roots)} paths and {len(counts)} weights; expected one weight for each path")
    return [file for root, count in zip(roots, counts, strict=True) for file in list_images(root) * count]
