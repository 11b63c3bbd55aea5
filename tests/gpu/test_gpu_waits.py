"""Training steps under torch's refusal of operations that wait for the device."""

from __future__ import annotations

import pytest
import torch

import resume.served  # noqa: F401  # registers its components
import toys
from resume.configurations import CONFIGURATIONS
from runs import batches, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

REFUSED = ("device=cuda", "sync_debug_mode=error", "train.ema.enabled=true", "train.niter=8", "logger.print_freq=3")
SETTINGS = {
    "plain": (),
    "half": ("precision=fp16",),
    "bf16": ("precision=bf16", "memory_format=channels_last"),
    "micro-batches": ("train.mega_batch_factor=2", "train.health={spike: skip}", "train.noise_scale={every: 1}"),
    "averages on the host": ("train.ema.device=cpu",),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", ["psnr", "gan", "diffusion"])
def test_no_toy_waits(tmp_path, name, settings):
    """Log lines, validations and checkpoints, which do wait, come in between."""
    result = trainer(tmp_path, CONFIGURATIONS[name].text, *REFUSED, *settings).run()
    assert result.step == 8


def test_a_wait_in_a_step_is_refused(tmp_path, monkeypatch):
    original = toys.ToyGenerator.forward

    def waits(self, x):
        return original(self, x) * float(x.mean().item() > -1)

    monkeypatch.setattr(toys.ToyGenerator, "forward", waits)
    run = trainer(tmp_path, toys.PSNR, *REFUSED)
    with pytest.raises(Exception, match="synchronizing CUDA operation"):
        run.iterate(batches(run, 1)[0])
