"""What a step's injectors remember from iteration to iteration: part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dlas.engine.step import TrainingStep


def injector_state(step: TrainingStep) -> dict[str, dict[str, Tensor]]:
    """The state of each injector that has one, by name."""
    states = {each.name: each.injector.state_dict() for each in step.injectors}
    return {name: state for name, state in states.items() if state}


def restore_injector_state(step: TrainingStep, state: Mapping[str, Mapping[str, Tensor]] | None) -> None:
    """Puts back what `injector_state` gave. Injectors that were added since begin anew, and all do without a state."""
    for each in step.injectors:
        each.injector.load_state_dict((state or {}).get(each.name, {}))
