"""Losses that run the trained network once more and ask for invariance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlas.context import Context
from dlas.engine.gate import Gate
from dlas.errors import ConfigurationError
from dlas.injectors import create_injector
from dlas.losses import create_loss
from dlas.losses.invariance import CORNERS, MOTIONS


class Shift(nn.Module):
    """Treats all places alike, except for the first column."""

    def forward(self, x):
        result = 2 * x
        return result if self.training else torch.cat([result[..., :1] + 1, result[..., 1:]], dim=-1)


def state(network: nn.Module, image: torch.Tensor, size: int = 12):
    patches = create_injector({"type": "image_patch", "in": "lq", "out": "p", "patch_size": size})({"lq": image}, Context({}))
    return {"lq": image, **patches, "gen": network(patches["p"]), "full": network(image)}


LOSSES = {
    "translational": {"real": "gen", "fake": ["p"], "patch_size": 12, "overlap": 8},
    "geometric": {"real": "full", "fake": "lq"},
    "recursive": {"real": "full", "fake": "lq", "recursive_depth": 1, "downsample_factor": 1.0},
}


@pytest.mark.parametrize("kind", ["translational", "geometric"])
def test_a_network_that_is_invariant_costs_nothing(kind):
    network, image = Shift(), torch.rand(2, 3, 16, 16)
    loss = create_loss({"type": kind, "generator": "g", "criterion": "l2", **LOSSES[kind]})
    ways = CORNERS if kind == "translational" else MOTIONS
    values = state(network, image)
    for way in ways:
        assert loss.compare(values, Context({"g": network}), way) == 0
    network.eval()
    values = state(network, image)
    costs = [loss.compare(values, Context({"g": network}), way).item() for way in ways]
    assert any(cost > 0 for cost in costs)


@pytest.mark.parametrize("kind", ["translational", "geometric"])
def test_the_way_is_a_function_of_the_step_and_the_same_for_all_micro_batches(kind):
    network, image = Shift().eval(), torch.rand(2, 3, 16, 16)
    loss = create_loss({"type": kind, "generator": "g", "criterion": "l1", **LOSSES[kind]})
    seen = []
    loss.compare = lambda state, context, way: seen.append(way)
    for step in range(30):
        for positions in ([0, 1], [2, 3]):
            loss(state(network, image), Context({"g": network}, step=step, positions=positions))
    assert seen[::2] == seen[1::2]
    assert set(seen) == set(CORNERS if kind == "translational" else MOTIONS)


def test_recursion_feeds_the_output_back():
    network, image = Shift(), torch.rand(1, 3, 4, 4)
    options = {"type": "recursive", "generator": "g", "criterion": "l1", **LOSSES["recursive"], "recursive_depth": 2}
    value = create_loss(options)({"full": image}, Context({"g": network}))
    torch.testing.assert_close(value, (3 * image).mean())  # 2 * 2 * x against x


def test_detach_lets_only_the_first_output_learn():
    network = nn.Conv2d(3, 3, 1)
    for detach, expected in ((True, False), (False, True)):
        values = state(network, torch.rand(1, 3, 16, 16))
        values["gen"] = values["gen"].detach()
        loss = create_loss(
            {"type": "translational", "generator": "g", "criterion": "l1", **LOSSES["translational"], "detach_fake": detach}
        )
        assert loss(values, Context({"g": network})).requires_grad is expected


def test_sizes_that_do_not_go_together():
    options = {"type": "translational", "generator": "g", "criterion": "l1", **LOSSES["translational"]}
    with pytest.raises(ConfigurationError, match="must be below patch_size"):
        create_loss(options | {"overlap": 12})
    with pytest.raises(ConfigurationError, match="input_alteration_index 1"):
        create_loss(options | {"input_alteration_index": 1})
    network = Shift()
    with pytest.raises(ValueError, match="but patch_size is 24"):
        create_loss(options | {"patch_size": 24})(state(network, torch.rand(1, 3, 16, 16)), Context({"g": network}))


@pytest.mark.parametrize(
    ("gate", "niter", "opens"),
    [
        (Gate(), 1, True), (Gate(after=5), 5, False), (Gate(after=5), 6, True), (Gate(after=5, every=4), 8, False),
        (Gate(after=5, every=4), 9, True), (Gate(after=5, before=5), 100, False),
        (Gate(after=5, before=8, every=4), 100, False),
    ],
)  # fmt: skip
def test_whether_a_gate_opens_in_a_run(gate, niter, opens):
    assert gate.opens(niter) is opens
    assert any(gate(step) for step in range(niter)) is opens
