"""What all super-resolution datasets share: a high-quality image and its low-quality partner, whole or as an aligned crop."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dlas.data.base import BadSample, Dataset, Request, Sample, TensorSpec
from dlas.data.images.cache import MappedCache
from dlas.data.images.files import ImageArray, open_rows, read_image, to_tensor, unit_range
from dlas.data.inventory import Item
from dlas.errors import ConfigurationError
from dlas.layers.resize import imresize


class Files(NamedTuple):
    """Where a pair is. Without `lq` the low-quality image is made from the other."""

    hq: Path
    lq: Path | None = None


class Planes(NamedTuple):
    """A decoded pair, channels first: (3, H, W) and (3, H / scale, W / scale). Views: the pixels lie as they were decoded."""

    hq: ImageArray
    lq: ImageArray


class ImagePairs(Dataset):
    """Pairs of images; base class.

    In the train phase a sample is an aligned random crop: `lq` (3, h, w) and `hq` (3, H, W), float32 RGB in [0, 1], and `path`.
    In other phases it is the whole image, cropped at the right and bottom to a multiple of `scale`, and has a `name`
    besides, which is unique in the set and fit for a file name.

    A low-quality image that is not given is made from the *whole* high-quality image with MATLAB's antialiased bicubic
    interpolation and rounded to the depth of the file (8 or 16 bits), as the low-resolution files of the usual benchmarks were.

    Args:
        files: the pairs.
        training: the train phase.
        scale: how many times the high-quality image is larger.
        target_size: height and width of the high-quality crop.
        use_flip: mirror a crop left to right with probability 1/2.
        use_rot: turn a crop by 0, 90, 180 or 270 degrees with equal probability.
        cache: "memory" keeps decoded images in memory, "mapped" on disk, for all processes.
        cache_dir: folder of the mapped cache; None takes the default.
        cache_gb: size of the mapped cache.
        on_bad_file: what to do about an unusable file.

    Raises:
        ConfigurationError: the crop does not divide into whole low-quality pixels.
    """

    def __init__(
        self,
        files: Sequence[Files],
        *,
        training: bool,
        scale: int,
        target_size: int,
        use_flip: bool,
        use_rot: bool,
        cache: Literal["none", "memory", "mapped"],
        cache_dir: str | None = None,
        cache_gb: float = 32.0,
        on_bad_file: Literal["error", "skip"],
    ) -> None:
        _check_sizes(training, scale, target_size)
        self.files = list(files)
        self.training = training
        self.scale = scale
        self.on_bad_file = on_bad_file
        self._names = unique_names([pair.hq for pair in self.files])
        self._size = target_size // scale
        self._use_flip = use_flip
        self._use_rot = use_rot
        self._keep = cache == "memory"
        self._mapped = MappedCache(cache_dir, cache_gb) if cache == "mapped" else None
        self._kept: dict[Files, Planes] = {}

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        if phase != "train":  # whole images, of any size
            return None
        scale, size = options["scale"], options["target_size"]
        _check_sizes(True, scale, size)
        return {"lq": TensorSpec((3, size // scale, size // scale)), "hq": TensorSpec((3, size, size)), "path": "image.png"}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: Request) -> Sample:
        path = str(self.files[request.index].hq)
        if self.training:
            crop = self._crop_of_files(request) or self._crop(self._planes(request.index), request, path)
            return {"lq": _to_float(crop.lq), "hq": _to_float(crop.hq), "path": path}
        planes = self._planes(request.index)
        return {"lq": _to_float(planes.lq), "hq": _to_float(planes.hq), "path": path, "name": self._names[request.index]}

    def source(self, index: int) -> str:
        return str(self.files[index].hq)

    def prepare(self) -> None:
        """Fills the memory cache, which worker processes then share. A bad file is reported when its sample is asked for.

        The mapped cache is filled by the workers, side by side.
        """
        if self._mapped is not None:
            self._mapped.open()
        if not self._keep:
            return
        for index in range(len(self)):
            try:
                self._planes(index)
            except BadSample:
                continue

    def kept_images(self) -> Kept | None:
        if self._mapped is None:
            return None
        samples = []
        for hq, lq in dict.fromkeys(self.files):
            partner = [KeptImage(lq)] if lq is not None else [KeptImage(hq, self.scale)] if self.scale > 1 else []
            samples.append((KeptImage(hq), *partner))
        return Kept(self._mapped, samples)

    def _planes(self, index: int) -> Planes:
        files = self.files[index]
        planes = self._kept.get(files)
        if planes is None:
            planes = self._load(files)
            if self._keep:
                self._kept[files] = planes
        return planes

    def _load(self, files: Files) -> Planes:
        hq = whole_multiple(self._read(files.hq), self.scale, files.hq)
        height, width = hq.shape[0] // self.scale, hq.shape[1] // self.scale
        lq = self._shrunk(files.hq, hq) if files.lq is None else self._read(files.lq)
        if lq.shape[:2] != (height, width):
            raise BadSample(
                files.hq,
                f"is {hq.shape[1]} x {hq.shape[0]} pixels (cropped to a multiple of scale {self.scale}) and its low-quality "
                f"partner {files.lq} is {lq.shape[1]} x {lq.shape[0]}; expected {width} x {height}; "
                "correct `scale`, or make the partner again",
            )
        return Planes(hq.transpose(2, 0, 1), lq.transpose(2, 0, 1))

    def _read(self, path: Path) -> ImageArray:
        if self._mapped is None:
            return read_image(path)
        return self._mapped.image(path, "", lambda: read_image(path))

    def _shrunk(self, path: Path, hq: ImageArray) -> ImageArray:
        if self._mapped is None or self.scale == 1:
            return shrink(hq, self.scale)
        return self._mapped.image(path, shrunk_variant(self.scale), lambda: shrink(hq, self.scale))

    def _crop(self, planes: Planes, request: Request, path: str) -> Planes:
        size, scale = self._size, self.scale
        _, height, width = planes.lq.shape
        if min(height, width) < size:
            raise BadSample(
                path,
                f"is {planes.hq.shape[2]} x {planes.hq.shape[1]} pixels once cropped to a multiple of scale {scale}; expected "
                f"{size * scale} x {size * scale} at least; lower target_size or remove it",
            )
        draw = self._draw(request, height, width)
        top, left = draw.top, draw.left
        hq = planes.hq[:, top * scale : (top + size) * scale, left * scale : (left + size) * scale]
        return self._turned(Planes(hq, planes.lq[:, top : top + size, left : left + size]), draw)

    def _crop_of_files(self, request: Request) -> Planes | None:
        """A crop of files that are decoded in part. None where that is not possible: the whole files tell more."""
        files = self.files[request.index]
        if self._keep or self._mapped is not None or files.lq is None:
            return None
        hq, lq = open_rows(files.hq), open_rows(files.lq)
        if hq is None or lq is None:
            return None
        size, scale = self._size, self.scale
        height, width = hq.shape[0] // scale, hq.shape[1] // scale
        if lq.shape[:2] != (height, width) or min(height, width) < size:
            return None
        draw = self._draw(request, height, width)
        top, left = draw.top, draw.left
        large = hq[top * scale : (top + size) * scale, left * scale : (left + size) * scale]
        small = lq[top : top + size, left : left + size]
        return self._turned(Planes(large.transpose(2, 0, 1), small.transpose(2, 0, 1)), draw)

    def _draw(self, request: Request, height: int, width: int) -> _Draw:
        # All four are always drawn, so that switching an option leaves the other draws as they were.
        down, right, turn, mirror = request.rng("crop").random(4).tolist()
        place = int(down * (height - self._size + 1)), int(right * (width - self._size + 1))
        return _Draw(*place, int(turn * 4) if self._use_rot else 0, self._use_flip and mirror < 0.5)

    def _turned(self, crop: Planes, draw: _Draw) -> Planes:
        hq, lq = crop
        if draw.mirrored:
            hq, lq = hq[:, :, ::-1], lq[:, :, ::-1]
        return Planes(_quarter_turns(hq, draw.turns), _quarter_turns(lq, draw.turns))


class _Draw(NamedTuple):
    """What chance decides about a crop; the place is in pixels of the low-quality image."""

    top: int
    left: int
    turns: int
    mirrored: bool


def _check_sizes(training: bool, scale: int, target_size: int) -> None:
    if scale < 1:
        raise ConfigurationError(f"scale must be 1 or more, got {scale}")
    if training and (target_size < scale or target_size % scale):
        smaller = max(target_size // scale, 1) * scale
        raise ConfigurationError(
            f"target_size {target_size} is not a multiple of scale {scale}; the nearest are {smaller} and {smaller + scale}"
        )


def items_of(files: Sequence[Files]) -> list[Item]:
    """The pairs as an inventory lists them."""
    return [Item({"hq": pair.hq} if pair.lq is None else {"hq": pair.hq, "lq": pair.lq}) for pair in files]


class KeptImage(NamedTuple):
    """An image of the mapped cache as data sets ask for it: as it is decoded, or made `scale` times smaller."""

    path: Path
    scale: int = 1

    @property
    def variant(self) -> str:
        return "" if self.scale == 1 else shrunk_variant(self.scale)

    def visit(self, cache: MappedCache) -> None:
        """Puts it there if it is not.

        Raises:
            BadSample: the file is unusable.
        """
        hq = cache.image(self.path, "", lambda: read_image(self.path))
        if self.scale > 1:
            cache.image(self.path, self.variant, lambda: shrink(whole_multiple(hq, self.scale, self.path), self.scale))


class Kept(NamedTuple):
    """A mapped cache, and what a data set keeps there for each sample."""

    cache: MappedCache
    samples: Sequence[tuple[KeptImage, ...]]


def whole_multiple(image: ImageArray, scale: int, path: Path) -> ImageArray:
    """The image, cropped at the right and bottom until its sides are multiples of `scale`.

    Raises:
        BadSample: nothing is left.
    """
    height, width = (side // scale * scale for side in image.shape[:2])
    if min(height, width) == 0:
        raise BadSample(
            path, f"is {image.shape[1]} x {image.shape[0]} pixels; expected {scale} or more each way (the scale); remove it"
        )
    return image[:height, :width]


def shrunk_variant(scale: int) -> str:
    """What the mapped cache calls the result of `shrink`."""
    return f"matlab bicubic / {scale}"


def shrink(image: ImageArray, scale: int) -> ImageArray:
    """The low-quality image of a benchmark: MATLAB bicubic, antialiased, rounded to the depth of `image`.

    Args:
        image: (H, W, 3), uint8 or uint16; H and W multiples of `scale`.
        scale: how many times smaller the result is.
    """
    if scale == 1:
        return image
    top = np.iinfo(image.dtype).max
    size = (image.shape[0] // scale, image.shape[1] // scale)
    small = imresize(to_tensor(image), size=size).clamp(0, 1).mul(top).round()
    return small.permute(1, 2, 0).numpy().astype(image.dtype)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file, fit for a file name: its stem, or as much of its path as makes it unlike the others.

    Bytes that are no text, and control characters, become `%` and two hexadecimal digits: tables and TensorBoard refuse them.
    """
    return [_as_text(name) for name in _told_apart(paths)]


def _as_text(name: str) -> str:
    return "".join(c if c.isprintable() else "".join(f"%{byte:02X}" for byte in os.fsencode(c)) for c in name)


def _told_apart(paths: Sequence[Path]) -> list[str]:
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        root = Path(*_common_parts(paths))
        names = ["__".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name}{path.suffix}" for name, path in zip(names, paths, strict=True)]


def _common_parts(paths: Sequence[Path]) -> list[str]:
    common = []
    for parts in zip(*(path.parent.parts for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def _quarter_turns(image: ImageArray, turns: int) -> ImageArray:
    """Counter-clockwise, as views."""
    if turns == 1:
        return image.transpose(0, 2, 1)[:, ::-1]
    if turns == 2:
        return image[:, ::-1, ::-1]
    if turns == 3:
        return image.transpose(0, 2, 1)[:, :, ::-1]
    return image


def _to_float(image: ImageArray) -> torch.Tensor:
    return unit_range(torch.from_numpy(np.array(image, order="C")))
