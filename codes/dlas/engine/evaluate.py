"""Running the networks on a whole data set and measuring the result: used in training and by test.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config import Config
from dlas.config.schema import RAW
from dlas.context import Context
from dlas.data.base import Dataset
from dlas.data.loader import evaluation_items
from dlas.engine.device import memory_format
from dlas.engine.distributed import Ranks
from dlas.engine.distributed.tensors import gathered
from dlas.engine.ema import ModelEma
from dlas.engine.figures import Figures, Scorer
from dlas.engine.microbatch import to_device
from dlas.engine.out_of_memory import explained
from dlas.engine.passes.network import PicturePasses
from dlas.engine.pictures import to_unit
from dlas.engine.precision import Precision
from dlas.engine.reference_sets import ReferenceSets
from dlas.engine.results import measured
from dlas.engine.step import State, build_injectors
from dlas.errors import TrainingError
from dlas.injectors.networks import evaluation_mode
from dlas.layers.resize import imresize
from dlas.metrics import Metric, create_metric, quantize_8bit
from dlas.registry import METRICS

_TOO_LARGE = (
    "Pictures are evaluated whole, whatever train.micro_batch_size is: set 'eval.tile: auto', lower 'eval.batch_size', or take "
    "smaller pictures for this data set, eval.precision bf16 or fp16, or a device with more memory"
)


class Batch:
    """Results of one size, pictures (N, C, H, W) in [0, 1], sound or maps (see `results`), on the device.

    Args:
        names: of the pictures.
        positions: of the pictures in the set.
        output: what the network makes; pictures are rounded to 8 bits.
        target: the true pictures, likewise; None where the set has none.
        source: the input pictures; None where there are none.
        scale: by which the baseline enlarges them; None for no baseline.
        values: numbers of the pictures, (N,), by name.
        strips: series of pictures of the first M, (M, S, C, H, W) in [0, 1], by name.
    """

    def __init__(
        self,
        names: list[str],
        positions: list[int],
        output: Tensor,
        target: Tensor | None,
        source: Tensor | None,
        scale: int | None,
        values: dict[str, Tensor],
        strips: dict[str, Tensor],
    ) -> None:
        self.names = names
        self.positions = positions
        self.output = output
        self.target = target
        self.source = source
        self.values = values
        self._scale = scale
        self._copy = output.to("cpu", non_blocking=True)
        self._strips = {key: strip.to("cpu", non_blocking=True) for key, strip in strips.items()}
        self._arrival = torch.cuda.Event() if output.is_cuda else None
        if self._arrival is not None:
            self._arrival.record()

    @cached_property
    def baseline(self) -> Tensor | None:
        """The bicubic enlargement of the input, rounded to 8 bits; computed when it is asked for."""
        return None if self._scale is None or self.source is None else quantize_8bit(imresize(self.source, self._scale))

    def on_host(self) -> Tensor:
        """The output on the CPU; waits for these pictures alone, not for what came after them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._copy

    def strips(self, place: int) -> dict[str, Tensor]:
        """The series of a picture, (S, C, H, W) on the CPU, by name; none where the picture is not among the first."""
        if self._strips and self._arrival is not None:
            self._arrival.synchronize()
        return {key: each[place] for key, each in self._strips.items() if place < len(each)}


@dataclass(frozen=True)
class Evaluated:
    """One sample's result; pictures are (1, C, H, W) in [0, 1].

    Args:
        batch: it is in.
        place: in the batch.
        prefix: `raw_` for the networks' own weights where their averages are evaluated, too; else empty.
    """

    batch: Batch
    place: int
    prefix: str

    @property
    def name(self) -> str:
        """Unique in the set."""
        return self.batch.names[self.place]

    @property
    def position(self) -> int:
        """In the set."""
        return self.batch.positions[self.place]

    @property
    def output(self) -> Tensor:
        """What the network makes, on the CPU; a picture is rounded to 8 bits."""
        return self._of(self.batch.on_host())

    @property
    def baseline(self) -> Tensor | None:
        """The bicubic enlargement, likewise, if it was asked for."""
        return None if self.batch.baseline is None else self._of(self.batch.baseline)

    @property
    def target(self) -> Tensor | None:
        """The true picture; None where the set has none."""
        return None if self.batch.target is None else self._of(self.batch.target)

    @property
    def input(self) -> Tensor | None:
        """The input picture; None where there is none."""
        return None if self.batch.source is None else self._of(self.batch.source)

    @property
    def strips(self) -> dict[str, Tensor]:
        """Series of pictures, (S, C, H, W) in [0, 1] on the CPU, by state key."""
        return self.batch.strips(self.place)

    def _of(self, pictures: Tensor) -> Tensor:
        return pictures[self.place : self.place + 1]


class Evaluator:
    """Evaluates the networks of a run.

    Args:
        config: the run's configuration.
        networks: networks by name, on the device, with their own weights.
        emas: averages by network; used as `eval.weights` says.
        device: the device.
        ranks: the processes that share the pictures; by default each evaluates all.
    """

    def __init__(
        self,
        config: Config,
        networks: Mapping[str, nn.Module],
        emas: Mapping[str, ModelEma],
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config
        self.section = config.eval
        self.networks = networks
        self.emas = emas
        self.precision = Precision(self.section.precision or config.precision, device)
        self.device = device
        self.ranks = ranks or Ranks()
        self.layout = memory_format(config.memory_format)
        self.injectors = build_injectors(config.evaluation_injectors())
        self.crop = config.scale if self.section.crop_border is None else self.section.crop_border
        self._called = self._as_called()
        # The baseline's figures by data set. They are the same at every validation.
        self._baselines: dict[int, Figures] = {}
        self._references = ReferenceSets(device)
        if any(name != "train" for name in config.datasets):
            # One that lacks its weights, or what it compares with, is found now, not when the first validation comes.
            self._references.check(self._metrics())

    def run(
        self, dataset: Dataset, step: int, show: Callable[[Evaluated], None], bad_files: dict[str, str] | None = None
    ) -> Figures:
        """Evaluates every sample of a data set; weights and modes are as before afterwards.

        Args:
            dataset: the data set.
            step: completed iterations, for injectors that depend on it.
            show: called with each picture's result, when those of the next batch are on their way.
            bad_files: takes the files that were left out and why.

        Returns:
            The figures of the set and of each picture, with those of the baseline.
        """
        figures = Figures()
        baseline = Scorer(self._metrics(True), f"{self.section.baseline}_") if id(dataset) not in self._baselines else None
        for prefix, emas in self._weights():
            scorer = Scorer(self._metrics(True), prefix, self.section.values, self.device)
            waiting: Batch | None = None
            with self._evaluation_state(emas), torch.no_grad():
                share = self.ranks.rank, self.ranks.world_size
                for item in evaluation_items(dataset, bad_files, self.section.batch_size, share):
                    with explained(self._words(item), _TOO_LARGE):
                        batch = self._batch(item, step)
                        pictures = batch.output, batch.target, batch.source
                        scorer.update(batch.names, batch.positions, *pictures, batch.values)
                        if baseline is not None and batch.baseline is not None:
                            baseline.update(batch.names, batch.positions, batch.baseline, batch.target, batch.source)
                    _show_all(waiting, prefix, show)
                    waiting = batch
                _show_all(waiting, prefix, show)
            figures.add(scorer.read(self.ranks))
            if baseline is not None:
                self._baselines[id(dataset)] = baseline.read(self.ranks)
                baseline = None
        if figures.means:
            figures.add(self._baselines[id(dataset)])
        return figures

    def _weights(self) -> list[tuple[str, Mapping[str, ModelEma]]]:
        if self.section.weights == "raw" or not self.emas:
            return [("", {})]
        return [("", self.emas), (RAW, {})] if self.section.weights == "both" else [("", self.emas)]

    @contextmanager
    def _evaluation_state(self, emas: Mapping[str, ModelEma]) -> Iterator[None]:
        with ExitStack() as stack:
            for name, ema in emas.items():
                stack.enter_context(ema.swap_into(self.networks[name]))
            if self.ranks.many:  # each runs as often as its share takes
                for network in self.networks.values():
                    stack.enter_context(gathered(network))
            for network in self._called.values():
                if isinstance(network, PicturePasses):
                    network.begin()
                stack.enter_context(evaluation_mode(network))
            yield

    def _as_called(self) -> dict[str, nn.Module]:
        """The networks as injectors call them: the one that makes the output in tiles and as an ensemble, if so asked."""
        called = dict(self.networks)
        injector = self.config.output_injector()
        if injector is not None and (self.section.tile != 0 or self.section.self_ensemble):
            name = injector.options["generator"]
            called[name] = PicturePasses(
                self.networks[name], self.device, tile=self.section.tile, ensemble=self.section.self_ensemble
            )
        return called

    def _batch(self, item: dict[str, Any], step: int) -> Batch:
        positions = item.pop("positions")
        if self.device.type == "cuda":
            item = {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in item.items()}
        state = State(to_device(item, self.device, self.layout))
        context = Context(self._called, (), step, training=False, seed=self.config.seed, positions=positions)
        with self.precision.autocast():
            for injector in self.injectors:
                state.update(injector(state, context))
        output = to_unit(self.section, self.section.output_state, state[self.section.output_state].float())
        target, source = (
            to_unit(self.section, key, state[key].float()) if key in state else None
            for key in (self.section.target_state, self.section.input_state)
        )
        first = sum(position < self.section.num_strips for position in positions)
        return Batch(
            _names(item, positions),
            positions,
            measured(output),
            None if target is None else measured(target),
            source,
            None if self.section.baseline == "none" or self.config.scale == 1 else self.config.scale,
            {key: _one_each(key, state[key], len(positions)) for key in self.section.values},
            {key: _series(key, to_unit(self.section, key, state[key][:first].float())) for key in self.section.strips if first},
        )

    def _words(self, item: dict[str, Any]) -> str:
        names = _names(item, item["positions"])
        shapes = (f"'{key}' of {' x '.join(map(str, v.shape[1:]))}" for key, v in item.items() if isinstance(v, Tensor))
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"evaluating picture '{names[0]}'{others} ({', '.join(shapes)})"

    def _metrics(self, with_references: bool = False) -> dict[str, Metric]:
        created = {}
        for name in self.section.metrics:
            options = {"crop_border": self.crop} if METRICS.find(name).parameter("crop_border") else {}
            options |= self.section.metric_options.get(name, {})
            created[name] = create_metric({"type": name, **options}, self.device)
        if with_references:
            self._references.give(created)
        return created


def _one_each(key: str, values: Tensor, count: int) -> Tensor:
    if values.dim() == 0 and count == 1:  # a network's own loss: the mean over a batch of one
        return values[None]
    if values.shape != (count,):
        given = " x ".join(map(str, values.shape)) or "one number"
        raise TrainingError(f"eval.values: '{key}' must hold one number for each of the {count} pictures; it holds {given}")
    return values


def _series(key: str, strips: Tensor) -> Tensor:
    if strips.dim() not in (4, 5):
        given = " x ".join(map(str, strips.shape))
        words = "must be (batch, steps, channels, height, width), or (batch, channels, height, width) of wide pictures"
        raise TrainingError(f"eval.strips: '{key}' {words}; it is {given}")
    return strips if strips.dim() == 5 else strips[:, None]


def _names(item: dict[str, Any], positions: list[int]) -> list[str]:
    return list(item["name"]) if "name" in item else [f"{position:05d}" for position in positions]


def _show_all(batch: Batch | None, prefix: str, show: Callable[[Evaluated], None]) -> None:
    for place in range(len(batch.names) if batch is not None else 0):
        assert batch is not None
        show(Evaluated(batch, place, prefix))
