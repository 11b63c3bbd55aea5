"""All of a run that a checkpoint keeps: taken from the live objects, and put back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config import Config
from dlas.engine import checkpoint
from dlas.engine.averages import Averages
from dlas.engine.distributed import Strategy
from dlas.engine.fitting import load_weights
from dlas.engine.health import HealthMonitor
from dlas.engine.host_copy import OPTIMIZERS, Snapshot
from dlas.engine.meter import Meter
from dlas.engine.progress import Progress
from dlas.engine.step import TrainingStep
from dlas.engine.step_state import restore_step, step_state
from dlas.errors import CheckpointError

# What an optimiser keeps of a parameter, by the parameter's place in its groups.
_OF_PARAMETER = re.compile(r"(?P<step>.+)/optimizer/state/(?P<number>\d+)/[^/]+")


class RunState:
    """The parts of a run that change while it trains.

    Args:
        config: of the run.
        networks: all networks.
        steps: all steps.
        averages: of the weights.
        meter: figures of the open log row.
        health: of the steps.
        strategy: how the run is spread over processes. All of them must take and put back a state together.
        device: where everything runs.
    """

    def __init__(
        self,
        config: Config,
        networks: Mapping[str, nn.Module],
        steps: Sequence[TrainingStep],
        averages: Averages,
        meter: Meter,
        health: HealthMonitor,
        strategy: Strategy,
        device: torch.device,
    ) -> None:
        self.config = config
        self.networks = networks
        self.steps = steps
        self.averages = averages
        self.meter = meter
        self.health = health
        self.strategy = strategy
        self.device = device

    def snapshot(self, progress: Progress) -> Snapshot:
        """The present state; whole on rank 0, which is the one that writes it, or each rank's part, for sharded checkpoints."""
        ranks = self.strategy.ranks
        for bad_files in ranks.gather(progress.bad_files):
            progress.bad_files |= bad_files
        trained = self._trained()
        whole = _as_it_is if self.config.checkpoints.format == "sharded" else self.strategy.gathered
        return Snapshot(
            progress.step,
            {name: whole(network.state_dict()) for name, network in trained.items()},
            whole(self.averages.state()),
            asdict(progress),
            {step.name: {**whole(step_state(step)), "health": self.health.state_dict(step.name)} for step in self.steps},
            self.meter.state_dict(),
            {name: [key for key, _ in network.named_parameters()] for name, network in trained.items()},
        )

    def load(self, path: Path) -> Snapshot:
        """Reads a checkpoint, of a sharded one what this process holds.

        Raises:
            CheckpointError: something is missing or damaged.
        """
        if not checkpoint.is_sharded(path):
            return checkpoint.load(path)
        # One process compares the files with the manifest: they may be many times as large as what each reads.
        fault = self.strategy.ranks.from_main(checkpoint.find_fault(path) if self.strategy.ranks.main else None)
        if fault is not None:
            raise CheckpointError(f"checkpoint {path}: {fault}")
        weights = {name: network.state_dict() for name, network in self._trained().items()}

        def like(file: str, name: str) -> Tensor | None:
            if file != OPTIMIZERS:  # an average is called by the network, and maybe a width
                own = weights.get(file.removesuffix(".safetensors").removesuffix(".ema")) or weights.get(file.split(".")[0])
                return own.get(name) if own is not None else None
            found = _OF_PARAMETER.fullmatch(name)
            step = next((each for each in self.steps if found is not None and each.name == found["step"]), None)
            if found is None or step is None:
                return None
            parameters = [each for group in step.optimizer.param_groups for each in group["params"]]
            return parameters[int(found["number"])] if int(found["number"]) < len(parameters) else None

        return checkpoint.load(path, like, checked=True)

    def _trained(self) -> dict[str, nn.Module]:
        return {name: self.networks[name] for step in self.steps for name in step.trained}

    def check(self, snapshot: Snapshot, found: Path) -> None:
        """Whether a checkpoint has something for every trained network and every step.

        Raises:
            CheckpointError: it has not.
        """
        absent = [name for step in self.steps for name in step.trained if name not in snapshot.networks]
        absent += [f"steps.{step.name}" for step in self.steps if step.name not in snapshot.optimizers]
        if absent:
            raise CheckpointError(
                f"checkpoint {found} holds nothing of {', '.join(absent)} (it has: {', '.join(snapshot.networks)}; steps: "
                f"{', '.join(snapshot.optimizers)}). Networks or steps were renamed or added: give them their old names, or "
                "start a new run (--resume never), with 'path.pretrain' for the weights"
            )

    def take_over(self, snapshot: Snapshot, found: Path) -> Progress:
        """Networks, averages, steps and figures as they were; returns how far the run had come."""
        for name, tensors in snapshot.networks.items():
            if name in self.networks:
                load_weights(self.config, name, self.networks[name], tensors, source=str(found / f"{name}.safetensors"))
        self.averages.load(snapshot.emas)
        for step in self.steps:
            restore_step(step, snapshot.optimizers[step.name])
            self.health.load_state_dict(step.name, snapshot.optimizers[step.name].get("health") or {})
        self.meter.load_state_dict(snapshot.meter, self.device)
        return Progress(**{"validated": snapshot.step, **snapshot.progress})  # older versions saved after validating


def _as_it_is(state: Any) -> Any:
    return state
