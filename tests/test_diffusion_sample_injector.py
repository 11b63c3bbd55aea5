"""The injectors `diffusion_sample` and `consistency`: what is trained is sampled, and samples do not touch each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.diffusion.consistency import boundary_x0, discretisation, ladder, rung_shares
from dlas.diffusion.levels import Level
from dlas.errors import ConfigurationError
from dlas.injectors import create_injector

FLOW: dict[str, Any] = {"process": {"type": "flow", "time_scale": 1.0}, "prediction": "velocity"}
EDM: dict[str, Any] = {"process": {"type": "edm"}, "prediction": "edm"}


class Conditioned(nn.Module):
    """x times a parameter, plus its condition."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x: Tensor, times: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        assert not self.training
        found = self.factor * x
        return found if y is None else found + y.reshape(-1, *(1,) * (x.dim() - 1))


def drawn(
    positions: list[int], state: dict[str, Tensor] | None = None, training: bool = False, **options: Any
) -> dict[str, Any]:
    networks = options.pop("networks", None) or {"net": Conditioned(), "worse": Conditioned(0.2)}
    injector = create_injector({"type": "diffusion_sample", "out": "made", "generator": "net", "steps": 4, **options})
    before = [network.training for network in networks.values()]
    found = injector(state or {}, Context(networks, training=training, seed=3, positions=positions))
    assert [network.training for network in networks.values()] == before
    return found


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver", "heun"])
def test_a_sample_is_the_same_in_any_batch(sampler: str) -> None:
    options = {"process": {"type": "vp"}, "sampler": {"type": sampler}, "shape": [3, 4, 4]}
    whole = drawn([5, 6, 7, 8], **options)["made"]
    parts = torch.cat([drawn([5, 6], **options)["made"], drawn([7, 8], **options)["made"]])
    assert torch.equal(whole, parts)
    assert whole.shape == (4, 3, 4, 4)
    assert not torch.equal(whole[0], whole[1])
    assert not whole.requires_grad


def test_shapes_follow_another_tensor() -> None:
    state = {"lq": torch.zeros(2, 3, 4, 6)}
    found = drawn([0, 1], state, like="lq", enlarge=2, channels=1, out_strip="strip", stages=2, **FLOW)
    assert found["made"].shape == (2, 1, 8, 12)
    assert found["strip"].shape == (2, 1, 8, 24)
    assert torch.equal(found["strip"][..., 12:], found["made"])


def test_samples_are_brought_to_the_unit_range_and_kept_in_it() -> None:
    options = {**EDM, "shape": [1, 8, 8], "clip": "static", "networks": {"net": Conditioned(3.0)}}
    plain = drawn([0], **options)["made"]
    assert plain.abs().max() == 1
    assert torch.equal(drawn([0], to_unit_range=True, **options)["made"], (plain + 1) / 2)


def test_guidance_is_off_at_one_and_one_call_of_twice_the_batch_beyond() -> None:
    state = {"label": torch.tensor([1.0, 2.0])}
    options = {
        **FLOW,
        "shape": [1, 2, 2],
        "conditions": {"y": "label"},
        "unconditional": {"y": 0},
        "sampler": {"type": "euler"},
    }
    network = Conditioned()
    plain = drawn([0, 1], state, networks={"net": network}, **options)["made"]
    guided = drawn([0, 1], state, networks={"net": network}, guidance=3, **options)["made"]
    assert network.calls == 8
    # A velocity of factor * x + y is an affine map by each of the steps, so that guidance moves samples in proportion.
    moved = (guided - plain).flatten(1)
    assert torch.allclose(moved[1], 2 * moved[0], atol=1e-5)
    assert (moved[0] < 0).all()  # the velocity leads from data to noise


def test_a_worse_network_guides() -> None:
    options = {**FLOW, "shape": [1, 2, 2], "sampler": {"type": "euler"}}
    found = drawn([0, 1], guide="worse", guidance=2, **options)["made"]
    assert torch.allclose(
        found, drawn([0, 1], networks={"net": Conditioned(0.8)}, **options)["made"], atol=1e-6
    )  # 2 * 0.5 - 0.2
    limited = drawn([0, 1], guide="worse", guidance=2, guidance_interval=[100, 200], **options)["made"]
    assert torch.equal(limited, drawn([0, 1], **options)["made"])


def test_a_classifier_guides_to_its_class() -> None:
    class Classifier(nn.Module):
        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([mean, -mean], dim=1)

    networks = {"net": Conditioned(), "judge": Classifier()}
    options = {
        **FLOW,
        "shape": [1, 2, 2],
        "networks": networks,
        "classifier": "judge",
        "labels": "label",
        "classifier_scale": 5,
    }
    found = drawn([0, 0], {"label": torch.tensor([0, 1])}, **options)["made"]
    assert found[0].mean() > found[1].mean() + 0.1


def test_the_average_of_the_weights_is_run_in_training() -> None:
    class Average:
        def tensors(self) -> dict[str, Tensor]:
            return {"factor": torch.tensor(0.8)}

    options = {"type": "diffusion_sample", "out": "made", "generator": "net", "shape": [1, 2, 2], "average": True, **FLOW}
    context = Context({"net": Conditioned()}, seed=3, positions=[0], averages={"net": Average()})
    found = create_injector(options)({}, context)["made"]
    wanted = drawn([0], networks={"net": Conditioned(0.8)}, **{**FLOW, "shape": [1, 2, 2], "steps": 20})["made"]
    assert torch.equal(found, wanted)
    context.averages = {}
    with pytest.raises(ConfigurationError, match="keeps no average of 'net'"):
        create_injector(options)({}, context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either 'like'"),
        ({"shape": [1, 2, 2], "like": "lq"}, "either 'like'"),
        ({"shape": [1, 2, 2], "enlarge": 2}, "go with 'like'"),
        ({"shape": [1, 2, 2], "guidance": 2}, "needs 'unconditional"),
        ({"shape": [1, 2, 2], "guide": "worse"}, "no effect with 'guidance: 1'"),
        ({"shape": [1, 2, 2], "classifier": "judge"}, "go together"),
        ({"shape": [1, 2, 2], "guidance_interval": [3, 1]}, "least and largest"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_injector({"type": "diffusion_sample", "out": "made", "generator": "net", **FLOW, **options})


# --------------------------------------------------------------------------------------------- short trainings on mixtures

MODES = torch.tensor([[-1.0, 0.5], [1.0, 0.5], [0.0, -1.0]])
SPREAD = 0.1


class Perceptron(nn.Module):
    """A small network for points of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        angles = times.unsqueeze(1) * torch.tensor([0.5, 1.0, 2.0, 4.0])
        return self.layers(torch.cat((x, angles.sin(), angles.cos()), dim=1))


def points(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(3, (count,), generator=generator)
    return MODES[chosen] + SPREAD * torch.randn(count, 2, generator=generator)


def train(network: nn.Module, steps: int, rate: float = 3e-3, batch: int = 256, **options: Any) -> None:
    injector = create_injector({"in": "points", "out": "loss", "generator": "net", **options})
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        context = Context({"net": network}, seed=1, positions=range(batch * step, batch * (step + 1)), step=step)
        injector({"points": points(batch, step)}, context)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def samples(network: nn.Module, count: int, **options: Any) -> Tensor:
    injector = create_injector({"type": "diffusion_sample", "out": "made", "generator": "net", "shape": [2], **options})
    made: Tensor = injector({}, Context({"net": network}, training=False, seed=2, positions=range(count)))["made"]
    return made


def test_flow_matching_learns_the_moments_of_a_mixture() -> None:
    torch.manual_seed(0)
    network = Perceptron()
    train(network, 600, type="diffusion", times={"type": "logit_normal"}, **FLOW)
    made, true = samples(network, 2000, sampler={"type": "euler"}, steps=30, **FLOW), points(2000, 999)
    assert (made.mean(0) - true.mean(0)).abs().max() < 0.1
    assert (torch.cov(made.T) - torch.cov(true.T)).abs().max() < 0.1
    nearest = torch.cdist(made, MODES).min(1)
    assert nearest.values.median() < 3 * SPREAD
    assert torch.bincount(nearest.indices, minlength=3).min() > 0.2 * len(made)


CONSISTENT = {"process": {"type": "edm", "sigma_max": 10}, "sigma_max": 10.0}
ONE_STEP = {"process": {"type": "edm", "sigma_max": 10}, "prediction": "consistency", "sampler": {"type": "consistency"}}


def one_step_lies_at_the_modes(network: nn.Module) -> None:
    made = samples(network, 500, steps=1, **ONE_STEP)
    nearest = torch.cdist(made, MODES).min(1)
    assert nearest.values.median() < 0.25  # points of the untrained network: over 0.5
    assert torch.bincount(nearest.indices, minlength=3).min() > 0.15 * len(made)


def test_a_consistency_model_is_trained_from_data() -> None:
    torch.manual_seed(0)
    network = Perceptron()
    assert torch.cdist(samples(network, 500, steps=1, **ONE_STEP), MODES).min(1).values.median() > 0.5
    train(network, 1200, type="consistency", scales_steps=900, scales_end=160, **CONSISTENT)
    one_step_lies_at_the_modes(network)


def test_a_consistency_model_is_distilled_from_a_diffusion_model() -> None:
    torch.manual_seed(0)
    teacher = Perceptron()
    train(teacher, 500, type="diffusion", times={"type": "log_normal"}, weighting={"type": "edm"}, **EDM)
    network = Perceptron()
    network.load_state_dict(teacher.state_dict())
    options = {"scales_start": 18, "scales_end": 18, "scales_steps": 1, "metric": "l2", "levels": "uniform", "growth": "sqrt"}
    injector = create_injector(
        {
            "type": "consistency",
            "in": "points",
            "out": "loss",
            "generator": "net",
            "teacher": "teacher",
            **options,
            **CONSISTENT,
        }
    )
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for step in range(500):
        context = Context(
            {"net": network, "teacher": teacher}, seed=1, positions=range(256 * step, 256 * (step + 1)), step=step
        )
        injector({"points": points(256, step)}, context)["loss"].mean().backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        optimizer.step()
        optimizer.zero_grad()
    one_step_lies_at_the_modes(network)


def test_the_target_of_a_consistency_model_can_be_its_average_and_has_no_gradient() -> None:
    class Average:
        def tensors(self) -> dict[str, Tensor]:
            return {name: torch.zeros_like(value) for name, value in network.named_parameters()}

    network = Perceptron()
    options = {"type": "consistency", "in": "points", "out": "loss", "generator": "net", "scales_steps": 5, "metric": "l2"}
    injector = create_injector({**options, **CONSISTENT, "target": "average", "weighting": "uniform", "out_x0": "seen"})
    context = Context({"net": network}, seed=1, positions=range(4), averages={"net": Average()})
    found = injector({"points": points(4, 0)}, context)
    own = create_injector({**options, **CONSISTENT, "weighting": "uniform", "out_x0": "seen"})(
        {"points": points(4, 0)}, context
    )
    assert torch.equal(found["seen"], own["seen"])
    assert not torch.equal(found["loss"], own["loss"])


def test_both_calls_of_a_consistency_model_drop_the_same_features() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            self.seen.append(nn.functional.dropout(torch.ones(64), 0.5))
            return x

    network = Dropping()
    options = {"type": "consistency", "in": "points", "out": "loss", "generator": "net", "scales_steps": 5, **CONSISTENT}
    torch.manual_seed(4)
    create_injector(options)({"points": points(4, 0)}, Context({"net": network}, seed=1, positions=range(4)))
    assert torch.equal(network.seen[0], network.seen[1])
    after = torch.rand(())
    torch.manual_seed(4)
    assert after == torch.rand(())  # and what is drawn elsewhere is what it would have been


def test_the_least_noise_is_a_boundary() -> None:
    x, output = torch.randn(4, 3), torch.randn(4, 3)
    level = Level(torch.full((4, 1), 0.8), torch.full((4, 1), 0.8 * 0.002))
    assert torch.allclose(boundary_x0(output, x, level, 0.5, 0.002), x / 0.8)
    noisy = Level(torch.ones(4, 1), torch.full((4, 1), 1e5))
    assert torch.allclose(boundary_x0(output, x, noisy, 0.5, 0.002), 0.5 * output, atol=1e-4)


def test_the_path_is_cut_ever_finer() -> None:
    sqrt = [discretisation(step, 1000, 2, 150, "sqrt") for step in range(0, 1300, 10)]
    assert (sqrt[0], sqrt[-1]) == (2, 151)
    assert sqrt == sorted(sqrt)
    doubling = [discretisation(step, 800, 10, 1280) for step in range(1000)]
    assert sorted(set(doubling)) == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [doubling.count(each) for each in (11, 641)] == [100, 100]
    assert discretisation(5, 1, 18, 18) == 19
    rungs = ladder(18, 0.002, 80.0)
    assert rungs[[0, -1]].tolist() == pytest.approx([0.002, 80])
    shares = rung_shares(rungs, -1.1, 2.0)
    assert shares[-1] == 1
    assert shares.diff().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": {"type": "vp"}}, "the process has timesteps"),
        ({"scales_start": 20, "scales_end": 10}, "scales_start 20 is more"),
        ({"sigma_min": 90.0}, "must be less than sigma_max"),
    ],
)
def test_a_consistency_model_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_injector(
            {
                "type": "consistency",
                "in": "x",
                "out": "e",
                "generator": "net",
                "process": {"type": "edm"},
                "scales_steps": 5,
                **options,
            }
        )
