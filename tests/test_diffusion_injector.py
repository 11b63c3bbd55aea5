"""The injector `diffusion`: a network is trained to what is best, and samples do not touch each other."""

from __future__ import annotations

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
