"""A rehearsal of a training run on tensors that have shapes and types but no contents.

It runs the trainer's own code for an iteration (injectors, losses, backward pass, optimiser, averages) on networks and a batch
of which nothing is allocated, and reports what would go wrong and what the run would cost.
"""

from __future__ import annotations

from dlas.engine.dryrun.devices import DEVICES, Device, measure_this_machine
from dlas.engine.dryrun.rehearsal import DryRun, Iteration, NetworkSize, StateEntry, StepCost, dry_run
from dlas.engine.dryrun.report import render

__all__ = [
    "DEVICES",
    "Device",
    "DryRun",
    "Iteration",
    "NetworkSize",
    "StateEntry",
    "StepCost",
    "dry_run",
    "measure_this_machine",
    "render",
]
