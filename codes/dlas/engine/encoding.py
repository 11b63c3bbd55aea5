"""Running frozen networks over a data set once: what `dlas data encode` does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dlas.config import Config
from dlas.config.build import to_plain
from dlas.config.schema import EncodeConfig, InjectorConfig
from dlas.context import Context
from dlas.data.base import BadSample, Dataset, Request, Sample, create_dataset
from dlas.data.latents.store import SHAPES, WHOLE, Share, Writer, in_a_row
from dlas.engine.build import build_networks
from dlas.engine.device import apply_numeric_settings, choose_device, memory_format
from dlas.engine.encoders import fingerprint
from dlas.engine.microbatch import to_device
from dlas.engine.options import with_scale
from dlas.engine.precision import DTYPES, Precision
from dlas.errors import ConfigurationError, DataError
from dlas.injectors.base import Injector
from dlas.observe.lock import locked
from dlas.registry import DATASETS, INJECTORS

MODE = "latents"


class _Drawn(NamedTuple):
    """A sample of the source, as often as it is drawn."""

    number: int
    copies: list[Sample]


@dataclass
class Encoded:
    """What became of one data set.

    Args:
        key: its name in the file.
        folder: where its samples are.
        samples: how many there are.
        made: how many of them were encoded now.
        complete: whether all of it is there; other processes may be at work.
        bad_files: those that were left out, and why.
    """

    key: str
    folder: Path
    samples: int = 0
    made: int = 0
    complete: bool = True
    bad_files: dict[str, str] = field(default_factory=dict)


def encode_data_sets(
    config: Config,
    *,
    overwrite: bool = False,
    starting: Callable[[str, int], Callable[[int], None]] = lambda key, total: lambda n: None,
    share: Share = WHOLE,
) -> list[Encoded]:
    """Encodes every data set of the mode `latents` that has a source.

    Several processes may do so together, each its share of the parts. They need not know of each other: whoever finds all parts
    there completes the folder.

    Args:
        config: from `dlas.config.load`; has a section `encode`.
        overwrite: encode anew what was encoded otherwise.
        starting: is told a data set's name and number of samples; what it returns is told how many more are done.
        share: which parts are this process's.

    Raises:
        ConfigurationError: there is nothing to encode, no section `encode`, or a folder holds something else; or several
            processes are to overwrite.
        DataError: a file is unusable.
        TrainingError: another process encodes the same.
    """
    if overwrite and share.count > 1:
        raise ConfigurationError("several processes encode together, and none may remove what others write; remove the folder")
    sections = {key: each for key, each in config.datasets.items() if each.mode == MODE and each.options.get("source")}
    if not sections:
        raise ConfigurationError(f"no data set of the mode '{MODE}' has a 'source', so there is nothing to encode")
    if config.encode is None or not config.encode.injectors:
        raise ConfigurationError("the file has no 'encode: {injectors: ...}', so it is not known what to make of the samples")
    device = choose_device(config.device)
    apply_numeric_settings(config)
    encoder = _Encoder(config, config.encode, build_networks(config, device), device)
    results = []
    for key, section in sections.items():
        folder = Path(section.options["folder"]).expanduser()
        with locked(folder / share.name("lock"), f"encoding {folder}", "give another folder"):
            source = dict(section.options["source"])
            writer = partial(Writer, folder, overwrite=overwrite, share=share)
            results.append(encoder.run(key, writer, source, section.options["keep"], starting))
    return results


class _Encoder:
    """The networks and injectors, ready to run."""

    def __init__(self, config: Config, section: EncodeConfig, networks: Mapping[str, nn.Module], device: torch.device) -> None:
        self.config = config
        self.section = section
        self.device = device
        self.layout = memory_format(config.memory_format)
        self.precision = Precision(section.precision, device)
        used = _networks_of(section.injectors)
        self.networks = {name: networks[name].eval() for name in used}
        self.injectors: dict[str, Injector] = {
            name: INJECTORS.create(each.type, with_scale(each, config.scale)) for name, each in section.injectors.items()
        }

    def run(
        self,
        key: str,
        open_writer: Callable[[Mapping[str, Any]], Writer],
        source: dict[str, Any],
        keep: Sequence[str],
        starting: Callable[[str, int], Callable[[int], None]],
    ) -> Encoded:
        options = source
        if DATASETS.find(source["mode"]).parameter("scale") is not None:
            options = {"scale": self.config.scale, **source}
        dataset = create_dataset(options, phase="train" if key == "train" else "val", name=f"{key}.source")
        writer = open_writer(self._plan(dataset, key, source, keep))
        result = Encoded(key, writer.folder, len(dataset))
        if writer.complete:
            return result
        advance = starting(key, len(dataset))
        size = self.section.part_size
        starts = range(0, len(dataset), size)
        for part, start in enumerate(starts):
            indices = range(start, min(start + size, len(dataset)))
            if not writer.has(part) and writer.share.has(part):
                tensors, texts, bad = self._part(dataset, indices, keep, advance)
                writer.put(part, tensors, texts)
                result.bad_files |= bad
                result.made += len(indices) - len(bad)
            else:
                advance(len(indices))
        result.complete = all(map(writer.has, range(len(starts))))
        if result.complete:
            writer.finish(len(starts))
        return result

    def _plan(self, dataset: Dataset, key: str, source: dict[str, Any], keep: Sequence[str]) -> dict[str, Any]:
        section = self.section
        return {
            "networks": {
                name: {"architecture": self.config.networks[name].which_model, "weights": fingerprint(network)}
                for name, network in self.networks.items()
            },
            "injectors": {name: {"type": each.type, **each.options} for name, each in section.injectors.items()},
            "precision": self.precision.name,
            "dtype": section.dtype,
            "mirror": section.mirror,
            "copies": section.copies,
            "part_size": section.part_size,
            "seed": self.config.seed,
            "phase": "train" if key == "train" else "val",
            "keep": list(keep),
            "source": to_plain(source),
            "data": _data_hash(dataset),
        }

    def _part(
        self, dataset: Dataset, indices: range, keep: Sequence[str], advance: Callable[[int], None]
    ) -> tuple[dict[str, Tensor], dict[str, list[list[str]]], dict[str, str]]:
        """The entries of some samples: tensors (samples, views, ...), and texts for each sample and view."""
        tensors: dict[str, list[list[Tensor]]] = {}
        texts: dict[str, list[list[str]]] = {}
        bad: dict[str, str] = {}
        for start in range(0, len(indices), self.section.batch_size):
            some = indices[start : start + self.section.batch_size]
            good = self._drawn(dataset, some, bad)
            if good:
                views = [self._encoded(dataset, good, view, keep) for view in self._views()]
                for name in keep:
                    values = [view[name] for view in views]
                    if isinstance(values[0], Tensor):
                        tensors.setdefault(name, []).extend([list(each) for each in zip(*values, strict=True)])
                    else:
                        texts.setdefault(name, []).extend([list(each) for each in zip(*values, strict=True)])
            advance(len(some))
        if not tensors and not texts:
            raise DataError(
                f"none of samples {indices.start} to {indices.stop - 1} can be used, for example: {next(iter(bad.items()))}"
            )
        if not tensors:
            raise ConfigurationError(f"keep: {', '.join(keep)} are texts alone; keep what the networks make of them")
        together: dict[str, Tensor] = {}
        for name, samples in tensors.items():
            together |= self._together(name, samples)
        return together, texts, bad

    def _together(self, name: str, samples: list[list[Tensor]]) -> dict[str, Tensor]:
        """An entry of the samples of a part, and its sizes where they differ."""
        sizes = {each.shape for views in samples for each in views}
        if len(sizes) == 1:
            return {name: torch.stack([torch.stack(views) for views in samples])}
        try:
            numbers, shapes = in_a_row(samples)
        except ValueError as error:
            raise ConfigurationError(f"keep: '{name}': {error}; remove it") from error
        return {name: numbers, f"{name}{SHAPES}": shapes}

    def _views(self) -> Iterator[tuple[int, bool]]:
        for copy in range(self.section.copies):
            yield copy, False
            if self.section.mirror:
                yield copy, True

    def _drawn(self, dataset: Dataset, indices: range, bad: dict[str, str]) -> list[_Drawn]:
        """The samples that can be used."""
        found = []
        for index in indices:
            requests = [Request(index, copy * len(dataset) + index, self.config.seed) for copy in range(self.section.copies)]
            try:
                found.append(_Drawn(index, [dataset[request] for request in requests]))
            except BadSample as error:
                if dataset.on_bad_file == "error":
                    raise
                bad[error.path] = error.reason
        return found

    def _encoded(self, dataset: Dataset, samples: list[_Drawn], view: tuple[int, bool], keep: Sequence[str]) -> dict[str, Any]:
        copy, mirrored = view
        indices = [each.number for each in samples]
        drawn = [each.copies[copy] for each in samples]
        for name in drawn[0]:
            sizes = sorted({tuple(each[name].shape) for each in drawn if isinstance(each.get(name), Tensor)})
            if len(sizes) > 1:
                raise ConfigurationError(
                    f"'{name}' of the source differs in size between samples ({', '.join(map(str, sizes[:3]))}), so that those "
                    "encoded together would be filled up to the longest: write `encode.batch_size: 1`"
                )
        batch = dataset.collate(drawn, [dataset.source(index) for index in indices])
        if mirrored:
            for name in self.section.mirror:
                batch[name] = _image(batch, name).flip(-1)
        positions = [copy * len(dataset) + index for index in indices]
        context = Context(self.networks, training=False, seed=self.config.seed, positions=positions)
        state = to_device({**batch, "positions": positions}, self.device, self.layout)
        with torch.no_grad(), self.precision.autocast():
            for name, injector in self.injectors.items():
                try:
                    state.update(injector(state, context))
                except KeyError as error:
                    raise ConfigurationError(
                        f"encode.injectors.{name} reads {error}, which nothing has written; there are: {', '.join(state)}"
                    ) from error
        missing = [name for name in keep if name not in state]
        if missing:
            raise ConfigurationError(f"keep: nothing writes {', '.join(missing)}; there are: {', '.join(state)}")
        return {name: self._kept(name, state[name], len(samples)) for name in keep}

    def _kept(self, name: str, value: Any, samples: int) -> Any:
        if isinstance(value, list) and len(value) == samples and all(isinstance(each, str) for each in value):
            return value
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != samples:
            raise ConfigurationError(
                f"keep: '{name}' is no tensor and no list of texts with one entry for each sample; remove it"
            )
        value = value.detach().cpu()
        if not value.is_floating_point():
            return value
        kept = value.to(DTYPES[self.section.dtype])
        if not torch.isfinite(kept).all():
            raise DataError(
                f"'{name}' has numbers that are not finite, or too large for {self.section.dtype} (largest magnitude "
                f"{value.float().abs().max():.4g}); write `encode.dtype: fp32`, or correct the network's weights"
            )
        return kept


def _image(batch: Mapping[str, Any], name: str) -> Tensor:
    value = batch.get(name)
    if not isinstance(value, Tensor) or value.dim() != 4:
        raise ConfigurationError(
            f"encode.mirror: '{name}' is no batch of images of the source, which gives: {', '.join(batch)}"
        )
    return value


def _networks_of(injectors: Mapping[str, InjectorConfig]) -> list[str]:
    """The networks that some injectors run."""
    found: dict[str, None] = {}
    for section in injectors.values():
        for parameter in INJECTORS.find(section.type).parameters:
            name = section.options.get(parameter.name, parameter.default)
            if "NetworkName" in parameter.annotation and isinstance(name, str):
                found[name] = None
    return list(found)


def _data_hash(dataset: Dataset) -> str:
    """Tells whether a data set is still the same."""
    found = hashlib.sha256()
    for index in range(len(dataset)):
        found.update(f"{dataset.identity(index)}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:16]
