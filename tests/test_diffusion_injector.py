"""The injector `diffusion`: a network is trained to what is best, and samples do not touch each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors import create_injector
from runs import rows, trainer

FILE = """
name: run
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4, length: 8}
networks:
  generator: {which_model_G: ToyDenoiser}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      error:
        type: diffusion
        in: hq
        out: error
        generator: generator
        process: {type: flow}
        prediction: velocity
        conditions: {low: lq}
        drop_rate: 0.25
        unconditional: {low: 0}
    losses: {diffusion: {type: direct, key: error, weight: 1}}
train: {niter: 30}
logger: {print_freq: 5, tensorboard: false}
"""


class Recorder(nn.Module):
    """Answers with a constant, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def forward(self, x: Tensor, times: Tensor, **conditions: Any) -> Tensor:
        self.asked.append((x, times, conditions))
        return torch.full_like(x, 0.5)


def run(
    positions: list[int], state: dict[str, Tensor], training: bool = True, **options: Any
) -> tuple[dict[str, Any], Recorder]:
    network = Recorder()
    injector = create_injector({"type": "diffusion", "in": "hq", "out": "error", "generator": "net", **options})
    return injector(state, Context({"net": network}, training=training, seed=5, positions=positions)), network


def data(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"hq": torch.randn(count, 3, 4, 4, generator=generator), "label": torch.arange(count)}


@pytest.mark.parametrize("process", [{"type": "vp"}, {"type": "edm"}, {"type": "flow"}], ids=lambda p: p["type"])
def test_micro_batches_see_what_the_batch_sees(process: dict[str, Any]) -> None:
    state = data(6)
    whole, one = run([10, 11, 12, 13, 14, 15], state, process=process)
    parts = [
        run(list(range(10 + k, 12 + k)), {key: v[k : k + 2] for key, v in state.items()}, process=process) for k in (0, 2, 4)
    ]
    assert torch.equal(whole["error"], torch.cat([out["error"] for out, _ in parts]))
    assert torch.equal(one.asked[0][0], torch.cat([network.asked[0][0] for _, network in parts]))


def test_times_of_a_batch_are_spread_evenly() -> None:
    state = {"hq": torch.zeros(16, 1, 2, 2)}
    _, network = run(list(range(100, 116)), state, process={"type": "flow", "time_scale": 1.0})
    counts = torch.histc(network.asked[0][1], 4, 0, 1)
    assert counts.min() >= 3
    _, network = run(list(range(100, 116)), state, process={"type": "flow", "time_scale": 1.0}, stratified=False)
    assert torch.histc(network.asked[0][1], 4, 0, 1).min() < 3


def test_the_error_is_that_of_the_prediction() -> None:
    state = {"hq": torch.zeros(2, 1, 2, 2)}
    found, network = run([0, 1], state, process={"type": "edm"}, prediction="x0", out_x0="seen")
    assert torch.equal(found["seen"], torch.full((2, 1, 2, 2), 0.5))
    assert found["error"].tolist() == [0.25, 0.25]
    assert network.asked[0][1].dtype == torch.float32


def test_conditions_are_dropped_in_training_alone() -> None:
    state = data(400)
    options = {"process": {"type": "flow"}, "conditions": {"y": "label"}, "drop_rate": 0.3, "unconditional": {"y": -1}}
    _, network = run(list(range(400)), state, **options)
    dropped = network.asked[0][2]["y"] == -1
    assert 80 < dropped.sum() < 160
    assert torch.equal(network.asked[0][2]["y"][~dropped], state["label"][~dropped])
    _, network = run(list(range(400)), state, training=False, **options)
    assert torch.equal(network.asked[0][2]["y"], state["label"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 0.1}, "needs 'unconditional"),
        ({"unconditional": {"y": 0}}, "y is no argument under 'conditions'"),
        ({"process": {"schedule": "cosine"}}, "a process needs a type, one of: .*flow"),
        ({"process": {"type": "edm", "sigma_min": 90}}, "sigma_min 90"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_injector({"type": "diffusion", "in": "hq", "out": "e", "generator": "net", "process": {"type": "vp"}, **options})


def test_a_file_trains(tmp_path: Path) -> None:
    trainer(tmp_path, FILE).run()
    losses = [row["generator/diffusion"] for row in rows(tmp_path / "run", "train")]
    assert losses[-1] < 0.8 * losses[0]


# --------------------------------------------------------------------------------------------------- the objective's options


class Scaled(nn.Module):
    """Gives what it is shown, times a parameter; twice as many channels where it also tells a variance."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.3))
        self.channels = channels

    def forward(self, x: Tensor, times: Tensor, **conditions: Any) -> Tensor:
        return torch.cat([x * self.factor] * self.channels, dim=1)


def call(
    network: nn.Module, state: dict[str, Tensor], positions: list[int], step: int = 0, injector: Any = None, **options: Any
) -> tuple[dict[str, Any], Any, dict[str, list[tuple[float, float]]]]:
    """The entries, the injector and what it logged."""
    made = injector or create_injector({"type": "diffusion", "in": "hq", "out": "error", "generator": "net", **options})
    logged: dict[str, list[tuple[float, float]]] = {}
    context = Context({"net": network, "u": Level()}, seed=5, positions=positions, step=step)
    context.log = lambda name, value, weight: logged.setdefault(name, []).append((float(value), float(weight)))
    return made(state, context), made, logged


class Level(nn.Module):
    """Says ln 4 of every noise level."""

    def forward(self, coordinate: Tensor) -> Tensor:
        return torch.full_like(coordinate, math.log(4))


VP = {"type": "vp", "steps": 100}


def test_a_learned_variance_adds_its_bound_to_the_loss() -> None:
    network, state = Scaled(2), data(4)
    plain, _, _ = call(Scaled(), state, [0, 1, 2, 3], process=VP)
    found, _, _ = call(network, state, [0, 1, 2, 3], process=VP, variance="learned_range", out_bound="bound")
    assert torch.allclose(found["error"], plain["error"] + found["bound"])
    assert not found["bound"].requires_grad
    alone, _, _ = call(network, state, [0, 1, 2, 3], process=VP, variance="learned_range", loss="kl")
    assert (alone["error"] - found["bound"]).abs().max() < 1e-5


def test_losses_are_divided_by_what_a_network_says_of_their_level() -> None:
    state = data(4)
    plain, _, _ = call(Scaled(), state, [0, 1, 2, 3], process={"type": "edm"}, prediction="edm")
    found, _, _ = call(Scaled(), state, [0, 1, 2, 3], process={"type": "edm"}, prediction="edm", log_variance="u")
    assert torch.allclose(found["error"], plain["error"] / 4 + math.log(4))


@pytest.mark.parametrize("assignment", ["nearest", "assignment"])
def test_noise_is_assigned_to_what_is_near_it_and_the_target_follows(assignment: str) -> None:
    state = data(32)

    def noises(**options: Any) -> Tensor:
        network = Recorder()
        call(network, state, list(range(32)), process={"type": "edm"}, prediction="x0", times={"type": "log_normal"}, **options)
        x, told, _ = network.asked[0]
        sigma = torch.exp(4 * told).reshape(-1, 1, 1, 1)
        return (x * (sigma.square() + 0.25).sqrt() - state["hq"]) / sigma

    near = noises(noise=assignment, candidates=16)
    assert (near - state["hq"]).square().sum() < 0.97 * (noises() - state["hq"]).square().sum()
    found, _, _ = call(Zero(), state, list(range(32)), process={"type": "edm"}, noise=assignment, candidates=16)
    assert torch.allclose(found["error"], near.square().mean((1, 2, 3)), atol=1e-3)  # what the network should have said: it


class Zero(nn.Module):
    """Says nothing."""

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_the_log_has_the_error_of_the_noisiest_quarters() -> None:
    state = {"hq": torch.zeros(8, 1, 2, 2)}
    network = Recorder()
    found, _, logged = call(network, state, list(range(8)), process={"type": "flow", "time_scale": 1.0}, prediction="x0")
    times = network.asked[0][1]
    assert found["error"].tolist() == [0.25] * 8
    assert logged == {
        "error_upper_quantile_mse_loss": [(0.25, float((times > 0.75).sum()))],
        "error_mid_upper_quantile_mse_loss": [(0.25, float(((times > 0.5) & (times <= 0.75)).sum()))],
    }


def test_what_times_remember_does_not_depend_on_how_a_batch_is_cut_or_on_a_second_try() -> None:
    options: dict[str, Any] = {"process": {"type": "vp", "schedule": "cosine", "steps": 4}}
    options["times"] = {"type": "loss_second_moment", "history": 2}
    network = Scaled()

    def remembered(cuts: list[list[int]]) -> tuple[dict[str, Tensor], Tensor]:
        injector = None
        for step in range(6):
            state = data(6)
            losses = []
            for places in cuts:
                part = {key: value[places] for key, value in state.items()}
                positions = [6 * step + place for place in places]
                found, injector, _ = call(network, part, positions, step, injector, **options)
                losses.append(found["error"])
        return injector.state_dict(), torch.cat(losses[-len(cuts) :])[-2:]

    whole, losses = remembered([[0, 1, 2, 3, 4, 5]])
    parts, others = remembered([[0, 1], [2, 3], [4, 5]])
    again, _ = remembered([[0, 1, 2], [3, 4, 5], [0, 1], [2, 3], [4, 5]])  # no memory was left for the second half: all anew
    assert torch.equal(losses, others)
    assert int(whole["seen"].sum()) == 36
    for other in (parts, again):
        assert whole.keys() == other.keys() == {"losses", "seen"}
        assert all(torch.equal(whole[key], other[key]) for key in whole)
    assert len(set(whole["losses"].flatten().tolist())) > 4


def test_a_loss_that_is_not_finite_is_not_remembered() -> None:
    injector = None
    options: dict[str, Any] = {"process": {"type": "vp", "schedule": "cosine", "steps": 4}}
    options["times"] = {"type": "loss_second_moment", "history": 2}
    state = data(4)
    state["hq"][1] = torch.nan
    _, injector, _ = call(Scaled(), state, [0, 1, 2, 3], 0, injector, **options)
    found = injector.state_dict()
    assert int(found["seen"].sum()) == 3
    assert found["losses"].isfinite().all()


TIMES = "times: {type: loss_second_moment, history: 2}\n        process: {type: vp, schedule: cosine, steps: 5}"
RESUMED = FILE.replace("process: {type: flow}", TIMES).replace("velocity", "eps")


def test_what_injectors_remember_is_restored(tmp_path: Path) -> None:
    run = trainer(tmp_path, RESUMED, "train.niter=6")
    run.run()
    resumed = trainer(tmp_path, RESUMED, "train.niter=12")
    resumed._restore()
    states = [each.steps[0].injectors[0].injector.state_dict() for each in (run, resumed)]
    assert int(states[0]["seen"].sum()) == 24
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0].keys() == states[1].keys() == {"losses", "seen"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": {"type": "flow"}, "variance": "learned"}, "Flow has no timesteps"),
        ({"process": {"type": "vp", "zero_terminal_snr": True}}, "predict v or x0"),
        ({"out_bound": "bound"}, "the loss has no part of the bound"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_injector({"type": "diffusion", "in": "hq", "out": "e", "generator": "net", "process": {"type": "vp"}, **options})
