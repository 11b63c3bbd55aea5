"""Images to be enlarged or restored, of which no truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dlas.data.base import Dataset, Request, Sample
from dlas.data.images.files import list_images, read_image, to_tensor
from dlas.data.images.pairs import unique_names
from dlas.data.inventory import Inventory, Item
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS


@DATASETS.register("input_images")
class InputImages(Dataset):
    """Folders of images that go through a network as they are, for `test.py`: there are no metrics, only pictures.

    Gives `lq` (3, H, W), float32 RGB in [0, 1], `path` and `name`.

    Args:
        phase: must not be "train": there is nothing to learn from.
        dataroot: folder, or list of folders; subfolders are searched.
        on_bad_file: `error` stops at a damaged file; `skip` leaves it out and reports it.

    Raises:
        ConfigurationError: the data set is called `train`.
        DataError: a folder is missing or empty.
    """

    provides = ("lq", "path", "name")

    def __init__(self, phase: str, /, *, dataroot: str | list[str], on_bad_file: Literal["error", "skip"] = "error") -> None:
        if phase == "train":
            raise ConfigurationError("input_images has no true pictures to train on; use paired_images")
        self.files = _images_below(dataroot)
        self.names = unique_names(self.files)
        self.on_bad_file = on_bad_file

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        return Inventory([Item({"lq": path}) for path in _images_below(options["dataroot"])])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, request: Request) -> Sample:
        path = self.files[request.index]
        return {"lq": to_tensor(read_image(path)), "path": str(path), "name": self.names[request.index]}

    def source(self, index: int) -> str:
        return str(self.files[index])


def _images_below(dataroot: str | list[str]) -> list[Path]:
    roots = [dataroot] if isinstance(dataroot, str) else dataroot
    if not roots:
        raise ConfigurationError("dataroot is an empty list; give at least one folder")
    return [path for root in roots for path in list_images(root)]
