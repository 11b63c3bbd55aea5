"""Images with captions, brought to one size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from dlas.data.base import BadSample, Dataset, Request, Sample, TensorSpec
from dlas.data.images.captions import beside, read_list
from dlas.data.images.files import ImageArray, list_images, read_image, to_tensor
from dlas.data.images.pairs import unique_names
from dlas.data.inventory import Inventory, Item
from dlas.errors import ConfigurationError, DataError, printable
from dlas.registry import DATASETS
from dlas.types import PositiveInt

_EXAMPLES = 5


@DATASETS.register("captioned_images")
class CaptionedImages(Dataset):
    """Images of one folder or several, each with one caption or more.

    The shorter side is brought to `target_size`, the longer one is cropped. Gives `hq` (3, target_size, target_size), float32
    RGB in [0, 1] (or [-1, 1]), `caption` (text), `path` and a `name` unique in the set.

    Args:
        phase: in the train phase crop, mirroring and caption are drawn at random, as a function of the seed and the sample's
            place in the order; in others the crop is the middle and the caption the first.
        paths: folder, or list of folders; subfolders are searched.
        captions: `sidecar`: `photo.txt` (one caption a line) or `photo.json` beside `photo.png`. Otherwise a list (`.jsonl`,
            `.json` or `.tsv`) that names files relative to their folder, or one list for each folder.
        target_size: height and width, in pixels.
        random_crop: false takes the middle in the train phase, too.
        use_flip: mirror images left to right at random (train phase). Captions are not: mind "on the left".
        random_caption: false takes the first caption in the train phase, too.
        enlarge: take images with a side below `target_size`, too, and enlarge them; otherwise they are bad files.
        without_caption: images without a caption: `error` stops at the start, `skip` leaves them out, `empty` takes the empty
            text.
        rgb_n1_to_1: images are in [-1, 1].
        on_bad_file: `error` stops at a damaged or too small file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: there are not as many lists as folders.
        DataError: a folder or a list is missing, empty or damaged, a list names no image there is, or captions are missing.
    """

    provides = ("hq", "caption", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        paths: str | list[str],
        captions: str | list[str] = "sidecar",
        target_size: PositiveInt,
        random_crop: bool = True,
        use_flip: bool = False,
        random_caption: bool = True,
        enlarge: bool = False,
        without_caption: Literal["error", "skip", "empty"] = "error",
        rgb_n1_to_1: bool = False,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        found = captioned_files(paths, captions, without_caption)
        self.files = list(found)
        self.captions = list(found.values())
        self.names = unique_names(self.files)
        self.side = target_size
        training = phase == "train"
        self.random_crop = training and random_crop
        self.flip = training and use_flip
        self.random_caption = training and random_caption
        self.enlarge = enlarge
        self.signed = rgb_n1_to_1
        self.on_bad_file = on_bad_file

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        side = options["target_size"]
        return {"hq": TensorSpec((3, side, side)), "caption": "a photograph", "path": "image.png", "name": "image"}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        files = captioned_files(options["paths"], options["captions"], options["without_caption"])
        side = options["target_size"]
        smallest, enlarged = (1, side) if options["enlarge"] else (side, 0)
        return Inventory([Item({"hq": path}) for path in files], smallest=smallest, enlarged_below=enlarged)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: Request) -> Sample:
        path, captions = self.files[request.index], self.captions[request.index]
        image = shorter_side_to(self._read(path), self.side)
        place = request.rng("crop").random(2) if self.random_crop else (0.5, 0.5)
        image = _cropped(image, self.side, *place)
        if self.flip and request.rng("flip").random() < 0.5:
            image = image[:, ::-1]
        hq = to_tensor(image)
        which = int(request.rng("caption").integers(len(captions))) if self.random_caption else 0
        return {
            "hq": hq * 2 - 1 if self.signed else hq,
            "caption": captions[which],
            "path": str(path),
            "name": self.names[request.index],
        }

    def source(self, index: int) -> str:
        return str(self.files[index])

    def identity(self, index: int) -> str:
        return f"{super().identity(index)} {self.captions[index]}"

    def _read(self, path: Path) -> ImageArray:
        image = read_image(path)
        height, width = image.shape[:2]
        if min(height, width) < self.side and not self.enlarge:
            raise BadSample(
                path,
                f"is {width} x {height} pixels; expected at least target_size {self.side} each way; lower target_size, remove "
                "it, or "
                "write `enlarge: true`",
            )
        return image


def shorter_side_to(image: ImageArray, side: int) -> ImageArray:
    """Resizes (H, W, 3) so that the shorter side is `side`: averages over pixels (area) when smaller, bicubic when larger."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter == side:
        return image
    size = tuple(max(side, round(length * side / shorter)) for length in (width, height))
    method = cv2.INTER_AREA if side < shorter else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=method).astype(image.dtype)


def _cropped(image: ImageArray, side: int, down: float, right: float) -> ImageArray:
    """A square whose place is given in [0, 1): 0 at the top or left, 1 at the other end."""
    top, left = (int(share * (length - side + 1)) for share, length in zip((down, right), image.shape[:2], strict=True))
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def captioned_files(
    paths: str | list[str], captions: str | list[str], without: Literal["error", "skip", "empty"]
) -> dict[Path, list[str]]:
    """Every image with its captions.

    Args:
        paths: folder, or list of folders.
        captions: `sidecar`, a list, or a list for each folder.
        without: what is done about images without a caption.

    Raises:
        ConfigurationError: there are not as many lists as folders.
        DataError: a folder or a list cannot be used, or captions are missing.
    """
    roots = [paths] if isinstance(paths, str) else paths
    lists = [captions] * len(roots) if captions == "sidecar" else [captions] if isinstance(captions, str) else captions
    if not roots or len(lists) != len(roots):
        raise ConfigurationError(
            f"there are {len(roots)} folders in paths and {len(lists)} lists of captions; expected one for each"
        )
    found: dict[Path, list[str]] = {}
    for root, source in zip(roots, lists, strict=True):
        base, images = Path(root).expanduser(), list_images(root)
        if source == "sidecar":
            found |= {image: beside(image) for image in images}
            continue
        listed = read_list(source)
        own = {image: listed.get(image.relative_to(base), []) for image in images}
        if not any(own.values()):
            raise DataError(
                f"{printable(source)} names no image below {printable(base)}; it has, for instance, "
                f"{printable(next(iter(listed)))}, "
                f"and the folder {printable(images[0].relative_to(base))}"
            )
        found |= own
    missing = [image for image, texts in found.items() if not texts]
    if missing and without == "error":
        shown = ", ".join(map(printable, missing[:_EXAMPLES]))
        raise DataError(
            f"{len(missing)} of {len(found)} images have no caption: {shown}{', ...' if len(missing) > _EXAMPLES else ''}; "
            "write them "
            "(`dlas data caption` makes simple ones), or say `without_caption: skip` or `empty`"
        )
    if without == "skip":
        found = {image: texts for image, texts in found.items() if texts}
    return {image: texts or [""] for image, texts in found.items()}
