"""Two random views of each image of another data set, as self-supervised learning compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dlas.data.base import Dataset, Request, Sample, TensorSpec, create_dataset
from dlas.data.images.folder import imagenet_normalised
from dlas.data.inventory import Inventory
from dlas.errors import ConfigurationError
from dlas.layers.views import DRAWS, GEOMETRY_ALONE, ViewRules, make_views
from dlas.registry import DATASETS
from dlas.types import DatasetOptions, Fraction, PositiveInt


@DATASETS.register("byol_dataset")
class TwoViews(Dataset):
    """Two random views of each image of another data set.

    Gives what the other data set gives, and `aug1` and `aug2` (3, crop_size, crop_size), float32 RGB in [0, 1] or normalised:
    a random cut, mirrored or not; with other brightness, contrast, saturation and hue in 8 cases of 10; grey in 2; blurred in
    1. What is drawn depends on the seed and the sample's place in the order of the run alone.

    A network `byol` takes the views as they are (DL-Art-School's augmented them a second time).

    Args:
        phase: given on to the other data set; views are random in every phase.
        dataset: the other data set, as it would stand under `datasets`, at a `scale` of 1 if it is told none. If it normalises
            its images (`normalize: imagenet`), that is done to the views in the end, and its own images stay in [0, 1].
        crop_size: height and width of a view. Cuts are enlarged or made smaller bilinearly: images should not be much larger.
        key1: entry of which the first view is made: RGB in [0, 1].
        key2: entry of which the second view is made.
        normalize: subtract the mean and divide by the deviation of ImageNet in the end.
        for_sr: cut and mirror alone; colours and sharpness stay.
        least_area: share of the image's area that a cut has at least.
        flip: probability of mirroring; 0 for writing, of which the mirror image means something else.

    Raises:
        ConfigurationError: the other data set gives no such entries.
    """

    provides = ("aug1", "aug2")
    passes_on = "dataset"

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataset: DatasetOptions,
        crop_size: PositiveInt,
        key1: str = "hq",
        key2: str = "lq",
        normalize: bool = False,
        for_sr: bool = False,
        least_area: Fraction = 0.08,
        flip: Fraction = 0.5,
    ) -> None:
        plain = _plain(dataset)
        self.inner: Dataset = create_dataset(plain, phase=phase, name="dataset")
        self.on_bad_file = self.inner.on_bad_file
        self.crop_size = crop_size
        self.keys = (key1, key2)
        self.normalize = normalize or dataset.get("normalize") == "imagenet"
        rules = GEOMETRY_ALONE if for_sr else ViewRules()
        self.rules = replace(rules, least_area=least_area, flip=flip)

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        inner, its_options = _told(_plain(options["dataset"]))
        sample = inner.sample_spec(phase, its_options)
        if sample is None:
            return None
        view = TensorSpec((3, options["crop_size"], options["crop_size"]))
        return {**sample, "aug1": view, "aug2": view}

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory | None:
        inner, its_options = _told(_plain(options["dataset"]))
        return inner.inventory(phase, its_options)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, request: Request) -> Sample:
        sample = self.inner[request]
        return {**sample, "aug1": self._view(sample, request, 0), "aug2": self._view(sample, request, 1)}

    def source(self, index: int) -> str:
        return self.inner.source(index)

    def identity(self, index: int) -> str:
        return self.inner.identity(index)

    def prepare(self) -> None:
        self.inner.prepare()

    def _view(self, sample: Sample, request: Request, number: int) -> Tensor:
        key = self.keys[number]
        image = sample.get(key)
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3:
            found = list(image.shape) if isinstance(image, Tensor) else "no tensor"
            raise ConfigurationError(
                f"byol_dataset: key{number + 1} '{key}' must be a picture (3, H, W); it is {found}, and a sample has: "
                f"{', '.join(sorted(sample))}"
            )
        draws = torch.from_numpy(request.rng(f"aug{number + 1}").random((1, DRAWS), "float32"))
        view = make_views(image[None], draws, self.rules.for_one(draws[0]), self.crop_size)[0][0].clamp(0, 1)
        return imagenet_normalised(view) if self.normalize else view


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """With a scale, and without the normalisation that is done to the views instead."""
    found = {key: value for key, value in options.items() if (key, value) != ("normalize", "imagenet")}
    takes_scale = DATASETS.find(found["mode"]).parameter("scale") is not None
    return {"scale": 1, **found} if takes_scale else found


def _told(options: Mapping[str, Any]) -> tuple[type[Dataset], dict[str, Any]]:
    """A data set that can be asked without being built, and its options with the defaults filled in."""
    given = dict(options)
    mode = given.pop("mode")
    defaults = {parameter.name: parameter.default for parameter in DATASETS.find(mode).parameters}
    return DATASETS.get(mode), {**defaults, **given}
