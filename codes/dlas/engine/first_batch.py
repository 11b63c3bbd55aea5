"""Layers whose first weights follow from the first batch: from all of it, and not remembered as they were before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dlas.context import Context
from dlas.engine.averages import Averages
from dlas.engine.device import seed_micro_batch
from dlas.engine.injector_state import injector_state, restore_injector_state
from dlas.engine.microbatch import MicroBatch, join
from dlas.engine.out_of_memory import is_out_of_memory
from dlas.engine.step import State, TrainingStep
from dlas.observe.console import LOGGER


class FirstBatch:
    """Sees to the layers that have an attribute `awaits_batch`, which is true until they have seen a batch.

    Args:
        networks: by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._layers = {
            name: [each for each in network.modules() if hasattr(each, "awaits_batch")] for name, network in networks.items()
        }
        self._in_vain: set[str] = set()  # steps whose injectors do not reach the layers

    def waiting(self, networks: Iterable[str]) -> list[nn.Module]:
        """Layers of these networks that have seen no batch yet. Nothing waits for the device."""
        return [layer for name in networks for layer in self._layers[name] if layer.awaits_batch]

    def show(self, step: TrainingStep, parts: Sequence[MicroBatch], contexts: Sequence[Context]) -> None:
        """Shows the layers of what a step trains the whole batch, where it is cut and would come to them in parts.

        The step's injectors run on it once more than they would. Nothing is recorded for a backward pass, so a batch takes less
        memory than a micro-batch usually does in training.
        """
        if len(parts) == 1 or step.name in self._in_vain:
            return
        before = len(self.waiting(step.trained))
        if before == 0:
            return
        whole, first = join(parts), contexts[0]
        context = Context(first.networks, first.trained, first.step, True, first.seed, whole.positions, first.averages)
        try:
            _run_injectors(step, whole, context)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            LOGGER.warning(
                "step '%s': the first batch does not fit into memory as a whole, so layers that are normalised by it see its "
                "first micro-batch only; a smaller datasets.train.batch_size, or a larger micro-batch, is nearer to the whole",
                step.name,
            )
        if len(self.waiting(step.trained)) == before:
            self._in_vain.add(step.name)

    @staticmethod
    def restart(averages: Averages, layers: Iterable[nn.Module]) -> None:
        """Lets the averages of those of the layers that wait no more begin with their present weights."""
        weights = [weight for layer in layers if not layer.awaits_batch for weight in layer.parameters(recurse=False)]
        if weights:
            for average in averages.all():
                average.restart(weights)


def _run_injectors(step: TrainingStep, batch: MicroBatch, context: Context) -> None:
    remembered = injector_state(step)
    seed_micro_batch(context, step.name, step.precision.device)
    state = State(batch.state)
    # Layers know training by their mode and by gradients being on; without a parameter that has one nothing is recorded.
    try:
        with _constant(step.parameters), torch.enable_grad(), step.precision.autocast():
            for injector in step.injectors:
                state.update(injector(state, context))
    finally:
        restore_injector_state(step, remembered)
        torch.clear_autocast_cache()


@contextmanager
def _constant(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    trained = [each for each in parameters if each.requires_grad]
    for each in trained:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in trained:
            each.requires_grad_(True)
