"""Which iterations of a run differ in what is switched on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.config import Config
from dlas.engine.gate import Gate


@dataclass(frozen=True)
class Switch:
    """Something that is on in some iterations only.

    Args:
        path: YAML path of what is switched.
        gate: its own gate.
        step: when the step that it is in runs.
    """

    path: str
    gate: Gate
    step: Gate

    def __call__(self, number: int) -> bool:
        return self.gate(number) and self.step(number)


def switches(config: Config) -> Iterator[Switch]:
    """Everything in the steps that has a gate. A step that runs without training is not off: its injectors run."""
    for step in config.steps.values():
        runs = Gate(step.after, step.before)
        yield Switch(step.yaml_path, runs, runs)
        yield Switch(step.yaml_path, Gate(step.after, step.before, step.every), runs)
        for injector in step.injectors.values():
            yield Switch(injector.yaml_path, Gate(injector.after, injector.before, injector.every), runs)
        for loss in step.losses.values():
            yield Switch(loss.yaml_path, Gate(loss.after, loss.before, loss.every), runs)


def switched_on(config: Config, number: int) -> list[str]:
    """YAML paths of what is on in an iteration and not in all."""
    return list(dict.fromkeys(each.path for each in switches(config) if each.gate != Gate() and each(number)))


def iteration_kinds(config: Config) -> list[int]:
    """The first iteration of each kind, in order: two are of one kind if the same things are on.

    Between two edges (an `after` or a `before`) only the divisors (`every`) distinguish iterations: looked at are those that
    all of them divide, those that a single one divides, and one that none needs to.
    """
    every_switch = list(switches(config))
    every_gate = [each.gate for each in every_switch]
    edges = sorted({0} | {g.after for g in every_gate} | {g.before for g in every_gate if g.before is not None})
    divisors = {1, math.lcm(*(g.every for g in every_gate))} | {g.every for g in every_gate}
    found: dict[tuple[bool, ...], int] = {}
    for edge, end in zip(edges, [*edges[1:], None], strict=True):
        multiples = {-(-edge // divisor) * divisor for divisor in divisors}
        for number in sorted(multiples | {edge + 1}):
            if end is None or number < end:
                found.setdefault(tuple(each(number) for each in every_switch), number)
    return sorted(found.values())
