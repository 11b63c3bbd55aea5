"""Pairs of images with one point marked in each: whether features tell that they show the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.data.base import BadSample, Dataset, Request, Sample, TensorSpec
from dlas.data.images.files import read_image
from dlas.data.images.folder import imagenet_normalised
from dlas.data.images.squares import as_float, as_tensor, resize_area
from dlas.errors import DataError, printable
from dlas.registry import DATASETS
from dlas.types import PositiveInt

_FILES = ("1.jpg", "2.jpg", "coords.pth")


@DATASETS.register("point_pairs")
class PointPairs(Dataset):
    """Pairs of images with one point in each, as DL-Art-School's `image_pair_ui` writes them.

    A folder for each pair, with `1.jpg`, `2.jpg` and `coords.pth`: two points (x, y) in pixels, saved by torch. Gives `img1`
    and `img2` (3, size, size), float32 RGB in [0, 1] or normalised, `coords1` and `coords2` (1, 2), x and y as shares of the
    image's width and height, and a `name`.

    Args:
        phase: the same in every phase.
        path: folder with the pairs' folders.
        size: height and width to which images are brought.
        normalize: subtract the mean and divide by the deviation of ImageNet.
        on_bad_file: `error` stops at a damaged pair; `skip` takes another one instead and reports it.

    Raises:
        DataError: the folder is missing, or holds no pairs.
    """

    provides = ("img1", "img2", "coords1", "coords2", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str,
        size: PositiveInt,
        normalize: bool = False,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        root = Path(path).expanduser()
        self.folders = sorted(each.parent for each in root.glob(f"*/{_FILES[-1]}"))
        if not self.folders:
            raise DataError(f"{printable(root)}: no pairs; expected folders with {', '.join(_FILES)} in it")
        self.size = size
        self.normalize = normalize
        self.on_bad_file = on_bad_file

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        image, point = TensorSpec((3, options["size"], options["size"])), TensorSpec((1, 2))
        return {"img1": image, "img2": image, "coords1": point, "coords2": point, "name": "0"}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: pairs are few, and looked at one by one."""

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, request: Request) -> Sample:
        folder = self.folders[request.index]
        points = _points(folder / _FILES[2])
        sample: Sample = {"name": folder.name}
        for number, point in enumerate(points, start=1):
            path = folder / f"{number}.jpg"
            image = as_float(read_image(path))
            share = point / torch.tensor([image.shape[1], image.shape[0]])
            if not ((share >= 0) & (share <= 1)).all():
                raise BadSample(folder / _FILES[2], f"point {number} {point.tolist()} is outside {path.name}; mark it again")
            found = as_tensor(resize_area(image, self.size, self.size))
            sample[f"img{number}"] = imagenet_normalised(found) if self.normalize else found
            sample[f"coords{number}"] = share[None].float()
        return sample

    def source(self, index: int) -> str:
        return str(self.folders[index])


def _points(path: Path) -> Tensor:
    """Two points (x, y) in pixels: (2, 2)."""
    try:
        points = torch.as_tensor(torch.load(path, weights_only=True), dtype=torch.float64)
    except Exception as error:  # whatever is wrong with a file shows as another kind of error
        raise BadSample(path, f"cannot be read as two points: {error}") from error
    if points.shape != (2, 2):
        raise BadSample(path, f"holds numbers of the shape {tuple(points.shape)}; expected two points (x, y)")
    return points
