"""Running part of a training step a second time without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from dlas.engine.meter import Meter
from dlas.engine.step import TrainingStep


@contextmanager
def untouched(step: TrainingStep, modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While it lasts, gradients begin empty and flow to what `step` trains; afterwards everything is as it was before.

    Parameters, buffers, gradients, which of them are trained, the step's meter and balancer, the state of random generators.

    Args:
        step: the step that will run.
        modules: all networks and losses that it may run.
        device: where it runs.
    """
    modules = list(modules)
    with ExitStack() as stack:
        stack.enter_context(_buffers(modules))
        stack.enter_context(_parameters(step, modules))
        stack.enter_context(_generators(device))
        meter, step.meter = step.meter, Meter()
        stack.callback(setattr, step, "meter", meter)
        guard, step.guard = step.guard, None
        stack.callback(setattr, step, "guard", guard)
        if step.balancer is not None:
            stack.callback(setattr, step.balancer, "norms", dict(step.balancer.norms))
        stack.callback(torch.clear_autocast_cache)
        yield


@contextmanager
def _buffers(modules: list[nn.Module]) -> Iterator[None]:
    slots = [
        (each._buffers, name, buffer, buffer.clone())
        for module in modules
        for each in module.modules()
        for name, buffer in each._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for holder, name, buffer, copy in slots:
                buffer.copy_(copy)
                holder[name] = buffer  # a forward pass may have put another tensor there


@contextmanager
def _parameters(step: TrainingStep, modules: list[nn.Module]) -> Iterator[None]:
    trained = {id(parameter) for parameter in step.parameters}
    parameters = list({id(p): p for module in modules for p in module.parameters()}.values())
    # A forward pass seldom changes a parameter; the copies wait in the host's memory, since the device's may be short.
    saved = [(p, p._version, p.detach().to("cpu", copy=True), p.grad, p.requires_grad) for p in parameters]
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(id(parameter) in trained)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, version, copy, gradient, requires in saved:
                parameter.requires_grad_(requires)
                parameter.grad = gradient
                if parameter._version != version:
                    parameter.copy_(copy)


@contextmanager
def _generators(device: torch.device) -> Iterator[None]:
    devices = {"cuda": [device.index or 0]}.get(device.type, [])
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002  # what foreign code may draw from
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002
