"""Networks on other devices: whoever calls them does not notice, and gradients find their way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.cli.main import main
from dlas.config import check
from dlas.context import Context
from dlas.engine import build, placement
from dlas.engine.distributed import Ranks
from dlas.engine.placement import device_of, is_placed, place
from dlas.errors import ConfigurationError
from runs import assert_same_tensors, configure, trainer

CPU, ELSEWHERE = torch.device("cpu"), torch.device("cpu", 0)
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
HOMES = [CPU, pytest.param(torch.device("cuda"), marks=NEEDS_GPU)]
TEACHER = toys.PSNR.replace("steps:", "  teacher: {which_model_G: ToyGenerator, trainable: false}\nsteps:", 1).replace(
    "    losses:\n",
    "      taught: {type: generator, generator: teacher, in: noisy, out: taught, train: true, no_grad: true}\n    losses:\n"
    "      taught: {type: pix, criterion: l1, weight: 0.5, real: taught, fake: gen}\n",
    1,
)


class Pair(NamedTuple):
    first: Tensor
    second: int


@dataclass
class Result:
    kept: Tensor


class Network(nn.Module):
    """Several methods, which call each other, and results of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, *, more: dict[str, list[Tensor]] | None = None) -> tuple[Tensor, Pair, Result]:
        """x times the weight, in several wrappings."""
        x = self.scaled(x) if more is None else self.scaled(x) + more["add"][0]
        return x, Pair(x, 2), Result(x)

    def scaled(self, x: Tensor) -> Tensor:
        """x times the weight."""
        return x * self.weight


@pytest.fixture
def moves(monkeypatch) -> list[tuple[str, torch.device]]:
    """What is moved, by kind and goal."""
    found: list[tuple[str, torch.device]] = []
    real = placement._moved

    def moved(value: object, device: torch.device) -> object:
        found.append((type(value).__name__, device))
        return real(value, device)

    monkeypatch.setattr(placement, "_moved", moved)
    return found


def test_inputs_go_there_and_results_come_back(moves):
    network = Network()
    place(network, ELSEWHERE, CPU)
    x = torch.ones(2, requires_grad=True)
    out, pair, result = network(x, more={"add": [torch.ones(2)]})
    assert isinstance(pair, Pair) and isinstance(result, Result)
    assert out.tolist() == pair.first.tolist() == result.kept.tolist() == [4, 4]
    goals = [goal.index for kind, goal in moves if kind in ("Tensor", "Parameter")]
    assert goals == [0, 0, None, None, None]  # x and what is added; three results. Not those of `scaled` within
    out.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [3, 3]
    assert network.weight.grad == 2
    moves.clear()
    assert network.scaled(x).tolist() == [3, 3]
    assert {goal.index for _, goal in moves} == {0, None}
    assert is_placed(network) and Context({"net": network}).device("net") == CPU
    with pytest.raises(TypeError):
        network("x", "y")
    moves.clear()
    network(x)
    assert moves  # an error has left nothing behind


@pytest.mark.parametrize("home", HOMES)
def test_autocast_is_on_there_as_it_is_at_home(home):
    network = nn.Linear(2, 2)
    place(network, CPU if home.type == "cuda" else ELSEWHERE, home)
    with torch.autocast(home.type, torch.bfloat16):
        out = network(torch.ones(1, 2, device=home))
    assert out.dtype == torch.bfloat16
    assert out.device.type == home.type
    assert network(torch.ones(1, 2, device=home)).dtype == torch.float32


@pytest.mark.parametrize("name", ["teacher", "generator"])
def test_a_run_with_a_network_elsewhere_gives_the_same_bits(tmp_path, monkeypatch, name, moves):
    runs = []
    for folder, there in ("here", None), ("there", name):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(build, "device_of", lambda _, each, home, there=there: ELSEWHERE if each == there else home)
        run = trainer(tmp_path / folder, TEACHER, "steps.generator.clip_grad_eps=0.1")
        assert is_placed(run.networks[name]) == (there is not None)
        moves.clear()
        runs.append(run.run().folder)
        assert bool(moves) == (there is not None)
    assert_same_tensors(runs[0] / "checkpoints/8", runs[1] / "checkpoints/8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_trained_networks_on_two_devices(tmp_path):
    one = trainer(tmp_path, toys.GAN, "device=cuda", "networks.discriminator.device=cpu", "train.ema.device=cpu").run()
    assert one.step == 8


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("networks.teacher.device=gpu1", "'gpu1' is no device; write cpu"),
        (("networks.generator.device=cpu", "distributed.strategy=ddp"), "a trained network is on the device of each process"),
        (("networks.teacher.device=1", "distributed.strategy=fsdp"), "each process has a GPU of its own"),
        (("train.ema.device=cpu", "distributed.strategy=fsdp"), "averages are cut up as the weights are"),
    ],
)
def test_the_checker_knows_devices(tmp_path, options, word):
    file = tmp_path / "options.yml"
    file.write_text(TEACHER)
    errors = [each for each in check(file, [options] if isinstance(options, str) else options) if each.severity == "error"]
    assert len(errors) == 1
    assert word in str(errors[0])
    assert not check(file, ["networks.teacher.device=cpu", "networks.generator.device=1"])


def test_devices_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    file = tmp_path / "options.yml"
    file.write_text(TEACHER)
    command = ["check", "-opt", str(file), "--set", "networks.teacher.device=3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(command) == 2
    assert "networks.teacher.device: 3: this machine has 2 GPUs; take a lower number" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(command) == 0
    assert "warning: networks.teacher.device: 3: this machine has 0 GPUs" in capsys.readouterr().out
    monkeypatch.undo()
    config = configure(tmp_path, TEACHER, "networks.teacher.device=63")
    with pytest.raises(ConfigurationError, match=r"networks.teacher.device: cuda:63: not usable here"):
        device_of(config, "teacher", CPU)


def test_several_processes_have_frozen_networks_on_the_cpu_only(tmp_path, monkeypatch):
    config = configure(tmp_path, TEACHER, "networks.teacher.device=cpu", "networks.generator.device=cpu")
    assert device_of(config, "generator", CPU) == CPU
    monkeypatch.setattr(Ranks, "current", staticmethod(lambda: Ranks(0, 2)))
    assert device_of(config, "teacher", CPU) == CPU
    with pytest.raises(ConfigurationError, match="of several processes each has one device"):
        device_of(config, "generator", CPU)
