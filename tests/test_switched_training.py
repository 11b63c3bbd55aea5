"""Training networks with switched convolutions: temperature, balance, figures and pictures of which kernel acts where."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlas.archs import create_network
from dlas.config import load
from dlas.context import Context
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors import create_injector
from dlas.layers.switched import Routed, route_top1, set_temperature, switched_layers, watched
from dlas.losses import create_loss

SWITCHED = {"layers": ["body.*.rdb1.conv*"], "breadth": 4, "norm": None, "dropout": 0.0}
RRDB = {"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 1}
LAYERS = [f"body.0.rdb1.conv{number}" for number in range(1, 6)]
RUN = {"type": "switched_generator", "generator": "net", "in": "x", "out": "y", "switches": "switches"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(network, **options):
    """What the injector writes, and the figures that it logs."""
    figures = {}
    context = Context({"net": network}, log=lambda name, value, weight: figures.update({name: value.item()}), positions=[0, 1])
    return create_injector({**RUN, **options})({"x": torch.rand(2, 3, 8, 12), "tau": 5.0}, context), figures


def test_the_injector_runs_the_network_and_tells_what_its_gates_do():
    network = create_network({**RRDB, "switched": SWITCHED})
    written, figures = run(network)
    assert list(written) == ["y", "switches"]
    assert list(written["switches"]) == LAYERS
    for layer in written["switches"].values():
        assert layer["chosen"].shape == (2, 4, 2, 3)  # it folds pictures by 4 at scale 1
        assert torch.equal(layer["chosen"], route_top1(layer["shares"]))
        assert layer["load"] is None
    assert 1 <= figures["switches_in_use_least"] <= figures["switches_in_use"] <= 4
    assert 0.25 < figures["switches_certainty"] < 1
    assert all(layer.gate.watcher is None for _, layer in switched_layers(network))
    with torch.no_grad():
        for _, layer in switched_layers(network):
            layer.coupler.bias.copy_(torch.tensor([0.0, 50.0, 0.0, 0.0]))
    _, figures = run(network)
    assert figures == pytest.approx({"switches_in_use": 1, "switches_in_use_least": 1, "switches_certainty": 1})


def test_the_temperature_is_that_of_the_state():
    network = create_network({**RRDB, "switched": SWITCHED})
    _, sure = run(network)
    _, unsure = run(network, temperature="tau")
    assert {layer.gate.temperature for _, layer in switched_layers(network)} == {5.0}
    assert unsure["switches_certainty"] < sure["switches_certainty"]
    with pytest.raises(ValueError, match="must be above 0, got 0"):
        set_temperature(network, 0.0)


def test_a_network_without_switches_is_refused():
    with pytest.raises(TrainingError, match="'net' has no switched convolutions"):
        run(create_network(RRDB))


def test_pictures_show_the_layers_side_by_side_and_each_kernel_in_a_colour():
    chosen = torch.zeros(1, 2, 2, 4)
    chosen[:, 0, :, :1] = 1
    chosen[:, 1, :, 1:] = 1
    layers = {"a": {"chosen": chosen}, "b": {"chosen": torch.full((1, 2, 4, 4), 0.5)}}
    maps = create_injector({"type": "switch_maps", "in": "s", "out": "maps", "height": 8})({"s": layers}, Context({}))["maps"]
    assert maps.shape == (1, 3, 8, 16 + 8)
    first, second, mixed = maps[0, :, 0, 0], maps[0, :, 0, 4], maps[0, :, 0, 16]
    assert (first - second).abs().max() > 0.5
    torch.testing.assert_close(mixed, (first + second) / 2)
    torch.testing.assert_close(maps[0, :, :, 4:16], second[:, None, None].expand(3, 8, 12))
    assert 0 <= maps.min() <= maps.max() <= 1


def even_and_uneven(breadth=4):
    """Shares of two layers: each switch at as many places, and one switch at all."""
    even = torch.eye(breadth).repeat(1, 2)[None, :, None] * 8
    uneven = torch.zeros_like(even)
    uneven[:, 0] = 8
    return [torch.softmax(each, dim=1).requires_grad_() for each in (even, uneven)]


def test_balance_is_1_where_kernels_are_used_alike_and_their_number_where_one_takes_all():
    even, uneven = even_and_uneven()
    loss = create_loss({"type": "switch_balance", "switches": "s"})

    def value(*layers):
        return loss({"s": {str(n): Routed(route_top1(x), x)._asdict() for n, x in enumerate(layers)}}, Context({}))

    assert value(even).item() == pytest.approx(1)
    assert value(uneven).item() == pytest.approx(4, rel=1e-2)
    assert value(even, uneven).item() == pytest.approx((1 + value(uneven).item()) / 2)
    (gradient,) = torch.autograd.grad(value(uneven), uneven)
    assert gradient[0, 0, 0, 0] > gradient[0, 1, 0, 0]


def test_load_needs_a_noisy_router_and_pulls_at_what_it_learns():
    loss = create_loss({"type": "switch_load", "switches": "switches"})
    largest, _ = run(create_network({**RRDB, "switched": SWITCHED}))
    with pytest.raises(TrainingError, match="write 'router: noisy'"):
        loss(largest, Context({}))
    network = create_network({**RRDB, "switched": {**SWITCHED, "router": "noisy"}})
    written, _ = run(network)
    value = loss(written, Context({}))
    assert value > 0
    value.backward()
    assert all(layer.gate.router.wg.grad.abs().sum() > 0 for _, layer in switched_layers(network))
    network.eval()
    assert torch.equal(network(x := torch.rand(1, 3, 8, 8)), network(x))


@pytest.mark.parametrize("options", [{"norm": "sum_to_one"}, {"hard": False}, {"dropout": 0.1, "dropout_form": "exclude"}])
def test_what_a_noisy_router_goes_without(options):
    with pytest.raises(ConfigurationError, match="a noisy router is hard"):
        create_network({**RRDB, "switched": {**SWITCHED, "router": "noisy", **options}})


@pytest.mark.parametrize("breadth", [3, 4])
@pytest.mark.parametrize("selector", ["coupler", "lambda", "lambda2", "mapping"])
def test_selectors_learn_and_see_what_they_should(selector, breadth):
    network = create_network(
        {**RRDB, "switched": {**SWITCHED, "layers": ["conv_body"], "breadth": breadth, "selector": selector}}
    )
    layer = network.conv_body
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    network(x).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in layer.coupler.parameters())
    features = torch.randn(1, 8, 40, 40, requires_grad=True)
    logits = layer.eval().coupler(features)
    assert logits.shape == (1, breadth, 40, 40)
    (gradient,) = torch.autograd.grad(logits[0, 0, 20, 20], features)
    seen = int((gradient.abs().sum(dim=(0, 1)) > 0).sum())
    assert seen == {"coupler": 1, "mapping": 81}.get(selector, 1600)  # of 1600 pixels


def test_activations_computed_again_leave_the_memory_of_the_norm_alone():
    network = create_network({**RRDB, "switched": {**SWITCHED, "norm": "sum_to_one", "norm_window": 8}})
    network.checkpointing = True
    network(torch.rand(1, 3, 8, 8)).mean().backward()
    assert {int(layer.gate.norm.accumulator_index) for _, layer in switched_layers(network)} == {1}


def test_watching_ends_with_its_block_even_by_an_error():
    network = create_network({**RRDB, "switched": SWITCHED})
    with pytest.raises(RuntimeError), watched(network) as routed:
        network(torch.rand(1, 2, 8, 8))
    assert not routed
    assert all(layer.gate.watcher is None for _, layer in switched_layers(network))


PAGE = Path(__file__).resolve().parents[1] / "docs/switched_convolutions.md"
REST = """
name: run
scale: 1
datasets:
  train: {mode: builtin_photos, batch_size: 4, target_size: 16}
train: {niter: 4, mega_batch_factor: 2}
"""
SMALL = [
    *("networks.generator.nf=8", "networks.generator.nb=1", "networks.generator.gc=4"),
    *("logger.print_freq=1", "logger.visual_debug_rate=2"),
    "steps.generator.injectors.tau.scheduler.steps=4",
]


def test_the_example_of_the_guide_has_all_of_it(tmp_path: Path) -> None:
    example = re.search(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert example is not None
    (tmp_path / "file.yml").write_text(REST + example[1], encoding="utf-8")
    trainer = Trainer(load(tmp_path / "file.yml", [*SMALL, f"path.experiments={tmp_path}"]))
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert 1 <= row["generator/balance"] <= 8
        assert 1 <= row["generator/switches_in_use"] <= 8
    certainty = [row["generator/switches_certainty"] for row in rows]
    assert certainty == sorted(certainty)  # the temperature falls
    assert trainer.networks["generator"].body[0].rdb1.conv1.gate.temperature == pytest.approx(10 - 9 * 3 / 4)
    events = EventAccumulator(str(next((tmp_path / "run/tb").rglob("events.*")).parent))
    events.Reload()
    assert [event.step for event in events.Images("visuals/maps")] == [2, 4]
    assert (tmp_path / "run/visuals/maps/4.png").is_file()
    assert math.isfinite(rows[-1]["generator/grad_norm"])
