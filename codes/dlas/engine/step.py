"""One entry of `steps`: its injectors, losses, backward passes and optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config.schema import InjectorConfig, StepConfig
from dlas.context import Context
from dlas.engine.balance import Balancer, Weighted
from dlas.engine.device import seed_micro_batch
from dlas.engine.distributed import GradientExchange, NoExchange
from dlas.engine.distributed.tensors import whole
from dlas.engine.gate import Gate
from dlas.engine.gathering import Gathering
from dlas.engine.health.guard import UpdateGuard
from dlas.engine.meter import Meter
from dlas.engine.microbatch import MicroBatch
from dlas.engine.noise_scale import NoiseScale
from dlas.engine.out_of_memory import UPDATE_FIX, StepOutOfMemoryError, explained, is_out_of_memory, reason
from dlas.engine.precision import Precision
from dlas.engine.stage import STAGE
from dlas.errors import TrainingError
from dlas.injectors import create_injector
from dlas.injectors.base import Injector
from dlas.losses import create_loss
from dlas.losses.base import Loss
from dlas.optim.optimizers import build_optimizer
from dlas.optim.schedules import Schedule


class State(dict[str, Any]):
    """State of a micro-batch; a key that nothing has written gives an error that lists what is there."""

    def __missing__(self, key: str) -> Any:
        raise TrainingError(
            f"the state key '{key}' has not been written; there are: {', '.join(sorted(self))}. "
            "It must come from the data set or from an injector that runs earlier and is on at this step"
        )


@dataclass
class GatedInjector:
    """An injector with the gates of its section."""

    name: str
    injector: Injector
    gate: Gate
    train_only: bool
    eval_only: bool
    no_grad: bool

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        """The new entries; none while a gate is closed."""
        if (self.train_only and not context.training) or (self.eval_only and context.training):
            return {}
        # Evaluation produces every output once, so `every` only thins out training.
        if context.training and not self.gate(context.step):
            return {}
        if self.no_grad and torch.is_grad_enabled():
            with torch.no_grad():
                new = self.injector(state, context)
            torch.clear_autocast_cache()  # older releases of torch reuse weights cast without gradients
        else:
            new = self.injector(state, context)
        for key in new:
            if key in state:
                raise TrainingError(
                    f"injector '{self.name}' writes the state key '{key}', which is there already; rename its 'out'"
                )
        return new


def build_injectors(sections: Iterable[tuple[str, InjectorConfig]]) -> list[GatedInjector]:
    """The injectors of a step or of `eval`, in order."""
    return [
        GatedInjector(
            name,
            create_injector({"type": section.type, **section.options}),
            Gate(section.after, section.before, section.every),
            section.train,
            section.eval,
            section.no_grad,
        )
        for name, section in sections
    ]


@dataclass
class GatedLoss:
    """A loss with its weight and gates."""

    name: str
    loss: Loss
    weight: float
    gate: Gate


class TrainingStep:
    """Trains its networks on the micro-batches of one iteration.

    Args:
        name: name of the step.
        config: its section.
        networks: all networks of the run.
        precision: autocast and scaling.
        device: where losses with parameters or buffers live.
        meter: takes the values of the losses.
    """

    def __init__(
        self,
        name: str,
        config: StepConfig,
        networks: Mapping[str, nn.Module],
        precision: Precision,
        device: torch.device,
        meter: Meter,
    ) -> None:
        self.name = name
        self.trained = config.trained
        self.networks = networks
        self.precision = precision
        self.meter = meter
        self.runs = Gate(config.after, config.before)
        self.trains = Gate(every=config.every)
        self.clip_norm = config.clip_grad_eps
        self.injectors = build_injectors(config.injectors.items())
        self.losses = [
            GatedLoss(
                loss_name,
                create_loss({"type": section.type, **section.options}).to(device),
                section.weight,
                Gate(section.after, section.before, section.every),
            )
            for loss_name, section in config.losses.items()
        ]
        self.balancer = Balancer(config.balance, name, list(config.losses)) if config.balance is not None else None
        self.optimizer = build_optimizer(config.optimizer, {n: networks[n] for n in self.trained}, config.optimizer_params)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = precision.new_scaler()
        self.schedule: Schedule  # set by the trainer, which knows the length of the run
        self.lr_factor = 1.0  # on top of the schedule
        self.guard: UpdateGuard | None = None  # set by the health monitor; without one every update is made
        self.exchange: GradientExchange = NoExchange()  # of gradients with other ranks; set where there are several
        self.noise_scale: NoiseScale | None = None  # set by the trainer where it is asked for
        self.gathering: Gathering | None = None  # set by the trainer where updates come from several batches
        self.any_rank: Callable[[bool], bool] = bool  # whether a flag is set on any rank; likewise
        self.doing = ""  # for messages

    def run(self, parts: list[MicroBatch], contexts: list[Context], log_gradients: bool) -> None:
        """One optimiser update from all micro-batches; new state entries stay in them, detached.

        Raises:
            StepOutOfMemoryError: memory ran out before the update, here or on another rank. The step has left no trace then
                but in buffers that networks change in their forward pass, and can be run again, on smaller micro-batches.
        """
        self.schedule.apply(contexts[0].step)
        if self.lr_factor != 1.0:
            for group in self.optimizer.param_groups:  # the schedule sets the rate anew each time
                group["lr"] *= self.lr_factor
        mark = self.meter.mark()
        norms = dict(self.balancer.norms) if self.balancer is not None else {}
        shortage: StepOutOfMemoryError | None = None
        try:
            written, backpropagated = self._backpropagate(parts, contexts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shortage = StepOutOfMemoryError(self.name, self.doing, reason(error))
        # Only here, behind the handler, are the frames gone that hold the activations of the failed attempt.
        if self.any_rank(shortage is not None):
            self.optimizer.zero_grad(set_to_none=True)
            self.meter.rewind(mark)
            if self.balancer is not None:
                self.balancer.norms = norms
            raise shortage or StepOutOfMemoryError(self.name, "another process", "it has no memory left")
        if backpropagated:
            self.exchange.finish()
        for part, entries in zip(parts, written, strict=True):
            part.state.update(entries)
        if self._measures_noise(contexts[0].step, parts) and backpropagated:
            assert self.noise_scale is not None
            self.noise_scale.after_last(parts, self._loss_scale())
        if backpropagated and self._gather(contexts[0].step):
            with explained(f"the optimiser ({type(self.optimizer).__name__}) of step '{self.name}'", UPDATE_FIX):
                self._update(log_gradients)

    def _gather(self, iteration: int) -> bool:
        """Whether an update is due; its learning rates and gradients are ready then."""
        if self.gathering is None:
            return True
        count = self.gathering.take(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.gathering.lr_factor(max(count, 1))
        return count > 0

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What its optimiser updates, by `network.path.to.parameter`."""
        own = {id(parameter) for parameter in self.parameters}
        named = ((f"{n}.{path}", p) for n in self.trained for path, p in self.networks[n].named_parameters())
        return {name: parameter for name, parameter in named if id(parameter) in own}

    def updates(self, step: int) -> bool:
        """Whether it updates its networks in the iteration after `step` completed ones."""
        return self.runs(step) and self.trains(step) and any(each.gate(step) for each in self.losses)

    def _backpropagate(self, parts: list[MicroBatch], contexts: list[Context]) -> tuple[list[dict[str, Any]], bool]:
        """Forward and backward of all micro-batches: the new entries of each, and whether there are gradients."""
        trains = self.trains(contexts[0].step)
        measures = self._measures_noise(contexts[0].step, parts)
        written, backpropagated = [], False
        for number, (part, context) in enumerate(zip(parts, contexts, strict=True), start=1):
            context.log = self._log
            seed_micro_batch(context, self.name, self.precision.device)
            # The gradients of a single micro-batch are measured before they travel, which is later then: in `finish`.
            travels = number == len(parts) and not (measures and number == 1)
            with torch.set_grad_enabled(trains), self.exchange.micro_batch(last=travels):
                entries, has_gradients = self._forward_backward(part, context, trains)
            if measures and number == 1 and self.noise_scale is not None:
                self.noise_scale.after_first()
            written.append(entries)
            backpropagated |= has_gradients
        return written, backpropagated

    def _measures_noise(self, step: int, parts: list[MicroBatch]) -> bool:
        return self.noise_scale is not None and self.updates(step) and self.noise_scale.due(step, parts)

    def _loss_scale(self) -> Tensor | None:
        """The factor on losses, on the device; None without a scaler."""
        return None if self.scaler is None else self.scaler.scale(torch.ones((), device=self.precision.device))

    def _forward_backward(self, part: MicroBatch, context: Context, trains: bool) -> tuple[dict[str, Any], bool]:
        STAGE.enter("forward", self.name)
        state = State(part.state)
        total: Tensor | None = None
        if trains and self.updates(context.step):
            total = self.exchange.forward(lambda: self._forward(state, context, part.share))
        else:
            self._inject(state, context)
        if total is not None:
            STAGE.enter("backward", self.name)
            if not total.requires_grad:
                raise TrainingError(
                    f"step '{self.name}': no loss that is on depends on a parameter of {' or '.join(self.trained)}; "
                    "check what its losses read"
                )
            self.doing = "the backward pass"
            if part.share != 1.0:
                total = total * part.share
            if self.guard is not None:
                self.guard.watch(total.detach())
            self.exchange.backward(total if self.scaler is None else self.scaler.scale(total))
        return {key: _detached(value) for key, value in state.items() if key not in part.state}, total is not None

    def _inject(self, state: State, context: Context) -> None:
        with self.precision.autocast():
            for injector in self.injectors:
                self.doing = f"injector '{injector.name}'"
                state.update(injector(state, context))

    def _forward(self, state: State, context: Context, share: float) -> Tensor:
        with self.precision.autocast():  # around both: weights that were cast once serve the losses, too
            self._inject(state, context)
            total = self._total_loss(state, context, share)
        assert total is not None, "a loss is on"
        return total

    def _log(self, name: str, value: Tensor, weight: float | Tensor) -> None:
        self.meter.add(f"{self.name}/{name}", value, weight)

    def _total_loss(self, state: State, context: Context, share: float) -> Tensor | None:
        values: list[Weighted] = []
        for each in self.losses:
            if not each.gate(context.step):
                continue
            self.doing = f"loss '{each.name}'"
            result = each.loss(state, context)
            value, extra = result if isinstance(result, tuple) else (result, {})
            self.meter.add(f"{self.name}/{each.name}", value.detach(), share)
            for key, scalar in extra.items():
                self.meter.add(f"{self.name}/{each.name}_{key}", scalar, share)
            values.append(Weighted(each.name, each.weight, value))
        weights: list[Tensor | float] = [weighed.weight for weighed in values]
        if self.balancer is not None and values:
            weights = self.balancer.weights(values, state, share, self.meter, self._loss_scale())
        total: Tensor | None = None
        for (_, _, value), weight in zip(values, weights, strict=True):
            weighted = value if isinstance(weight, float) and weight == 1.0 else value * weight
            total = weighted if total is None else total + weighted
        if total is not None and len(self.losses) > 1:
            self.meter.add(f"{self.name}/total", total.detach(), share)
        return total

    def _update(self, log_gradients: bool) -> None:
        STAGE.enter("optimizer", self.name)
        guard = self.guard
        update = self.exchange.update()
        if update is not None:
            if self.clip_norm or log_gradients:
                self.meter.add(f"{self.name}/grad_norm", torch.tensor(update.norm))
            if guard is not None:
                guard.take(update.made)
            return
        if self.scaler is not None and (self.clip_norm or log_gradients or guard is not None):
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = None
        if self.clip_norm or log_gradients or (guard is not None and guard.wants_norm):
            norm = whole(nn.utils.get_total_norm(gradients)).to(self.precision.device)
            if self.clip_norm:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
            if self.clip_norm or log_gradients:
                self.meter.add(f"{self.name}/grad_norm", norm)
        if guard is not None:
            guard.update(gradients, norm)
        elif self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def learning_rates(self) -> dict[str, float]:
        """The current rate of each parameter group whose rate differs from the first one's."""
        groups = self.optimizer.param_groups
        rates = {f"{self.name}/lr": float(groups[0]["lr"])}
        for number, group in enumerate(groups[1:], start=1):
            if group["lr"] != groups[0]["lr"]:
                rates[f"{self.name}/lr_{group.get('name', number)}"] = float(group["lr"])
        return rates


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_detached(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
