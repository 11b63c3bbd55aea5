"""Weightings: the values of their papers, for every kind of prediction alike, and finite without signal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlas.archs.noise_level_variance import NoiseLevelVariance
from dlas.diffusion import Level, create_process, diffuse, target, to_x0
from dlas.diffusion.weightings import create_weighting, noise_coordinate, with_log_variance

KINDS = ("eps", "x0", "v", "velocity", "edm")
WEIGHTINGS = (
    {"type": "min_snr"},
    {"type": "min_snr", "gamma": 1.0},
    {"type": "soft_min_snr", "gamma": 3.0},
    {"type": "soft_min_snr"},
    {"type": "edm"},
    {"type": "p2", "k": 0.5, "gamma": 0.7},
)
PROCESSES = ({"type": "vp", "sigma_data": 0.6}, {"type": "edm"}, {"type": "flow", "shift": 2.0})


def preserving(*snrs: float) -> Level:
    snr = torch.tensor(snrs, dtype=torch.float64)
    return Level((snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt())


@pytest.mark.parametrize("options", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("settings", PROCESSES, ids=str)
def test_every_kind_of_prediction_has_the_same_loss(options: dict[str, object], settings: dict[str, object]) -> None:
    """The weighted squared error of a network is the same in whatever terms its output is."""
    process, weighting = create_process(settings), create_weighting(options)
    level = process.level(process.time_of(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])))
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    over = level.like(x0)
    x, seen = diffuse(x0, eps, over), x0 + 0.1 * torch.sin(7 * eps)
    losses = []
    for kind in KINDS:
        error = target(kind, seen, (x - over.alpha * seen) / over.sigma, over, process.sigma_data)
        error = error - target(kind, x0, eps, over, process.sigma_data)
        assert torch.allclose(to_x0(kind, target(kind, x0, eps, over, process.sigma_data), x, over, process.sigma_data), x0)
        losses.append(weighting(level, kind, process.sigma_data) * error.square().mean(1))
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0], rtol=1e-8)


def test_min_snr_by_the_table_of_its_paper() -> None:
    weighting = create_weighting({"type": "min_snr", "gamma": 5})
    level = preserving(0.25, 4, 20)
    assert weighting(level, "x0", 1.0).tolist() == pytest.approx([0.25, 4, 5])
    assert weighting(level, "eps", 1.0).tolist() == pytest.approx([1, 1, 0.25])
    assert weighting(level, "v", 1.0).tolist() == pytest.approx([0.25 / 1.25, 4 / 5, 5 / 21])


def test_the_others_by_their_formulas() -> None:
    level = preserving(0.25, 4, 20)
    assert create_weighting({"type": "soft_min_snr"})(level, "x0", 0.5).tolist() == pytest.approx([1 / 4.25, 2, 80 / 24])
    assert create_weighting({"type": "p2"})(level, "eps", 1.0).tolist() == pytest.approx([1 / 1.25, 1 / 5, 1 / 21])
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    exploding = Level(torch.ones_like(sigma), sigma)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert torch.allclose(create_weighting({"type": "edm"})(exploding, "x0", 0.5), expected)
    assert torch.allclose(create_weighting({"type": "edm"})(exploding, "edm", 0.5), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"type": "uniform"}, *WEIGHTINGS], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pure_noise_counts_and_is_finite(kind: str, options: dict[str, object]) -> None:
    process = create_process({"type": "vp", "zero_terminal_snr": True})
    factors = create_weighting(options)(process.level(torch.arange(1000)), kind, 1.0)
    assert factors.shape == (1000,)
    assert torch.isfinite(factors).all()
    assert factors[-1] == 1


def test_factor_without_signal_is_an_option() -> None:
    nothing = Level(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert create_weighting({"type": "min_snr", "without_signal": 0.25})(nothing, "v", 1.0).item() == 0.25


def test_learned_log_variance_finds_the_loss_of_each_level() -> None:
    """Trained with two losses at each of two levels, exp(u) is their mean there."""
    torch.manual_seed(0)
    network = NoiseLevelVariance(channels=32)
    level = create_process({"type": "edm"}).level(torch.tensor([0.01, 10.0]))
    coordinate = noise_coordinate(level)
    assert network(coordinate).tolist() == [0, 0]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = torch.tensor([0.005, 1.5, 0.015, 4.5])
    for _ in range(300):
        optimizer.zero_grad()
        with_log_variance(losses, network(coordinate.repeat(2))).mean().backward()
        optimizer.step()
    assert network(coordinate).exp().tolist() == pytest.approx([0.01, 3.0], rel=0.01)


def test_log_variance_divides_gradients_by_the_loss() -> None:
    loss = torch.tensor([4.0], requires_grad=True)
    with_log_variance(loss, loss.detach().log()).sum().backward()
    assert loss.grad is not None and loss.grad.item() == pytest.approx(1 / 4)


def test_coordinate_is_finite_without_signal() -> None:
    level = Level(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1e-30]))
    found: Tensor = noise_coordinate(level)
    assert found.tolist() == [5, -5]
    assert found.dtype == torch.float32
