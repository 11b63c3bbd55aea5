"""What metrics have in common that compare a set of pictures with another one: what they keep, and a reference set."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dlas.errors import ConfigurationError, DataError
from dlas.metrics.accumulators import Moments, Rows
from dlas.metrics.base import PreparedMetric
from dlas.metrics.features import Features

_FORMAT = "1"


class SetMetric(PreparedMetric):
    """Compares all predictions with all true pictures, or with those of a reference set; single pictures have no value.

    Args:
        features: by which they are compared.
        reference: the reference set: a folder of pictures or a file of statistics. None: the true pictures.

    Attributes:
        features: the same.
        predicted: what is kept of the predictions.
        true: what is kept of the pictures that they are compared with.
        keeps_rows: whether that is all vectors, or their moments.
    """

    higher_is_better = False
    placed: ClassVar[bool] = True
    keeps_rows: ClassVar[bool] = False

    def __init__(self, features: Features, reference: str | None) -> None:
        self.features = features
        self.reference = reference
        self.against = "target" if reference is None else "nothing"

    def prepare(self, device: torch.device) -> None:
        self.features.prepare(device)
        self.device = device
        self.predicted, self.true = self._new(), self._new()

    def _new(self) -> Any:
        return Rows(self.device) if self.keeps_rows else Moments(None, self.device)

    def update(self, prediction: Tensor, target: Tensor, positions: Sequence[int] = (), /) -> None:
        """Adds pictures.

        Args:
            prediction: (N, C, H, W) in [0, 1].
            target: the true pictures; not looked at with a reference set.
            positions: of the pictures in their set; in the order of arrival if not given.
        """
        self.predicted.update(self.features(prediction), positions)
        if self.reference is None:
            self.true.update(self.features(target), positions)

    def compare_with(self, statistics: Statistics) -> None:
        """Takes a reference set.

        Raises:
            ConfigurationError: its statistics are of other features, or not what this metric needs.
        """
        if statistics.features != self.features.identity:
            raise ConfigurationError(
                f"{statistics.source}: holds statistics of other features ({statistics.features}; the metric compares "
                f"{self.features.identity}); write them anew with `dlas statistics`"
            )
        if self.keeps_rows:
            if statistics.rows is None:
                raise ConfigurationError(
                    f"{statistics.source}: holds means and covariances, and this metric needs the vectors; write it by "
                    "`dlas statistics --metric` with the name of this metric: other metrics can read it, too"
                )
            self.true.update(statistics.rows.to(self.device))
        else:
            self.true.merge(statistics.moments)

    def merge(self, other: Self, /) -> None:
        """Adds what `other` has seen; a reference set is the same in both."""
        self.predicted.merge(other.predicted)
        if self.reference is None:
            self.true.merge(other.true)

    def synchronize(self) -> None:
        """Adds what the other processes have seen; see `Metric.synchronize`."""
        self.predicted.synchronize()
        if self.reference is None:
            self.true.synchronize()


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of pictures.

    Args:
        features: identity of the features, see `Features`.
        pictures: how many there were.
        set_hash: SHA-256 of the set: of the sorted checksums of the pictures' pixels.
        moments: of the vectors.
        rows: the vectors, where they were kept.
        source: where it comes from, for messages.
    """

    features: str
    pictures: int
    set_hash: str
    moments: Moments
    rows: Tensor | None
    source: str

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {"sum": self.moments.sum.cpu(), "products": self.moments.products.cpu()}
        if self.rows is not None:
            tensors["rows"] = self.rows.cpu().contiguous()
        told = {"format": _FORMAT, "features": self.features, "pictures": self.pictures, "set": self.set_hash}
        return save(tensors, {"dlas_statistics": json.dumps({**told, "vectors": self.moments.count})})

    @classmethod
    def read(cls, path: Path) -> Statistics:
        """From a safetensors file.

        Raises:
            DataError: it cannot be read, is something else, or of another set than its name says.
        """
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {}).get("dlas_statistics", "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as statistics of a set of pictures: {error}") from error
        if told is None or told.get("format") != _FORMAT:
            raise DataError(f"{path}: no statistics that `dlas statistics` has written; a folder of pictures can be named, too")
        named = re.search(r"-([0-9a-f]{8,64})$", path.stem)
        if named and not told["set"].startswith(named[1]):
            raise DataError(f"{path}: is of another set than its name says: the set's SHA-256 begins {told['set'][:8]}")
        moments = Moments(None, torch.device("cpu"))
        moments.count, moments.sum, moments.products = told["vectors"], tensors["sum"], tensors["products"]
        return cls(told["features"], told["pictures"], told["set"], moments, tensors.get("rows"), str(path))


class SetReader:
    """Makes the statistics of a set of pictures, one after the other.

    Args:
        metric: says which features, and whether all vectors are kept; it is prepared, and not changed.
        device: where features are computed.
    """

    def __init__(self, metric: SetMetric, device: torch.device) -> None:
        self.metric = metric
        self._moments = Moments(None, device)
        self._rows = Rows(device)
        self._digests: list[bytes] = []

    def add(self, pictures: Tensor) -> None:
        """Pictures (N, C, H, W) in [0, 1], rounded to 8 bits."""
        features = self.metric.features(pictures)
        self._moments.update(features)
        if self.metric.keeps_rows:
            self._rows.update(features)
        for picture in pictures.mul(255).round().byte().cpu():
            head = "x".join(map(str, picture.shape))
            self._digests.append(hashlib.sha256(head.encode() + picture.numpy().tobytes()).digest())

    def read(self, source: str) -> Statistics:
        """The statistics of what was added."""
        digest = hashlib.sha256(b"".join(sorted(self._digests))).hexdigest()
        rows = self._rows.compute() if self.metric.keeps_rows else None
        return Statistics(self.metric.features.identity, len(self._digests), digest, self._moments, rows, source)
