"""Which iterations of a run differ in what is switched on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dlas.config import Config
from dlas.engine.gate import Gate


def gates(config: Config) -> Iterator[tuple[str, Gate]]:
    """Every gate of a file with the YAML path of what it switches."""
    for step in config.steps.values():
        yield step.yaml_path, Gate(step.after, step.before, step.every)
        for injector in step.injectors.values():
            yield injector.yaml_path, Gate(injector.after, injector.before, injector.every)
        for loss in step.losses.values():
            yield loss.yaml_path, Gate(loss.after, loss.before, loss.every)


def iteration_kinds(config: Config) -> list[int]:
    """The first iteration of each kind, in order: two are of one kind if the same gates are open.

    Between two edges (an `after` or a `before`) only the divisors (`every`) distinguish iterations: looked at are those that
    all of them divide, those that a single one divides, and one that none needs to.
    """
    every_gate = [gate for _, gate in gates(config)]
    edges = sorted({0} | {g.after for g in every_gate} | {g.before for g in every_gate if g.before is not None})
    divisors = {1, math.lcm(*(g.every for g in every_gate))} | {g.every for g in every_gate}
    found: dict[tuple[bool, ...], int] = {}
    for edge, end in zip(edges, [*edges[1:], None], strict=True):
        multiples = {-(-edge // divisor) * divisor for divisor in divisors}
        for number in sorted(multiples | {edge + 1}):
            if end is None or number < end:
                found.setdefault(tuple(gate(number) for gate in every_gate), number)
    return sorted(found.values())
