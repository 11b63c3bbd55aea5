"""Updates from the gradients of several batches: how many is a matter of a table, of the noise scale, or of directions."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config.schema import BatchSizeOptimizerConfig
from dlas.context import mix_seed
from dlas.engine.waiting import waiting_meant
from dlas.errors import ConfigurationError

_HISTORY = 128  # updates whose mean number of batches is reported
_POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


class Gathering:
    """Sums up the gradients of a step over whole batches, and gives their mean when an update is due.

    The sums take as much memory as one gradient, and are part of checkpoints. Between updates the weights stay as they are.

    Args:
        config: the section `train.batch_size_optimizer`.
        step: name of the step.
        named: its parameters by `network.path.to.parameter`.
        seed: of the run.
        batch_size: of one batch, over all processes.

    Raises:
        ConfigurationError: the table is none.
    """

    def __init__(
        self, config: BatchSizeOptimizerConfig, step: str, named: Mapping[str, nn.Parameter], seed: int, batch_size: int
    ) -> None:
        self.config = config
        self.step = step
        self.parameters = list(named.values())
        self.seed = seed
        self.batch_size = batch_size
        self.table = _table(config)
        self.by_noise = 1  # batches an update, by the noise scale
        self.direction = Direction([i for i, name in enumerate(named) if ".weight" in name] or list(range(len(named))), config)
        self.count = 0  # batches gathered
        self.history: deque[int] = deque(maxlen=_HISTORY)
        self._sums: dict[int, Tensor] = {}  # by place among the parameters

    @torch.no_grad()
    def take(self, iteration: int) -> int:
        """Takes the gradients of a batch away from the parameters; puts the mean of all there if an update is due.

        Args:
            iteration: number of completed iterations.

        Returns:
            The number of batches in that mean; 0 if no update is due.
        """
        by_direction = self.config.type == "gradient_direction"
        if by_direction and self.count == 0:
            self.direction.begin(mix_seed(self.seed, "batch_size_optimizer", self.step, iteration))
        before = {place: self._sums[place].clone() for place in self.direction.polled if place in self._sums}
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            known = self._sums.get(place)
            self._sums[place] = parameter.grad.clone() if known is None else known.add_(parameter.grad)
            parameter.grad = None
        self.count += 1
        stops = self.direction.stops(before, self._sums, self.count) if by_direction else self.count >= self.wanted(iteration)
        if not stops:
            return 0
        count, self.count = self.count, 0
        for place, total in self._sums.items():
            self.parameters[place].grad = total.div_(count)
        self._sums = {}
        self.history.append(count)
        return count

    def wanted(self, iteration: int) -> int:
        """Batches an update, by the table or the noise scale."""
        if self.config.type == "noise_scale":
            return self.by_noise
        return next((count for start, count in reversed(self.table) if iteration >= start), 1)

    def lr_factor(self, count: int) -> float:
        """What the learning rate of an update from so many batches is multiplied with."""
        return float(count ** _POWERS[self.config.lr_rule])

    def grow(self, noise_scales: Mapping[str, float]) -> None:
        """Takes a measurement; batches only grow, up to the smallest noise scale among the step's networks."""
        if self.config.type == "noise_scale" and noise_scales:
            target = round(min(noise_scales.values()) / self.batch_size)
            self.by_noise = min(max(self.by_noise, target), self.config.max_full_batches)

    def figures(self) -> dict[str, float]:
        """For a log line: the mean number of batches of the latest updates."""
        return {f"{self.step}/batches_per_update": sum(self.history) / len(self.history)} if self.history else {}

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {
            "sums": {str(place): total for place, total in self._sums.items()},
            "count": self.count,
            "by_noise": self.by_noise,
            "history": list(self.history),
            "direction": self.direction.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self._sums = {int(place): total.to(self.parameters[int(place)]) for place, total in state["sums"].items()}
        self.count, self.by_noise = state["count"], state["by_noise"]
        self.history = deque(state["history"], maxlen=_HISTORY)
        self.direction.load_state_dict(state["direction"])


class Direction:
    """Stops to gather when the direction of the summed gradient no longer settles.

    With g_n the sum over n batches, theta_n is the angle between g_(n-1) and g_n. Some weights are drawn for each update; one
    is done when theta_n > theta_(n-1), n >= 3: the angle has grown. When all are done, or n is `max_full_batches`, or a
    gradient is not finite, the update is due. Reading the angles waits for the device once a batch.

    DL-Art-School's comment says this, and its code the reverse (`literal_sign`): theta_n < theta_(n-1), with theta_1 = 0.

    Args:
        candidates: places of the parameters to draw from.
        config: the section `train.batch_size_optimizer`.

    Source: Xu et al., "Dynamically Adjusting Transformer Batch Size by Monitoring Gradient Direction Change", ACL 2020.
    """

    def __init__(self, candidates: Sequence[int], config: BatchSizeOptimizerConfig) -> None:
        self.candidates = list(candidates)
        self.config = config
        self.polled: list[int] = []
        self._done: list[bool] = []
        self._angles: list[float] = []

    def begin(self, seed: int) -> None:
        """Draws the weights that are looked at until the next update."""
        count = min(self.config.poll_parameters, len(self.candidates))
        self.polled = random.Random(seed).sample(self.candidates, count)
        self._done = [False] * count
        self._angles = [0.0] * count

    def stops(self, before: Mapping[int, Tensor], now: Mapping[int, Tensor], count: int) -> bool:
        """Whether the update is due, by the sums before and with the newest of `count` batches."""
        angles = self._read(before, now)
        if not all(map(math.isfinite, angles)):
            return True
        for place, (old, new) in enumerate(zip(self._angles, angles, strict=True)):
            if self.config.literal_sign:
                self._done[place] |= new < old
            else:
                self._done[place] |= count >= 3 and new > old
        self._angles = angles
        return all(self._done) or count >= self.config.max_full_batches

    def _read(self, before: Mapping[int, Tensor], now: Mapping[int, Tensor]) -> list[float]:
        """The angles; 0 where there is no gradient; not finite where a gradient is not."""
        found = []
        for place in self.polled:
            if place not in now:
                continue
            new = now[place].flatten().double() if now[place].device.type != "mps" else now[place].flatten()
            old = before[place].flatten().to(new) if place in before else torch.zeros_like(new)
            size = old.norm() * new.norm()
            cosine = torch.where(size > 0, (old @ new) / size, torch.ones_like(size)).clamp(-1, 1)
            # A gradient that is not finite has a sum that is not.
            found.append(torch.arccos(cosine) + 0 * new.sum())
        with waiting_meant():  # how many batches an update takes is decided here
            angles = iter(torch.stack(found).tolist() if found else [])
        return [next(angles) if place in now else 0.0 for place in self.polled]

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {"polled": self.polled, "done": self._done, "angles": self._angles}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.polled, self._done, self._angles = list(state["polled"]), list(state["done"]), list(state["angles"])


def _table(config: BatchSizeOptimizerConfig) -> list[tuple[int, int]]:
    pairs = [tuple(each) for each in config.table]
    if config.type == "table" and not pairs:
        raise ConfigurationError("train.batch_size_optimizer: 'type: table' needs 'table', for instance [[0, 1], [1000, 2]]")
    if any(len(pair) != 2 or pair[0] < 0 or pair[1] < 1 for pair in pairs) or sorted({p[0] for p in pairs}) != [
        p[0] for p in pairs
    ]:
        raise ConfigurationError(
            "train.batch_size_optimizer.table: expected pairs [from iteration, batches an update], the iterations ascending, "
            f"found {config.table}"
        )
    return [(pair[0], pair[1]) for pair in pairs]
