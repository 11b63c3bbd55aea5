"""The gradient's noise scale, against its closed form on a quadratic."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.config.schema import NoiseScaleConfig
from dlas.context import Context
from dlas.data.base import Dataset, Request, Sample
from dlas.engine.distributed import Ranks
from dlas.engine.microbatch import MicroBatch
from dlas.engine.noise_scale import NoiseScale, trade_off
from dlas.errors import ConfigurationError
from dlas.injectors.base import State
from dlas.losses.base import Loss
from dlas.registry import ARCHS, DATASETS, LOSSES
from dlas.types import PositiveInt, StateIn
from runs import batches, checkpoint_tensors, rows, trainer

DIM = 32
CURVATURE = torch.linspace(0.5, 2.0, DIM)
SPREAD = torch.linspace(0.2, 1.0, DIM)  # standard deviation of a sample's gradient, by coordinate
START = 0.35


@DATASETS.register("noise_vectors")
class Vectors(Dataset):
    """Independent normal vectors."""

    provides = ("x",)

    def __init__(self, phase: str, /, *, length: PositiveInt = 1000) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, request: Request) -> Sample:
        return {"x": torch.from_numpy(request.rng().standard_normal(DIM)).float() * SPREAD}


@ARCHS.register("NoisePoint")
class Point(nn.Module):
    """A point in space."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.full((DIM,), START))

    def forward(self, x: Tensor) -> Tensor:
        """(B, DIM) -> (B,): half theta' H theta + x' theta, whose gradient is H theta + x."""
        return 0.5 * (CURVATURE * self.place**2).sum() + x @ self.place

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, DIM),)


@LOSSES.register("noise_mean")
class Mean(Loss):
    """The mean of its input."""

    def __init__(self, *, in_: StateIn) -> None:
        super().__init__()
        self.source = in_

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        return state[self.source].float().mean()


QUADRATIC = """\
name: noise
datasets:
  train: {mode: noise_vectors, batch_size: 16}
networks:
  point: {which_model: NoisePoint}
steps:
  point:
    training: point
    optimizer: sgd
    optimizer_params: {lr: 1e-12}
    clip_grad_eps: 1e-3
    injectors:
      value: {type: generator, generator: point, in: x, out: value}
    losses:
      mean: {type: noise_mean, weight: 1, in: value}
train:
  niter: 300
  mega_batch_factor: 4
  noise_scale: {every: 1, decay: 1.0}
  ema: {enabled: false}
eval: {metrics: []}
logger: {print_freq: 100, tensorboard: false}
"""
TRUE = float((SPREAD**2).sum() / ((CURVATURE * START) ** 2).sum())


@pytest.mark.parametrize("parts", [2, 3])
def test_it_is_within_ten_percent_of_the_closed_form(tmp_path, parts):
    run = trainer(tmp_path, QUADRATIC, f"train.mega_batch_factor={parts}")
    run.run()
    last = rows(tmp_path / "noise", "train")[-1]
    assert last["point/point_noise_scale"] == pytest.approx(TRUE, rel=0.1)
    assert last["point/point_updates_factor"] == pytest.approx(1 + TRUE / 16, rel=0.1)
    assert last["point/point_samples_factor"] == pytest.approx(1 + 16 / TRUE, rel=0.1)
    assert "noise scale (critical batch) about" in run.steps[0].noise_scale.summary()[0]
    # Not their ratio alone is right.
    signal, noise = (run.steps[0].noise_scale._sums / 300).flatten().tolist()
    assert signal == pytest.approx(float(((CURVATURE * START) ** 2).sum()), rel=0.1)
    assert noise == pytest.approx(float((SPREAD**2).sum()), rel=0.1)


class Pair(Ranks):
    """Another process of which only the gradient's square is known, times the square of the loss scale."""

    def mean_(self, values: Tensor) -> Tensor:
        return (values + 4.0 * 8**2) / 2


def test_the_formula_by_hand_with_processes_shares_and_a_loss_scale():
    point = nn.Parameter(torch.zeros(2))
    meter = NoiseScale(NoiseScaleConfig(decay=0.5), "s", {"net": [point]}, Pair(0, 2), torch.device("cpu"))
    parts = [MicroBatch({}, 0.25, [0]), MicroBatch({}, 0.75, [1, 2, 3])]
    assert meter.due(0, parts)
    for _ in range(2):
        point.grad = 8.0 * 0.25 * torch.tensor([6.0, 8.0])  # |G_b|^2 is 100 here and 4 in the other process
        meter.after_first()
        point.grad = 8.0 * torch.tensor([0.0, 2.0])
        meter.after_last(parts, torch.tensor(8.0))
    # b = 1, B = 8: |G|^2 = (8 x 4 - 52) / 7, tr = (52 - 4) / (1 - 1/8); two measurements with decay 1/2
    assert meter.batch == 8
    assert meter._sums.flatten().tolist() == pytest.approx([1.5 * (32 - 52) / 7, 1.5 * 48 / (7 / 8)])
    assert meter.figures() == {}  # a negative estimate is no figure


def test_gradients_that_are_not_finite_are_forgotten_and_the_rest_stays():
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    meter = NoiseScale(NoiseScaleConfig(), "s", {"a": [one], "b": [two]}, Ranks(), torch.device("cpu"))
    parts = [MicroBatch({}, 0.5, [0]), MicroBatch({}, 0.5, [1])]
    one.grad, two.grad = torch.tensor([1.0]), torch.tensor([float("nan")])
    meter.after_first()
    one.grad, two.grad = torch.tensor([1.5]), torch.tensor([1.0])
    meter.after_last(parts, None)
    assert meter._sums[:, 0].abs().sum() > 0
    assert meter._sums[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("text", [toys.PSNR, toys.GAN], ids=["psnr", "gan"])
def test_measuring_changes_nothing_and_survives_a_restart(tmp_path, text):
    common = ("train.mega_batch_factor=2", "train.lr_scheme={type: one_cycle, total_steps: 8}")
    measured = (*common, "train.noise_scale={decay: 0.9}")
    trainer(tmp_path, text, "name=plain", *common).run()
    whole = trainer(tmp_path, text, "name=whole", *measured)
    whole.run()
    trainer(tmp_path, text, "name=cut", "train.niter=3", *measured).run()
    resumed = trainer(tmp_path, text, "name=cut", *measured)
    resumed.run()
    plain, same = (checkpoint_tensors(tmp_path / name / "checkpoints/8") for name in ("plain", "whole"))
    assert [key for key in plain if not plain[key].equal(same[key])] == []
    for one, two in zip(whole.steps, resumed.steps, strict=True):
        assert one.noise_scale._sums.abs().sum() > 0
        assert one.noise_scale._sums.equal(two.noise_scale._sums)


def test_where_there_is_only_one_size_it_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match="mega_batch_factor: 2"):
        trainer(tmp_path, toys.PSNR, "train.noise_scale={}")
    run = trainer(tmp_path, toys.PSNR, "train.noise_scale={}", "train.micro_batch_size=auto")
    run.iterate(batches(run, 1)[0])  # nothing is measured until memory runs out, and that is no error
    assert run.steps[0].noise_scale.figures() == {}


def test_it_is_measured_only_when_asked(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "train.mega_batch_factor=2", "train.noise_scale={every: 3}")
    sums = []
    for batch in batches(run, 4):
        run.iterate(batch)
        sums.append(run.steps[0].noise_scale._sums.clone())
    assert [not a.equal(b) for a, b in itertools.pairwise(sums)] == [False, False, True]


def test_the_words_add_up():
    words = trade_off(64.0, 64)
    assert "about 64 samples" in words
    assert "batch 128: 0.75 x the updates, 1.50 x the samples" in words
