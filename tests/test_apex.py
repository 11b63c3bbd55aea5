"""Optimisers by apex's names: its classes where it is there and of use, and what takes their place elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from dlas.config import check
from dlas.errors import MissingPackageError
from dlas.optim import build_optimizer
from dlas.optim.layerwise import Lamb
from runs import trainer
from toys import PSNR

NAMES = ("FusedAdam", "FusedSGD", "FusedLAMB", "FusedAdagrad", "FusedNovoGrad")
SPELLED = {name: (name, f"apex.optimizers.{name}") for name in NAMES}
SPELLED["FusedAdam"] += ("fused_adam",)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"net": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))}


class Fake(torch.optim.SGD):
    """Remembers what it was made with."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options["lr"])
        self.given = options


@pytest.fixture
def apex(monkeypatch):
    """A module of apex's name, and parameters that say they are on a CUDA device."""
    module = ModuleType("apex.optimizers")
    for name in NAMES:
        setattr(module, name, type(name, (Fake,), {}))
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    return module


@pytest.mark.parametrize(("name", "spelled"), [(name, each) for name in NAMES for each in SPELLED[name]])
def test_apex_is_used_where_it_is(apex, name, spelled):
    optimizer = build_optimizer(spelled, networks(), {"lr": 0.1, "weight_decay": 0.2})
    assert type(optimizer) is getattr(apex, name)
    assert optimizer.given["weight_decay"] == 0.2
    assert ("max_grad_norm" in optimizer.given) == (name == "FusedLAMB")


def test_apex_gets_its_own_options(apex):
    options = {"lr": 0.1, "betas": [0.5, 0.6], "eps": 1e-3}
    assert build_optimizer("FusedLAMB", networks(), options | {"max_grad_norm": 0.5}).given == {
        "lr": 0.1, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.01, "max_grad_norm": 0.5,
    }  # fmt: skip
    assert build_optimizer("FusedAdam", networks(), options | {"adam_w_mode": False}).given["adam_w_mode"] is False
    assert build_optimizer("FusedSGD", networks(), {"lr": 0.1, "dampening": 0.3}).given["dampening"] == 0.3


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("FusedAdam", torch.optim.AdamW, "torch.optim.AdamW with its fused kernel takes its place"),
        ("FusedSGD", torch.optim.SGD, "torch.optim.SGD with its fused kernel takes its place"),
        ("FusedAdagrad", torch.optim.Adagrad, "torch.optim.Adagrad takes its place"),
        ("FusedLAMB", Lamb, "'lamb' of this program (torch has none); it does not clip: write 'clip_grad_eps: 1' in the step"),
    ],
)
def test_without_apex_what_there_is_takes_its_place_with_a_notice(name, kind, words, caplog):
    for spelled in SPELLED[name]:
        caplog.clear()
        with caplog.at_level("INFO"):
            assert type(build_optimizer(spelled, networks(), {"lr": 0.1})) is kind
        assert words in caplog.text


def test_the_package_of_this_name_on_pypi_is_not_taken_for_it(monkeypatch):
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))  # has no `optimizers`
    assert type(build_optimizer("FusedSGD", networks(), {"lr": 0.1})) is torch.optim.SGD


def test_novograd_has_no_counterpart_and_says_what_to_take():
    with pytest.raises(MissingPackageError, match=r"torch has no NovoGrad: take 'lamb'.*or 'adamw'.*github\.com/NVIDIA/apex"):
        build_optimizer("apex.optimizers.FusedNovoGrad", networks(), {"lr": 0.1})


def test_a_file_with_apex_trains_without_it(tmp_path):
    overrides = (
        "steps.generator.optimizer=apex.optimizers.FusedSGD",
        "dist_backend=apex",
        "steps.generator.optimizer_params.lr=1e-3",
    )
    run = trainer(tmp_path, PSNR, *overrides, "train.niter=2")
    assert type(run.steps[0].optimizer) is torch.optim.SGD
    run.run()
    notices = [problem.message for problem in check(tmp_path / "options.yml", list(overrides)) if problem.severity == "notice"]
    assert any("apex" in each or "torch" in each for each in notices), notices
