"""Running the networks on a whole data set and measuring the result: used in training and by test.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config import Config
from dlas.context import Context
from dlas.data.base import Dataset
from dlas.data.loader import evaluation_items
from dlas.engine.device import memory_format
from dlas.engine.ema import ModelEma
from dlas.engine.microbatch import to_device
from dlas.engine.out_of_memory import explained
from dlas.engine.precision import Precision
from dlas.engine.step import State, build_injectors
from dlas.errors import TrainingError
from dlas.injectors.networks import evaluation_mode
from dlas.layers.resize import imresize
from dlas.metrics import Metric, create_metric, quantize_8bit
from dlas.registry import METRICS

_TOO_LARGE = (
    "Pictures are evaluated whole, one at a time, whatever train.micro_batch_size is: take smaller pictures for this data set "
    "(for instance cut into tiles), precision: bf16 or fp16, or a device with more memory"
)


@dataclass
class Evaluated:
    """One picture's result; pictures are (1, 3, H, W) in [0, 1] on the device.

    Args:
        name: of the picture, unique in its set.
        output: the network's picture, rounded to 8 bits.
        baseline: the bicubic enlargement, likewise, if it was asked for.
        target: the true picture; None where the set has none.
        input: the input picture.
        values: metrics by name; the baseline's have its name in front (`bicubic_psnr_y`).
    """

    name: str
    output: Tensor
    baseline: Tensor | None
    target: Tensor | None
    input: Tensor
    values: dict[str, float] = field(default_factory=dict)


class Evaluator:
    """Evaluates the networks of a run.

    Args:
        config: the run's configuration.
        networks: networks by name, on the device.
        emas: averages by network; used in place of the networks' own weights if `eval.use_ema`.
        precision: autocast.
        device: the device.
    """

    def __init__(
        self,
        config: Config,
        networks: Mapping[str, nn.Module],
        emas: Mapping[str, ModelEma],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.config = config
        self.section = config.eval
        self.networks = networks
        self.emas = emas if self.section.use_ema else {}
        self.precision = precision
        self.device = device
        self.layout = memory_format(config.memory_format)
        self.injectors = build_injectors(config.evaluation_injectors())
        self.crop = config.scale if self.section.crop_border is None else self.section.crop_border
        # The baseline's figures by data set: of each picture, and of the set. They are the same at every validation.
        self._baselines: dict[int, tuple[dict[str, dict[str, float]], dict[str, float]]] = {}
        if any(name != "train" for name in config.datasets):
            self._metrics()  # one that lacks its weights is found now, not when the first validation comes

    def run(
        self, dataset: Dataset, step: int, show: Callable[[Evaluated], None], bad_files: dict[str, str] | None = None
    ) -> dict[str, float]:
        """Evaluates every sample of a data set; weights and modes are as before afterwards.

        Args:
            dataset: the data set.
            step: completed iterations, for injectors that depend on it.
            show: called with each picture's result as it is there.
            bad_files: takes the files that were left out and why.

        Returns:
            Each metric over the set, and the baseline's.
        """
        metrics = self._metrics()
        measured: set[str] = set()
        known = self._baselines.get(id(dataset))
        reference = self._metrics() if known is None else {}
        baseline_values: dict[str, dict[str, float]] = {} if known is None else known[0]
        with self._evaluation_state(), torch.no_grad():
            for item in evaluation_items(dataset, bad_files):
                with explained(self._words(item), _TOO_LARGE):
                    result = self._one(item, step)
                usable = [name for name, metric in metrics.items() if _other(metric, result) is not None]
                if usable:
                    measured.update(usable)
                    result.values = self._measure(metrics, result.output, result)
                    if result.baseline is not None:
                        if known is None:
                            values = self._measure(reference, result.baseline, result)
                            baseline_values[result.name] = {f"{self.section.baseline}_{m}": v for m, v in values.items()}
                        result.values |= baseline_values[result.name]
                show(result)
        if known is None:
            computed = {name: float(metric.compute()) for name, metric in reference.items() if name in measured}
            means = {f"{self.section.baseline}_{name}": value for name, value in computed.items()}
            known = (baseline_values, means if baseline_values else {})
            self._baselines[id(dataset)] = known
        if not measured:
            return {}
        return {**{name: float(metric.compute()) for name, metric in metrics.items() if name in measured}, **known[1]}

    @contextmanager
    def _evaluation_state(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, ema in self.emas.items():
                stack.enter_context(ema.swap_into(self.networks[name]))
            for network in self.networks.values():
                stack.enter_context(evaluation_mode(network))
            yield

    def _one(self, item: dict[str, Any], step: int) -> Evaluated:
        positions = item.pop("positions")
        state = State(to_device(item, self.device, self.layout))
        context = Context(self.networks, (), step, training=False, seed=self.config.seed, positions=positions)
        with self.precision.autocast():
            for injector in self.injectors:
                state.update(injector(state, context))
        source = state[self.section.input_state].float()
        target = state.get(self.section.target_state)
        return Evaluated(
            item["name"][0] if "name" in item else f"{positions[0]:05d}",
            quantize_8bit(state[self.section.output_state].float()),
            self._baseline(source),
            None if target is None else quantize_8bit(target.float()),
            source,
        )

    def _words(self, item: dict[str, Any]) -> str:
        name = item["name"][0] if "name" in item else f"{item['positions'][0]:05d}"
        shapes = (f"'{key}' of {' x '.join(map(str, v.shape[1:]))}" for key, v in item.items() if isinstance(v, Tensor))
        return f"evaluating picture '{name}' ({', '.join(shapes)})"

    def _baseline(self, source: Tensor) -> Tensor | None:
        if self.section.baseline == "none" or self.config.scale == 1:
            return None
        return quantize_8bit(imresize(source, self.config.scale))

    def _metrics(self) -> dict[str, Metric]:
        created = {}
        for name in self.section.metrics:
            options = {"crop_border": self.crop} if METRICS.find(name).parameter("crop_border") else {}
            options |= self.section.metric_options.get(name, {})
            created[name] = create_metric({"type": name, **options}, self.device)
        return created

    def _measure(self, metrics: dict[str, Metric], output: Tensor, result: Evaluated) -> dict[str, float]:
        values = {}
        for metric_name, metric in metrics.items():
            other = _other(metric, result)
            if other is None:
                continue
            try:
                value = metric.update(output, other)
            except ValueError as error:
                raise TrainingError(f"metric '{metric_name}' on picture '{result.name}': {error}") from error
            if value is not None:
                values[metric_name] = float(value)
        return values


def _other(metric: Metric, result: Evaluated) -> Tensor | None:
    """What a metric compares an output with; None where the data set has none."""
    against = getattr(metric, "against", "target")
    return {"target": result.target, "input": result.input}.get(against, result.output)
