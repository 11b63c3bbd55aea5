"""Measuring pictures batch by batch without waiting for the device, and reading the figures at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlas.engine.distributed import Ranks
from dlas.errors import TrainingError
from dlas.metrics import Average, Metric
from dlas.observe.console import LOGGER


@dataclass
class Figures:
    """What a data set has reached.

    Args:
        means: each metric over the set, by name; with `raw_` in front those of the networks' own weights beside their averages,
            with `bicubic_` those of the baseline.
        pictures: the same of each picture, by its name, where a picture has a value of its own; in the set's order.
    """

    means: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        """Takes in the figures of the same pictures under other names."""
        self.means |= other.means
        for picture, values in other.pictures.items():
            self.pictures.setdefault(picture, {}).update(values)

    def undefined(self) -> dict[str, list[str]]:
        """Pictures whose value of a metric is no number, by metric."""
        found: dict[str, list[str]] = {}
        for picture, values in self.pictures.items():
            for metric, value in values.items():
                if value != value:
                    found.setdefault(metric, []).append(picture)
        return found


def warn_of_undefined(set_name: str, figures: Figures) -> None:
    """Says of which pictures a metric is no number."""
    for metric, pictures in figures.undefined().items():
        shown = ", ".join(pictures[:3]) + (", ..." if len(pictures) > 3 else "")
        LOGGER.warning(
            "%s: %s is not a number on %d of %d pictures (%s): the network's output is not finite, or too flat for it",
            set_name,
            metric,
            len(pictures),
            len(figures.pictures),
            shown,
        )


class Scorer:
    """Metrics over one pass through a data set.

    Args:
        metrics: by name.
        prefix: stands before the names of the figures.
        values: names of numbers that samples have already.
        device: where these are.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        prefix: str = "",
        values: Iterable[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.metrics = metrics
        self.prefix = prefix
        self.averages = {name: Average(device) for name in values}
        self._seen: list[tuple[int, str]] = []
        self._values: dict[str, list[tuple[list[str], Tensor]]] = {name: [] for name in (*metrics, *self.averages)}
        self._measured: set[str] = set()

    def update(
        self,
        names: Sequence[str],
        positions: Sequence[int],
        output: Tensor,
        target: Tensor | None,
        source: Tensor | None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Measures pictures; nothing waits for the device unless a metric does.

        Args:
            names: of the pictures.
            positions: of the pictures in the set.
            output: (N, C, H, W) in [0, 1], rounded to 8 bits.
            target: the true pictures, likewise; metrics that need them are passed over without.
            source: the input pictures; metrics that need them are passed over without.
            values: numbers of the samples, (N,), by name.

        Raises:
            TrainingError: a metric cannot be had of such pictures.
        """
        self._seen += zip(positions, names, strict=True)
        for metric_name, metric in self.metrics.items():
            other = {"target": target, "input": source}.get(getattr(metric, "against", "target"), output)
            if other is None:
                continue
            self._measured.add(metric_name)
            try:
                found = metric.update(output, other, *([positions] if getattr(metric, "placed", False) else []))
            except ValueError as error:
                quoted = ", ".join(f"'{name}'" for name in names)
                raise TrainingError(f"metric '{metric_name}' on picture {quoted}: {error}") from error
            if found is not None:
                self._values[metric_name].append((list(names), found.reshape(-1)))
        for name, average in self.averages.items() if values else ():
            assert values is not None
            average.update(values[name])
            self._measured.add(name)
            self._values[name].append((list(names), values[name].detach().double()))

    def read(self, ranks: Ranks | None = None) -> Figures:
        """All figures; waits for the device once for each metric.

        Args:
            ranks: the processes that share the set; each has all figures then. All must read together.
        """
        shares = (ranks or Ranks()).gather(self._own())
        measured = {name for share in shares for name in share.measured}
        figures = Figures(pictures={name: {} for _, name in sorted(each for share in shares for each in share.seen)})
        measures: dict[str, Metric | Average] = {**self.metrics, **self.averages}
        for name, measure in measures.items():
            if name not in measured:
                continue
            if len(shares) > 1:
                measure.synchronize()
            figures.means[self.prefix + name] = float(measure.compute())
            for share in shares:
                for picture, number in share.values[name]:
                    figures.pictures[picture][self.prefix + name] = number
        return figures

    def _own(self) -> _Share:
        """What this process has measured."""
        values = {}
        for name, chunks in self._values.items():
            pictures = [picture for names, _ in chunks for picture in names]
            numbers = torch.cat([found for _, found in chunks]).tolist() if chunks else []
            values[name] = list(zip(pictures, numbers, strict=True))
        return _Share(self._seen, self._measured, values)


@dataclass(frozen=True)
class _Share:
    """Pictures by position and name, the measures that there are of them, and their values by picture."""

    seen: list[tuple[int, str]]
    measured: set[str]
    values: dict[str, list[tuple[str, float]]]
