"""The gradient balancer: shares of the gradient, exact resume, micro-batches, and what cannot be balanced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import toys
from dlas.config import check
from dlas.config.schema import BalanceConfig
from dlas.engine.balance import Balancer, Weighted
from dlas.engine.loss_state import loss_state
from dlas.engine.meter import Meter
from dlas.errors import ConfigurationError, TrainingError
from dlas.losses.base import Loss
from dlas.registry import LOSSES
from runs import assert_same_tensors, configure, rows, trainer
from test_training import interrupt_after

BALANCED = [
    "steps.generator.losses.big={type: pix, criterion: l2, weight: 3, real: hq, fake: gen}",
    "steps.generator.losses.tv={type: tv, weight: 2, fake: gen}",
    "steps.generator.balance={at: gen, decay: 0.9}",
]


def section(**options) -> BalanceConfig:
    return BalanceConfig(**{"at": "gen"} | options)


def losses(anchor: Tensor) -> list[Weighted]:
    """Of very different scales, each the mean over samples."""
    return [
        Weighted("small", 1.0, 1e-3 * anchor.sum(1).mean()),
        Weighted("large", 3.0, 1e3 * anchor.square().sum(1).mean()),
        Weighted("apart", 0.5, torch.ones((), requires_grad=True) * 2),
    ]


def gradient_at(anchor: Tensor, balancer: Balancer, share: float = 1.0, scale: Tensor | None = None) -> tuple[Tensor, list]:
    found = losses(anchor)
    weights = balancer.weights(found, {"gen": anchor}, share, Meter(), scale)
    total = sum(weight * each.value for weight, each in zip(weights, found, strict=True))
    return torch.autograd.grad(total, anchor)[0], weights


def test_weights_become_shares_of_the_gradient():
    draw = torch.Generator().manual_seed(0)
    anchor = torch.randn(6, 5, generator=draw).requires_grad_()
    meter = Meter()
    balancer = Balancer(section(total=2.0), "generator", ["small", "large", "apart"])
    found = losses(anchor)
    weights = balancer.weights(found, {"gen": anchor}, 1.0, meter)
    norms = []
    for weight, each in zip(weights[:2], found[:2], strict=True):
        (gradient,) = torch.autograd.grad(weight * each.value, anchor, retain_graph=True)
        norms.append((gradient * 6).norm(dim=1).mean().item())
    assert norms == pytest.approx([2.0 * 0.25, 2.0 * 0.75], rel=1e-5)
    assert weights[2] == 0.5  # it does not depend on the key
    logged = meter.read()
    assert logged == pytest.approx({"generator/small_share": 0.25, "generator/large_share": 0.75})


def test_norms_are_averaged_over_time():
    balancer = Balancer(section(decay=0.5), "generator", ["a", "b"])
    seen = []
    for size in (1.0, 4.0, 2.0):
        anchor = torch.ones(2, 3, requires_grad=True)
        value = Weighted("a", 1.0, size * anchor.sum(1).mean())
        (weight,) = balancer.weights([value], {"gen": anchor}, 1.0, Meter())
        seen.append(1 / weight.item() / 3**0.5)
    assert seen == pytest.approx([1.0, (0.5 + 4) / 1.5, (0.25 + 2 + 2) / 1.75], rel=1e-5)


def test_the_scale_of_the_losses_does_not_matter_and_float16_scaling_neither():
    anchor = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain, _ = gradient_at(anchor, Balancer(section(), "s", ["small", "large", "apart"]))
    scaled, _ = gradient_at(anchor, Balancer(section(), "s", ["small", "large", "apart"]), scale=torch.tensor(2.0**12))
    torch.testing.assert_close(plain, scaled)


def test_halves_of_a_batch_move_the_average_as_the_whole_does():
    anchor = torch.randn(8, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    whole, halves = (Balancer(section(decay=0.9), "s", ["small", "large", "apart"]) for _ in range(2))
    gradient_at(anchor, whole)
    for part in (anchor[:4], anchor[4:]):
        gradient_at(part.detach().requires_grad_(), halves, share=0.5)
    for name, sums in whole.norms.items():
        average = halves.norms[name][0] / halves.norms[name][1]
        assert average.item() == pytest.approx((sums[0] / sums[1]).item(), rel=0.05)


def test_a_gradient_that_is_not_finite_is_not_remembered():
    balancer = Balancer(section(), "s", ["small", "large", "apart"])
    anchor = torch.ones(2, 3, requires_grad=True)
    gradient_at(anchor, balancer)
    before = {name: sums.clone() for name, sums in balancer.norms.items()}
    bad = torch.full((2, 3), float("inf"), requires_grad=True)
    gradient_at(bad, balancer)
    assert balancer.norms["large"].equal(before["large"])
    assert balancer.norms["small"][1] > before["small"][1]


def test_excluded_losses_keep_their_weights():
    anchor = torch.ones(2, 3, requires_grad=True)
    _, weights = gradient_at(anchor, Balancer(section(exclude=["large"]), "s", ["small", "large", "apart"]))
    assert weights[1:] == [3.0, 0.5]
    with pytest.raises(ConfigurationError, match="has no loss 'huge'"):
        Balancer(section(exclude=["huge"]), "s", ["small"])


def test_without_a_gradient_at_the_key_nothing_can_be_balanced():
    balancer = Balancer(section(), "generator", ["small"])
    with pytest.raises(TrainingError, match=r"steps\.generator\.balance: no gradient is recorded at 'gen'"):
        balancer.weights([], {"gen": torch.ones(2)}, 1.0, Meter())


# --------------------------------------------------------------------------------------------------------------------- in a run


def test_a_run_logs_shares_near_the_weights(tmp_path):
    run = trainer(tmp_path, toys.PSNR, *BALANCED, "train.niter=12", "logger.print_freq=12")
    assert run.run().step == 12
    row = rows(tmp_path / "toy", "train")[-1]
    total = 1 + 3 + 2
    assert row["generator/pix_share"] == pytest.approx(1 / total, rel=0.3)
    assert row["generator/big_share"] == pytest.approx(3 / total, rel=0.3)
    assert row["generator/tv_share"] == pytest.approx(2 / total, rel=0.3)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_that_was_stopped_goes_on_exactly(parts, tmp_path, monkeypatch):
    options = [*BALANCED, "logger.print_freq=2", "logger.save_checkpoint_freq=3", f"train.mega_batch_factor={parts}"]
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    trainer(tmp_path / "whole", toys.PSNR, *options, "train.niter=6").run()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert trainer(tmp_path / "parts", toys.PSNR, *options, "train.niter=6").run().step == 3
    resumed = trainer(tmp_path / "parts", toys.PSNR, *options, "train.niter=6")
    resumed.run()
    assert resumed.steps[0].balancer.norms
    assert_same_tensors(tmp_path / "whole/toy/checkpoints/6", tmp_path / "parts/toy/checkpoints/6")


@LOSSES.register("toy_counting")
class CountingLoss(Loss):
    """Mean of what is generated times a number that grows with each call."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.network = torch.nn.BatchNorm1d(3)

    def forward(self, state, context) -> Tensor:
        """Scalar."""
        self.calls += 1
        return state["gen"].mean() * self.calls


def test_what_losses_remember_is_saved_without_their_networks(tmp_path):
    options = ["steps.generator.losses.count={type: toy_counting, weight: 0.1}", "train.niter=3"]
    run = trainer(tmp_path, toys.PSNR, *options)
    run.run()
    resumed = trainer(tmp_path, toys.PSNR, *options[:1], "train.niter=5")
    resumed._restore()
    (loss,) = [each.loss for each in resumed.steps[0].losses if each.name == "count"]
    assert loss.calls == 3
    assert loss_state(run.steps[0])["buffers"].keys() == {"count"}
    assert loss_state(run.steps[0])["buffers"]["count"].keys() == {"calls"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["steps.generator.balance={at: hq}"], "no injector of this step writes 'hq'"),
        (["steps.generator.balance={at: gen, exclude: [gan]}"], "the step has no loss 'gan'"),
        (["steps.generator.balance={at: gen}", "steps.generator.losses.pix.weight=-1"], "must be above 0"),
        (["steps.generator.balance={on: gen}"], "unknown key"),
    ],
)
def test_a_balancer_that_cannot_work_is_found_in_the_file(options, message, tmp_path):
    path = tmp_path / "file.yml"
    path.write_text(toys.PSNR)
    assert any(message in problem.message for problem in check(path, options))
    assert check(path, BALANCED) == []
    assert configure(tmp_path, toys.PSNR, *BALANCED).steps["generator"].balance.total == 1.0
