"""What sharded networks are asked for beside training: evaluation in shares, and their averages as teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_several_processes import TEACHER, alone, assert_alike, torchrun

# Three pictures of other sizes for two processes: batches, and tiles of each, are not as many in one as in the other.
UNEVEN = (TEACHER, "datasets.val={mode: toy_uneven}", "train.val_freq=3", "eval.weights=both")
RUNS = {
    "lamb": (TEACHER, "steps.generator.optimizer=lamb"),
    "uneven": UNEVEN,
    "tiles": (*UNEVEN, "eval.tile=16"),
    "average": (
        TEACHER,
        "steps.generator.injectors.steady={type: generator_ema, generator: generator, in: lq, out: steady}",
        "steps.generator.losses.steady={type: pix, criterion: l2, weight: 0.5, real: steady, fake: gen}",
    ),
}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """The folder of runs that two processes have made."""
    folder = tmp_path_factory.mktemp("session")
    fsdp = "distributed.strategy=fsdp"
    jobs = {name: (*run, fsdp) for name, run in RUNS.items()}
    jobs["block_by_block"] = (*UNEVEN, fsdp, "distributed.gather_for_evaluation=false")
    jobs["auto"] = (*UNEVEN, fsdp, "eval.tile=auto", "distributed.gather_dtype=bf16", "precision=bf16")
    done = torchrun(folder, jobs)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_what_one_gives(session, tmp_path, name):
    assert_alike(alone(tmp_path, *RUNS[name]), session / name, 8)


def test_the_whole_set_in_each_process_gives_the_same(session):
    assert_alike(session / "uneven", session / "block_by_block", 8)


def test_each_process_writes_the_pictures_of_its_share(session):
    for run in ("uneven", "auto"):
        pictures = {path.parent.name for path in (session / run / "val/val").glob("*/8.png")}
        assert pictures == {"picture0", "picture1", "picture2"}
