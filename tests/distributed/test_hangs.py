"""A process that hangs does not keep the others for ever, nor what was saved before."""

from __future__ import annotations

import time

import pytest
from test_several_processes import TEACHER, torchrun

from dlas.engine import checkpoint


@pytest.mark.slow  # torchrun waits for half a minute before it kills
def test_a_process_that_hangs_ends_the_run_after_the_time_that_is_given(tmp_path):
    hang = "steps.generator.injectors.hang={type: toy_death, in: taught, out: same, at: 4, rank: 1, hangs: true}"
    job = (TEACHER, "distributed={strategy: fsdp, timeout: 6}", "checkpoints.format=sharded", hang)
    done = torchrun(tmp_path, {"hang": job})
    took = time.time() - (tmp_path / "hang/metrics.jsonl").stat().st_mtime
    assert done.returncode == 1
    assert "rank      : 0" in done.stderr  # it is the one that has waited
    assert 6 < took < 90  # torchrun gives the one that hangs half a minute to end by itself
    newest = checkpoint.newest(tmp_path / "hang/checkpoints")
    assert newest is not None and newest.name == "3"
