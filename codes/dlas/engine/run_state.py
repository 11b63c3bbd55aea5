"""All of a run that a checkpoint keeps: taken from the live objects, and put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from dlas.config import Config
from dlas.engine.averages import Averages
from dlas.engine.distributed import Strategy
from dlas.engine.fitting import load_weights
from dlas.engine.health import HealthMonitor
from dlas.engine.host_copy import Snapshot
from dlas.engine.meter import Meter
from dlas.engine.progress import Progress
from dlas.engine.step import TrainingStep
from dlas.engine.step_state import restore_step, step_state
from dlas.errors import CheckpointError


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
        """The present state; whole on rank 0, which is the one that writes it."""
        ranks = self.strategy.ranks
        for bad_files in ranks.gather(progress.bad_files):
            progress.bad_files |= bad_files
        trained = {name: self.networks[name] for step in self.steps for name in step.trained}
        whole = self.strategy.gathered
        return Snapshot(
            progress.step,
            {name: whole(network.state_dict()) for name, network in trained.items()},
            whole(self.averages.state()),
            asdict(progress),
            {step.name: {**whole(step_state(step)), "health": self.health.state_dict(step.name)} for step in self.steps},
            self.meter.state_dict(),
            {name: [key for key, _ in network.named_parameters()] for name, network in trained.items()},
        )

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
