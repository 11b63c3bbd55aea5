"""Running the step of a crash bundle again, from the bundle alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dlas.config import load
from dlas.context import Context
from dlas.engine import checkpoint
from dlas.engine.build import build_networks
from dlas.engine.crash import BATCH, BUNDLE, LOSSES, NETWORKS, find_fault, written_before
from dlas.engine.device import apply_numeric_settings, choose_device, memory_format
from dlas.engine.diagnosis import Diagnosis, diagnose, trace_gradient
from dlas.engine.meter import Meter
from dlas.engine.microbatch import MicroBatch, to_device
from dlas.engine.precision import Precision
from dlas.engine.step import TrainingStep
from dlas.errors import CheckpointError, ConfigurationError
from dlas.interop.state_dicts import load_into


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Args:
        diagnosis: of the step as it ran now.
        expected: what happened in the run, in words.
        trace: what autograd's anomaly mode says, if it was asked.
        notes: in what this differs from the run.
    """

    diagnosis: Diagnosis
    expected: str
    trace: str | None
    notes: list[str]

    def text(self) -> str:
        """The report."""
        verdict = "the fault shows again" if self.diagnosis.reproduced else "the fault does not show again"
        lines = [f"in the run: {self.expected}", *(f"note: {note}" for note in self.notes), self.diagnosis.text()]
        return "\n".join([*lines, *([self.trace] if self.trace else []), verdict])


def replay(bundle: Path, device: str | None = None, precision: str | None = None, anomaly: bool = False) -> Replay:
    """Builds the networks and the step of a bundle and runs it on the bundle's batch.

    Args:
        bundle: its folder.
        device: where to run; by default where the run was, or `auto` if there is no such device here.
        precision: by default that of the run.
        anomaly: also ask autograd's anomaly mode for the operation whose gradient is nan.

    Raises:
        CheckpointError: the bundle is damaged, or was written without its tensors.
        ConfigurationError: a plug-in of the run is not there.
    """
    fault = find_fault(bundle)
    if fault:
        raise CheckpointError(f"crash bundle {bundle}: {fault}")
    told = json.loads((bundle / BUNDLE).read_text(encoding="utf-8"))
    if told["without_tensors"]:
        raise CheckpointError(f"crash bundle {bundle} was written without batch and weights: {told['without_tensors']}")
    config = load(bundle / "config.resolved.yml")
    config = replace(config, path=replace(config.path, pretrain={}))
    notes = [f"'{key}' of the batch is no tensor, number or text and is not in the bundle" for key in told["left_out"]]
    chosen = _device(device, told["device"], notes)
    apply_numeric_settings(config)
    computed = Precision(precision or told["precision"], chosen)
    networks = build_networks(config, chosen, together=True)
    for name, network in networks.items():
        load_into(network, load_file(bundle / NETWORKS / f"{name}.safetensors"), source=str(bundle))
    step = TrainingStep(told["step"], config.steps[told["step"]], networks, computed, chosen, Meter())
    if step.scaler is not None and told["loss_scale"] is not None:
        step.scaler = torch.amp.GradScaler(chosen.type, init_scale=told["loss_scale"])
    if step.precision.name != told["precision"]:
        notes.append(f"{step.precision.name}; the run computed in {told['precision']}")
    _load_losses(step, told["completed"], bundle)
    parts = _parts(told, bundle, chosen, memory_format(config.memory_format))
    contexts = [Context(networks, step.trained, told["completed"], True, told["seed"], part.positions) for part in parts]
    diagnosis = diagnose(step, parts, contexts, written_before(config, step.name))
    trace = trace_gradient(step, parts, contexts) if anomaly else None
    return Replay(diagnosis, told["error"] or "a value was not finite", trace, notes)


def _device(asked: str | None, recorded: str, notes: list[str]) -> torch.device:
    if asked is not None:
        device = choose_device(asked)
    else:
        try:
            device = choose_device(recorded)
        except ConfigurationError:
            device = choose_device("auto")
    if device.type != recorded.split(":")[0]:
        notes.append(f"on {device}; the run was on {recorded}, where layers draw other random numbers and sums round otherwise")
    return device


def _load_losses(step: TrainingStep, iteration: int, bundle: Path) -> None:
    saved = load_file(bundle / LOSSES)
    for each in step.losses:
        if each.gate(iteration):
            each.loss.prepare(step.precision.device)
        own = {key.removeprefix(f"{each.name}."): value for key, value in saved.items() if key.startswith(f"{each.name}.")}
        each.loss.load_state_dict(own, strict=False)


def _parts(told: dict[str, Any], bundle: Path, device: torch.device, layout: torch.memory_format) -> list[MicroBatch]:
    tensors = load_file(bundle / BATCH)
    return [
        MicroBatch(to_device(checkpoint.unpack(part["state"], tensors), device, layout), part["share"], part["positions"])
        for part in told["parts"]
    ]
