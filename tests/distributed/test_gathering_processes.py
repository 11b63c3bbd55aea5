"""The noise scale, and updates from several batches, in two processes."""

from __future__ import annotations

import pytest
from test_several_processes import torchrun

import test_noise_scale
from runs import checkpoint_tensors, rows, trainer

QUADRATIC = test_noise_scale.QUADRATIC
PLUGIN = f"plugins=[{test_noise_scale.__file__}]"
TABLE = (
    "train.noise_scale=~",
    "train.batch_size_optimizer={type: table, table: [[0, 3]], lr_rule: sqrt}",
    "train.niter=7",
    "steps.point.optimizer_params.lr=1e-2",
)
LITTLE = ("steps.point.clip_grad_eps=0", "logger.tensorboard=false")


def test_two_processes_measure_and_gather_like_one(tmp_path):
    jobs = {
        "noise": (QUADRATIC, PLUGIN, "train.mega_batch_factor=1", "train.niter=250"),
        "both": (QUADRATIC, PLUGIN, "train.mega_batch_factor=2", "train.niter=250"),
        "sharded": (QUADRATIC, PLUGIN, "train.mega_batch_factor=4", "train.niter=250", "distributed.strategy=fsdp"),
        "table": (QUADRATIC, PLUGIN, *LITTLE, *TABLE, "train.mega_batch_factor=1"),
    }
    done = torchrun(tmp_path, jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("noise", "both", "sharded"):
        last = rows(tmp_path / name, "train")[-1]
        assert last["point/point_noise_scale"] == pytest.approx(test_noise_scale.TRUE, rel=0.1)
        assert last["point/point_updates_factor"] == pytest.approx(1 + test_noise_scale.TRUE / 16, rel=0.1)
    trainer(tmp_path, QUADRATIC, "name=single", *LITTLE, *TABLE, "train.mega_batch_factor=1").run()
    one, two = (checkpoint_tensors(tmp_path / name / "checkpoints/7") for name in ("single", "table"))
    assert one.keys() == two.keys()
    assert any("sums" in key for key in one)  # the seventh batch waits for two others
    for key, value in one.items():
        assert value.allclose(two[key], rtol=1e-5, atol=1e-7), key
