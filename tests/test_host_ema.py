"""Averages in host memory are those that would have been kept beside the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.engine import averages
from dlas.engine.ema import ModelEma
from dlas.engine.host_ema import HostEma
from runs import assert_same_tensors, trainer

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


def change(network: nn.Module, step: int) -> None:
    """Other weights, another buffer."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    network.num_batches_tracked += 1


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_same_average(device):
    network = nn.BatchNorm1d(5).to(device)
    one, other = ModelEma(network, rate=0.8), HostEma(network, rate=0.8)
    for step in range(1, 6):
        change(network, step)
        held: Tensor | bool = [False, True, torch.ones((), device=device), torch.zeros((), device=device), False][step - 1]
        for ema in (one, other):
            ema.update(step, held)
        if step == 3:
            for ema in (one, other):
                ema.restart([network.bias])
    own, states = network.state_dict(), (one.state_dict(), other.state_dict())
    for name, value in states[0].items():
        assert states[1][name].device.type == "cpu"
        assert states[1][name].allclose(value.cpu(), rtol=1e-6, atol=1e-7), name
        assert not value.equal(own[name]) or name in ("running_mean", "running_var", "num_batches_tracked")
    with other.swap_into(network):
        assert network.weight.allclose(states[0]["weight"], rtol=1e-6)
    assert network.weight.equal(own["weight"])
    assert other.tensors()["weight"].device.type == device


def test_an_update_is_what_the_weights_were_then():
    network = nn.Linear(2, 2)
    ema = HostEma(network, rate=0.5)
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
        ema.update(1)
        network.weight.add_(100)
    assert ema.state_dict()["weight"].allclose(start + 0.5)


def test_a_run_keeps_validates_and_resumes_the_same(tmp_path, monkeypatch):
    folders = []
    for name, kind in ("beside", ModelEma), ("host", HostEma):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(averages, "_kind", lambda *_, kind=kind: kind)
        for niter in (5, 8):
            run = trainer(tmp_path / name, toys.PSNR, f"train.niter={niter}", "train.lr_scheme={type: constant}")
            assert type(run.averages.main["generator"]) is kind
            folders.append(run.run().folder)
    for step in ("3", "8"):
        assert_same_tensors(folders[1] / "checkpoints" / step, folders[3] / "checkpoints" / step)
