"""Compiled networks on CUDA, by kernels and by CUDA graphs: the same training."""

from __future__ import annotations

import pytest
import torch

import toys
from runs import rows, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OPTIONS = ("device=cuda", "tf32=false", "train.niter=6", "train.mega_batch_factor=2", "networks.generator.dropout=0")


@pytest.mark.parametrize("evaluation", [False, True], ids=["trained", "evaluated"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_gan_is_the_same_one(tmp_path, mode, evaluation):
    """What one step's network returns, the other step reads; losses are kept over iterations, gradients over micro-batches."""
    eager = trainer(tmp_path, toys.GAN, *OPTIONS, "name=eager")
    section = f"compile={{mode: {mode}, dynamic: false, evaluation: {str(evaluation).lower()}}}"
    compiled = trainer(tmp_path, toys.GAN, *OPTIONS, "name=compiled", section)
    eager.run(), compiled.run()
    assert compiled.compilation.count > 0
    for phase in ("train", "val"):
        for one, other in zip(rows(eager.folder.path, phase), rows(compiled.folder.path, phase), strict=True):
            for key in one:
                if isinstance(one[key], float):
                    assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
    torch.compiler.reset()
