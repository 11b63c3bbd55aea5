"""Sets of pictures with which metrics compare in place of the true pictures: folders, and files of their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dlas.config import Config
from dlas.data.images.files import list_images, read_with_header, to_tensor, write_whole
from dlas.data.loader import evaluation_items
from dlas.engine.build import build_evaluation_dataset
from dlas.engine.device import choose_device
from dlas.engine.pictures import to_unit
from dlas.errors import ConfigurationError, DataError
from dlas.metrics import Metric, create_metric, quantize_8bit
from dlas.metrics.sets import SetMetric, SetReader, Statistics
from dlas.observe.console import LOGGER

_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


class ReferenceSets:
    """Reads reference sets once for all validations.

    Args:
        device: where features of pictures are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[tuple[str, str, bool], Statistics] = {}

    def check(self, metrics: Mapping[str, Metric]) -> None:
        """Finds out whether the references are there and fit; pictures are not read.

        Raises:
            ConfigurationError: statistics are of other features.
            DataError: there is nothing, or nothing usable.
        """
        for name, metric in metrics.items():
            if not isinstance(metric, SetMetric) or metric.reference is None:
                continue
            path = Path(metric.reference).expanduser()
            if path.is_dir():
                list_images(path)
            elif path.is_file():
                self.give({name: metric})
            else:
                raise DataError(
                    f"eval.metric_options.{name}.reference: there is no {path}; expected a folder of pictures, or a file that "
                    "`dlas statistics` has written"
                )

    def give(self, metrics: Mapping[str, Metric]) -> None:
        """Gives metrics with a reference set its statistics."""
        for name, metric in metrics.items():
            if isinstance(metric, SetMetric) and metric.reference is not None:
                try:
                    metric.compare_with(self._statistics(metric, metric.reference))
                except ConfigurationError as error:
                    raise ConfigurationError(f"eval.metric_options.{name}.reference: {error}") from error

    def _statistics(self, metric: SetMetric, reference: str) -> Statistics:
        key = (reference, metric.features.identity, metric.keeps_rows)
        if key not in self._known:
            path = Path(reference).expanduser()
            if path.is_dir():
                self._known[key] = measure(metric, pictures_of_folder(path), str(path), self.device)
            else:
                self._known[key] = Statistics.read(path)
            found = self._known[key]
            LOGGER.info("reference set %s: %d pictures, %s", path, found.pictures, found.set_hash[:16])
        return self._known[key]


def pictures_of_folder(folder: Path) -> Iterator[Tensor]:
    """All pictures below a folder, (1, 3, H, W) in [0, 1], or (1, 1, H, W) of grey files; at their size."""
    for path in list_images(folder):
        array, header = read_with_header(path)
        picture = quantize_8bit(to_tensor(array))[None]
        yield picture[:, :1] if header.mode in _GREY else picture


def measure(metric: SetMetric, pictures: Iterable[Tensor], source: str, device: torch.device) -> Statistics:
    """Statistics of pictures (N, C, H, W) in [0, 1].

    Raises:
        DataError: they cannot be measured: they are of several sizes, for instance, where one is needed.
    """
    reader = SetReader(metric, device)
    try:
        for each in pictures:
            reader.add(each.to(device))
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    return reader.read(source)


def write_statistics(
    config: Config, name: str, output: Path, *, dataset: str | None, folder: Path | None
) -> tuple[Path, Statistics]:
    """Measures a set as a metric of a file would, and writes its statistics.

    Args:
        config: the file; the metric's options are those under `eval.metric_options`.
        name: of the metric.
        output: safetensors file, or a folder, in which a file with the beginning of the set's checksum in its name is made.
        dataset: key of a data set whose `eval.target_state` is measured; it is read as for evaluation, `train`, too.
        folder: of pictures, in place of a data set.

    Returns:
        Where it was written, and what.

    Raises:
        ConfigurationError: the metric compares no sets, or the data set is not there or does not give true pictures.
        DataError: there are no pictures, or unusable ones.
    """
    options = {key: value for key, value in config.eval.metric_options.get(name, {}).items() if key != "reference"}
    device = choose_device(config.device)
    metric = create_metric({"type": name, **options}, device)
    if not isinstance(metric, SetMetric):
        raise ConfigurationError(f"--metric {name}: compares single pictures, not sets of them")
    pictures = pictures_of_folder(folder) if folder is not None else _pictures_of_dataset(config, dataset)
    statistics = measure(metric, pictures, str(folder or f"datasets.{dataset}"), device)
    path = output / f"{name}-{statistics.set_hash[:8]}.safetensors" if output.is_dir() else output
    write_whole(path, statistics.to_bytes())
    return path, statistics


def _pictures_of_dataset(config: Config, key: str | None) -> Iterator[Tensor]:
    keys = [each for each in config.datasets if each != "train"]
    key = key or next(iter(keys), None)
    if key not in config.datasets:
        raise ConfigurationError(f"--dataset {key}: the file has {', '.join(config.datasets) or 'none'}")
    for item in evaluation_items(build_evaluation_dataset(config, key), None, config.eval.batch_size):
        state = config.eval.target_state
        if not isinstance(item.get(state), Tensor):
            raise ConfigurationError(f"datasets.{key} gives no '{state}' (eval.target_state); it gives: {', '.join(item)}")
        yield quantize_8bit(to_unit(config.eval, state, item[state].float()))
