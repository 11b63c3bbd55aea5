"""Adapters trained by two processes, with whole and with sharded networks, are those that one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import components  # noqa: F401
import torch
from test_several_processes import TEACHER

from runs import checkpoint_tensors, trainer

HERE = Path(__file__).parent
TEXT = TEACHER.replace("generator: {which_model_G: ToyBlocks}", "generator: {which_model_G: ToyBlocks, lora: {rank: 2}}")
STRATEGIES = ("ddp", "fsdp")


def test_adapters_of_two_processes_are_those_of_one(tmp_path):
    trainer(tmp_path, TEXT, "name=one", "device=cpu", "train.niter=3").run()
    file = tmp_path / "options.yml"
    common = [f"path.experiments={tmp_path}", "device=cpu", "train.niter=3"]
    jobs = [[str(file), [*common, f"name={each}", f"distributed.strategy={each}"]] for each in STRATEGIES]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1] / "codes")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(HERE / "session.py"), str(tmp_path / "jobs.json")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = checkpoint_tensors(tmp_path / "one/checkpoints/3")
    assert "generator.safetensors:blocks.0.conv.lora_a" in expected
    for each in STRATEGIES:
        found = checkpoint_tensors(tmp_path / each / "checkpoints/3")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
