"""Optimisers take torch's fused kernels on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dlas.optim import build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "fused_adam", "fused_sgd", "torch.optim.AdamW"])
def test_the_update_is_one_kernel(name, dtype):
    optimizer = build_optimizer(name, {"net": nn.Linear(4, 4).to("cuda", dtype)}, {"lr": 0.01})
    assert type(optimizer).__module__.startswith("apex") or optimizer.defaults["fused"]


def test_what_has_no_fused_kernel_there_takes_multi_tensor_operations():
    optimizer = build_optimizer("torch.optim.Adagrad", {"net": nn.Linear(4, 4).to("cuda")}, {"lr": 0.01})
    assert not optimizer.defaults["fused"]
    assert optimizer.defaults["foreach"] is not False  # None: torch takes them on CUDA
