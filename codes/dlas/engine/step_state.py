"""What a restart needs of a training step, beside its networks."""

from __future__ import annotations

from typing import Any

from dlas.engine import checkpoint
from dlas.engine.injector_state import injector_state, restore_injector_state
from dlas.engine.loss_state import loss_state, restore_loss_state
from dlas.engine.step import TrainingStep
from dlas.errors import CheckpointError


def step_state(step: TrainingStep) -> dict[str, Any]:
    """Nested state of its optimiser, scaler, schedule, losses and injectors: tensors and JSON values."""
    return {
        "class": type(step.optimizer).__name__,
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict() if step.scaler is not None else None,
        "schedule": step.schedule.state_dict(),
        "losses": loss_state(step),
        "injectors": injector_state(step),
        "gathering": step.gathering.state_dict() if step.gathering is not None else None,
        "noise_scale": step.noise_scale.state_dict() if step.noise_scale is not None else None,
    }


def restore_step(step: TrainingStep, state: dict[str, Any]) -> None:
    """Puts back what `step_state` gave.

    Raises:
        CheckpointError: it belongs to another optimiser, or to other parameters.
    """
    saved, present = state.get("class"), type(step.optimizer).__name__
    if saved not in (None, present):
        raise CheckpointError(
            f"step '{step.name}': the checkpoint holds the state of {saved}, and the optimiser is now {present}; go back to "
            "it, or start a new run (--resume never), with 'path.pretrain' for the weights"
        )
    checkpoint.restore_optimizer(step.optimizer, state["optimizer"])
    step.schedule.load_state_dict(state["schedule"])
    restore_loss_state(step, state.get("losses"))
    restore_injector_state(step, state.get("injectors"))
    if step.gathering is not None and state.get("gathering") is not None:
        step.gathering.load_state_dict(state["gathering"])
    if step.noise_scale is not None and state.get("noise_scale") is not None:
        step.noise_scale.load_state_dict(state["noise_scale"])
    if step.scaler is not None and state["scaler"] is not None:
        step.scaler.load_state_dict(state["scaler"])
