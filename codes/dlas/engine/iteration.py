"""One iteration: every step of the file on one batch, then the averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dlas.context import Context, mix_seed
from dlas.engine.device import seed_everything
from dlas.engine.ema import ModelEma
from dlas.engine.microbatch import MicroBatch, split_batch, to_device
from dlas.engine.step import TrainingStep


class IterationRunner:
    """Runs iterations; knows nothing of data sets, logs or files.

    Args:
        steps: in the order of the file.
        networks: all networks of the run.
        emas: averages to update.
        seed: of the run.
        parts: micro-batches per batch.
        device: where everything runs.
        layout: memory format of images.
    """

    def __init__(
        self,
        steps: Sequence[TrainingStep],
        networks: Mapping[str, nn.Module],
        emas: Mapping[str, ModelEma],
        *,
        seed: int,
        parts: int,
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.steps = steps
        self.networks = networks
        self.emas = emas
        self.seed = seed
        self.parts = parts
        self.device = device
        self.layout = layout
        self._focus: frozenset[str] | None = None

    def run(self, batch: dict[str, Any], completed: int, log_gradients: bool = False) -> list[MicroBatch]:
        """One iteration.

        Args:
            batch: from the loader: tensors by key, and `positions`, which is taken out.
            completed: number of completed iterations.
            log_gradients: also measure gradient norms (costs a pass over the gradients; nothing waits for the device).

        Returns:
            The micro-batches with everything that the steps wrote.
        """
        positions = batch.pop("positions")
        parts = split_batch(to_device(batch, self.device, self.layout), positions, self.parts)
        seed_everything(mix_seed(self.seed, completed), self.device)
        for step in self.steps:
            if not step.runs(completed):
                continue
            self._focus_on(step)
            contexts = [
                Context(self.networks, step.trained, completed, True, self.seed, part.positions, self.emas) for part in parts
            ]
            step.run(parts, contexts, log_gradients)
        for ema in self.emas.values():
            ema.update(completed + 1)
        return parts

    def _focus_on(self, step: TrainingStep) -> None:
        """Gradients are recorded only for the networks that the step trains; others are passed through."""
        focus = frozenset(step.trained)
        if focus == self._focus:
            return
        for each in self.steps:
            trains = each is step
            for parameter in each.parameters:
                parameter.requires_grad_(trains)
        self._focus = focus
