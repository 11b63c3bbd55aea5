"""Feature vectors of pictures, by which sets of pictures are compared."""

from __future__ import annotations

import hashlib
import weakref
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlas.layers.classifiers import CLASSIFIERS, Classifier, find_weights, load_classifier
from dlas.layers.classifiers.files import load_exactly
from dlas.layers.classifiers.inception import FIDInception


class Features:
    """Makes vectors of pictures.

    Attributes:
        identity: what the vectors are of, in words and checksums; known after `prepare`. Vectors of different identities cannot
            be compared.
    """

    identity: str = ""

    def prepare(self, device: torch.device) -> None:
        """Reads what is needed; called once before the first pictures."""
        raise NotImplementedError

    def compute(self, image: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (M, D), M a multiple of N: as many vectors of each picture, one after the other."""
        raise NotImplementedError

    def __call__(self, image: Tensor) -> Tensor:
        """See `compute`. What several metrics ask of the same pictures is computed once."""
        found = _RECENT.find(self.identity, image)
        if found is None:
            with torch.no_grad():
                found = self.compute(image)
            _RECENT.keep(self.identity, image, found)
        return found


class _Recent:
    """Vectors of the latest pictures."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, weakref.ref[Tensor], int, Tensor]] = []

    def find(self, identity: str, image: Tensor) -> Tensor | None:
        for name, reference, version, features in self._kept:
            if name == identity and reference() is image and version == image._version:
                return features
        return None

    def keep(self, identity: str, image: Tensor, features: Tensor) -> None:
        alive = [entry for entry in self._kept if entry[1]() is not None]
        self._kept = [*alive, (identity, weakref.ref(image), image._version, features)][
            -8:
        ]  # outputs and truths of several networks


_RECENT = _Recent()


class NetworkFeatures(Features):
    """Of RGB pictures or patches of them; grey ones stand for three equal channels.

    Args:
        patch_size: cut pictures into squares of this many pixels and take each for a picture; 0 takes whole pictures.
    """

    network: nn.Module

    def __init__(self, patch_size: int) -> None:
        self.patch_size = patch_size

    def compute(self, image: Tensor) -> Tensor:
        return self.of(self._cut(image))

    def of(self, image: Tensor) -> Tensor:
        """(M, 3, H, W) -> (M, D)."""
        raise NotImplementedError

    def _cut(self, image: Tensor) -> Tensor:
        image = image.float()
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        size = self.patch_size
        if not size:
            return image
        if min(image.shape[-2:]) < size:
            raise ValueError(f"patch_size {size} is larger than a picture of {image.shape[-2]}x{image.shape[-1]} pixels")
        patches = image.unfold(2, size, size).unfold(3, size, size)  # (N, 3, rows, columns, size, size)
        return patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


class InceptionFeatures(NetworkFeatures):
    """The 2048 of Inception-v3's last pooling layer, as the published FID has them: pictures are brought to 299x299 bilinearly.

    Args:
        metric: who asks, for messages.
        load_path: file of the published weights; None looks for it.
        patch_size: see `NetworkFeatures`.
    """

    def __init__(self, metric: str, load_path: str | None, patch_size: int) -> None:
        super().__init__(patch_size)
        self.metric = metric
        self.load_path = load_path

    def prepare(self, device: torch.device) -> None:
        path = find_weights("inception", self.load_path, f"the metric '{self.metric}'")
        self.network = _inception(path, device)
        self.identity = f"Inception-v3 pool, weights {_checksum(path)}, patches {self.patch_size}"

    def of(self, image: Tensor) -> Tensor:
        found: Tensor = self.network(image)
        return found


class ClassifierFeatures(NetworkFeatures):
    """Those of a classifier's layer, averaged over places. Pictures are taken at their size.

    Args:
        metric: who asks, for messages.
        name: of the classifier.
        layer: whose; None takes the last one.
        load_path: file of its weights with torchvision's names; None looks for it.
        patch_size: see `NetworkFeatures`.
        random_weights: for tests of programs.
    """

    network: Classifier

    def __init__(
        self, metric: str, name: str, layer: str | None, load_path: str | None, patch_size: int, random_weights: bool
    ) -> None:
        super().__init__(patch_size)
        self.metric = metric
        self.name = name
        self.layer = CLASSIFIERS[name].names()[-1] if layer is None else layer
        self.load_path = load_path
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        asked_by = f"the metric '{self.metric}'"
        path = None if self.random_weights else find_weights(self.name, self.load_path, asked_by)
        self.network = _classifier(self.name, self.layer, path, device)
        weights = "random" if path is None else _checksum(path)
        self.identity = f"{self.name} {self.layer}, weights {weights}, patches {self.patch_size}"

    def of(self, image: Tensor) -> Tensor:
        (last,) = self.network(self.network.normalize(image)).values()
        return last.mean((2, 3)) if last.dim() == 4 else last


class PixelFeatures(Features):
    """The pixels themselves.

    Args:
        size: pictures are brought to this height and width, by means over areas; 0 leaves them as they are.
    """

    LIMIT = 4096

    def __init__(self, size: int) -> None:
        self.size = size

    def prepare(self, device: torch.device) -> None:
        self.identity = f"pixels in [0, 1], size {self.size}"

    def compute(self, image: Tensor) -> Tensor:
        image = image.double()
        if self.size:
            image = F.adaptive_avg_pool2d(image, self.size)
        pixels = image.flatten(1)
        if pixels.shape[1] > self.LIMIT:
            shape = " x ".join(map(str, image.shape[1:]))
            raise ValueError(
                f"pictures of {shape} have {pixels.shape[1]} numbers, and their covariances are kept for at most {self.LIMIT}; "
                "set 'size: 32', to which they are brought first"
            )
        return pixels


@lru_cache(maxsize=1)
def _inception(path: Path, device: torch.device) -> FIDInception:
    network = FIDInception()
    load_exactly(network, path, "Inception-v3 of the published FID")
    return network.requires_grad_(False).eval().to(device)


@lru_cache(maxsize=2)
def _classifier(name: str, layer: str, path: Path | None, device: torch.device) -> Classifier:
    given = None if path is None else str(path)
    return load_classifier(name, (layer,), given, f"features of {name}", device, random_weights=path is None)


@lru_cache
def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
