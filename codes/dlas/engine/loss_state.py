"""What a step's losses remember from iteration to iteration: part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.engine.step import TrainingStep


def loss_state(step: TrainingStep) -> dict[str, Any]:
    """The losses' own buffers, not those of networks that they hold, which do not change; and the balancer's norms."""
    buffers = {each.name: dict(each.loss.named_buffers(recurse=False)) for each in step.losses}
    return {
        "buffers": {name: own for name, own in buffers.items() if own},
        "norms": dict(step.balancer.norms) if step.balancer is not None else {},
    }


def restore_loss_state(step: TrainingStep, state: Mapping[str, Any] | None) -> None:
    """Puts back what `loss_state` gave. Losses that were added since begin anew, and all do without a state."""
    if state is None:
        return
    for each in step.losses:
        saved = state["buffers"].get(each.name, {})
        for name, buffer in each.loss.named_buffers(recurse=False):
            if name in saved and saved[name].shape == buffer.shape:
                buffer.copy_(saved[name])
    if step.balancer is not None:
        step.balancer.norms = dict(state["norms"])
