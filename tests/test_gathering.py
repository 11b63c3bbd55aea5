"""Updates from several batches: by direction, by table, by the noise scale."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from torch import nn

import test_noise_scale
import toys
from dlas.config import check
from dlas.config.schema import BatchSizeOptimizerConfig
from dlas.engine.gathering import Direction, Gathering
from dlas.errors import ConfigurationError
from runs import assert_same_tensors, batches, rows, trainer

QUADRATIC = test_noise_scale.QUADRATIC.replace("lr: 1e-12", "lr: 1e-2").replace("clip_grad_eps: 1e-3", "clip_grad_eps: 0")


def gathering(dim: int, count: int = 8, **options: Any) -> Gathering:
    named = {f"net.{i}.weight": nn.Parameter(torch.zeros(dim)) for i in range(count)}
    return Gathering(BatchSizeOptimizerConfig(**{"type": "gradient_direction", **options}), "s", named, 0, 4)


def mean_batches(dim: int, noise: float, updates: int = 60, **options: Any) -> float:
    """Batches an update takes where gradients are a constant and independent noise of a given strength."""
    one = gathering(dim, **options)
    generator = torch.Generator().manual_seed(0)
    signal = [torch.randn(dim, generator=generator) for _ in one.parameters]
    found: list[int] = []
    while len(found) < updates:
        for parameter, direction in zip(one.parameters, signal, strict=True):
            parameter.grad = direction + noise * torch.randn(dim, generator=generator)
        found += [count] if (count := one.take(len(found))) else []
    return statistics.mean(found)


def test_it_responds_to_the_size_of_tensors_and_hardly_to_noise():
    small = [mean_batches(2, noise) for noise in (0.1, 4.0)]
    assert all(4.5 < count < 7 for count in small)
    assert abs(small[0] - small[1]) < 1  # 1600 times the noise scale
    assert mean_batches(512, 0.1) == mean_batches(512, 4.0) == 10
    assert mean_batches(512, 1.0, updates=5, max_full_batches=40) > 20
    # As it was published, it stops almost at once instead.
    assert mean_batches(512, 0.1, literal_sign=True) == mean_batches(512, 4.0, literal_sign=True) == 3
    assert mean_batches(2, 1.0, literal_sign=True) < 5


def stopped_at(angles: list[float], **options: Any) -> int:
    """After how many batches one weight stops whose sums turn by these angles."""
    direction = Direction([0], BatchSizeOptimizerConfig(type="gradient_direction", **options))
    direction.begin(0)
    place, before = 0.0, {}
    for count in range(1, 100):
        place += angles[count - 2] if 2 <= count < len(angles) + 2 else 0.0
        now = {0: count * torch.tensor([math.cos(place), math.sin(place)])}
        if direction.stops(before, now, count):
            return count
        before = now
    raise AssertionError("it never stops")


def test_the_sign_its_least_and_its_most():
    assert stopped_at([0.5, 0.4, 0.3, 0.35, 0.1]) == 5  # grows for the first time with the fifth batch
    assert stopped_at([0.5, 0.4, 0.3, 0.35, 0.1], literal_sign=True) == 3  # shrinks with the third
    assert stopped_at([0.1, 0.2, 0.3]) == 3
    assert stopped_at([0.1, 0.2, 0.3, 0.2], literal_sign=True) == 5
    assert stopped_at([0.5 / k for k in range(1, 40)]) == 10
    assert stopped_at([0.5 / k for k in range(1, 40)], max_full_batches=4) == 4


def test_the_mean_is_taken_zero_gradients_never_stop_and_what_is_not_finite_does_at_once():
    one = gathering(3, count=2)
    for number in range(1, 11):
        one.parameters[0].grad = torch.full((3,), float(number))
        one.parameters[1].grad = torch.zeros(3)
        assert one.take(number) == (10 if number == 10 else 0)
        assert number == 10 or one.parameters[0].grad is None
    assert one.parameters[0].grad.tolist() == [5.5] * 3
    assert one.figures() == {"s/batches_per_update": 10}
    one.parameters[0].grad = torch.tensor([1.0, float("nan"), 1.0])
    one.parameters[1].grad = None
    assert one.take(11) == 1


def test_gathered_batches_are_one_large_batch(tmp_path):
    small = trainer(tmp_path, QUADRATIC, "datasets.train.batch_size=8", "train.mega_batch_factor=1", "train.noise_scale=~",
                    "train.batch_size_optimizer={type: table, table: [[0, 2]]}", "train.niter=8")  # fmt: skip
    large = trainer(tmp_path, QUADRATIC, "name=large", "train.noise_scale=~", "train.mega_batch_factor=1", "train.niter=4")
    small.run()
    large.run()
    one, two = small.networks["point"].place.detach(), large.networks["point"].place.detach()
    assert not one.equal(torch.full_like(one, test_noise_scale.START))
    assert torch.allclose(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["none", "sqrt", "linear"])
def test_the_learning_rate_follows_its_rule(tmp_path, rule):
    run = trainer(tmp_path, QUADRATIC, "train.noise_scale=~",
                  f"train.batch_size_optimizer={{type: table, table: [[0, 1], [2, 4]], lr_rule: {rule}}}")  # fmt: skip
    found = []
    for batch in batches(run, 6):
        run.iterate(batch)
        found.append(run.steps[0].optimizer.param_groups[0]["lr"])
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[rule]
    assert found == pytest.approx([1e-2] * 5 + [1e-2 * 4**power])
    assert run.steps[0].gathering.figures() == {"point/batches_per_update": 2}  # of 1, 1 and 4


@pytest.mark.parametrize("text", [toys.PSNR, toys.GAN], ids=["psnr", "gan"])
def test_a_run_that_stops_amid_an_update_goes_on_exactly(tmp_path, text):
    given = ("train.batch_size_optimizer={type: gradient_direction, max_full_batches: 5}", "train.niter=14")
    schedule = "train.lr_scheme={type: one_cycle, total_steps: 14}"
    trainer(tmp_path, text, "name=a", schedule, *given).run()
    cut = trainer(tmp_path, text, "name=b", schedule, given[0], "train.niter=7")
    cut.run()
    assert cut.steps[0].gathering.count > 0
    trainer(tmp_path, text, "name=b", schedule, *given).run()
    assert_same_tensors(tmp_path / "a/checkpoints/14", tmp_path / "b/checkpoints/14")
    last = rows(tmp_path / "a", "train")[-1]
    assert 3 <= last["generator/batches_per_update"] <= 5


def test_batches_grow_with_the_noise_scale(tmp_path):
    run = trainer(tmp_path, QUADRATIC, "train.niter=60", "logger.print_freq=10", "datasets.train.batch_size=4",
                  "train.mega_batch_factor=2", "train.noise_scale.decay=0.9", "steps.point.optimizer_params.lr=0.1",
                  "train.batch_size_optimizer={type: noise_scale, max_full_batches: 6}")  # fmt: skip
    run.run()
    found = [row.get("point/batches_per_update") for row in rows(tmp_path / "noise", "train")]
    assert found[0] == 1
    assert found[-1] > 1
    one = gathering(2, type="noise_scale", max_full_batches=6)
    for scales, expected in (({}, 1), ({"a": 9.0, "b": 80.0}, 2), ({"a": 5.0}, 2), ({"a": 1e9}, 6)):
        one.grow(scales)  # of batches of 4
        assert one.wanted(0) == expected


def test_upstreams_keys_are_read(tmp_path):
    keys = "type: gradient_direction, max_full_batches: 4, poll_parameters: 3, recalculate_directions_steps: 1"
    file = tmp_path / "options.yml"
    file.write_text(toys.PSNR.replace("  niter: 8\n", f"  niter: 8\n  batch_size_optimizer: {{{keys}}}\n"))
    problems = check(file)
    assert [problem.severity for problem in problems] == ["notice"]
    assert "recalculate_directions_steps" in str(problems[0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{type: table}", "needs 'table'"),
        ("{type: table, table: [[5, 1], [2, 2]]}", "ascending"),
        ("{type: table, table: [[0, 0]]}", "expected pairs"),
        ("{type: noise_scale}", "train.noise_scale: {}"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, section, message):
    with pytest.raises(ConfigurationError, match=message):
        trainer(tmp_path, toys.PSNR, f"train.batch_size_optimizer={section}")
