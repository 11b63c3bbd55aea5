"""Checkpoints of which each process writes its part: any number of processes goes on from them, and none is taken by halves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_several_processes import RESUMED, TEACHER, alone, assert_same_figures, torchrun
from torch.distributed import checkpoint as dcp

from dlas.cli.main import main
from dlas.config import load
from dlas.engine import checkpoint
from dlas.engine.testing import run_test
from dlas.errors import CheckpointError, TrainingError
from runs import checkpoint_tensors, rows, trainer

SHARDED = "checkpoints.format=sharded"
FSDP = "distributed.strategy=fsdp"
CPU = ("device=cpu", "logger.tensorboard=false")
TRACKS = "train.ema.post_hoc={widths: [0.1], every: 100}"


def assert_same_state(one: Path, other: Path) -> None:
    """Two checkpoints, whole or sharded, hold the same but for rounding."""
    first, second = (checkpoint.load(path) for path in (one, other))
    assert first.progress["samples"] == second.progress["samples"]
    for part in ("networks", "emas", "optimizers", "meter"):
        tensors, others = {}, {}
        plain = checkpoint.pack(getattr(first, part), tensors)
        same = checkpoint.pack(getattr(second, part), others)
        assert tensors.keys() == others.keys()
        assert part != "optimizers" or json.dumps(plain) == json.dumps(same)
        for key, value in tensors.items():
            assert value.dtype == others[key].dtype
            assert (value.double() - others[key].double()).abs().max() < 2e-6, key


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """The folder of runs that two processes have made."""
    folder = tmp_path_factory.mktemp("session")
    bad = "steps.generator.injectors.bad={type: toy_bad_disk, in: taught, out: same, at: 4, rank: 1"
    jobs = {
        "goes_on": (TEACHER, FSDP, SHARDED, TRACKS, "train.niter=3"),
        "retried": (TEACHER, FSDP, SHARDED, f"{bad}, fails: 2}}", "checkpoints.retry_pause=0.01", "checkpoints.keep_last=1"),
        "ddp": (TEACHER, "distributed.strategy=ddp", SHARDED, "checkpoints.background=false"),
        "killed": (TEACHER, FSDP, SHARDED, f"{bad}, kills: true}}"),
    }
    done = torchrun(folder, jobs, 2, "--max-restarts=1")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_two_four_and_one_processes_go_on_from_one_another(session, tmp_path):
    first = session / "goes_on/checkpoints/3"
    assert {path.name for path in first.iterdir()} == {
        *("manifest.json", "shards.json", "state.json", "shard-00001.safetensors", "shard-00002.safetensors")
    }
    shards = json.loads((first / "shards.json").read_text())
    assert len(shards["generator.safetensors/blocks.0.conv.weight"]["parts"]) == 2
    done = torchrun(session, {"goes_on": (TEACHER, FSDP, SHARDED, TRACKS, "distributed.shard_size=2", "train.niter=5")}, 4)
    assert done.returncode == 0, done.stderr[-4000:]
    second = json.loads((session / "goes_on/checkpoints/5/shards.json").read_text())
    weight = second["generator.safetensors/blocks.0.conv.weight"]["parts"]
    assert len(weight) == 2  # cut in two, held twice, written once
    files = {part["file"] for entry in second.values() for part in entry["parts"]}
    assert len(files) == 4  # by all of them in turn
    resumed = alone(session, TEACHER, TRACKS, "name=goes_on")
    one = alone(tmp_path, TEACHER, TRACKS)
    assert_same_state(one / "checkpoints/8", resumed / "checkpoints/8")
    assert_same_state(one / "checkpoints/3", first)
    assert_same_figures(rows(one, "train")[-1], rows(resumed, "train")[-1])


def test_a_process_killed_in_the_midst_of_a_shard_leaves_the_checkpoint_before_it(session, tmp_path):
    log = (session / "killed/train.log").read_text()
    assert log.count("going on from") == 1 and "checkpoints/3" in log.split("going on from")[1]
    assert not list((session / "killed/checkpoints").glob(".*"))
    assert_same_state(alone(tmp_path, TEACHER) / "checkpoints/8", session / "killed/checkpoints/8")


def test_a_disk_that_fails_in_one_process_is_tried_again_by_all(session):
    log = (session / "retried/train.log").read_text()
    assert log.count("cannot be written: Input/output error") + log.count("cannot be written: the toy disk fails") == 1
    assert [path.name for path in checkpoint.steps_in(session / "retried/checkpoints").values()] == ["8"]
    assert_same_state(session / "ddp/checkpoints/8", session / "retried/checkpoints/8")


def test_weights_that_are_not_finite_are_not_saved_by_any_process(tmp_path):
    spoilt = (*RESUMED[1:], SHARDED, "train.health.non_finite=skip", *CPU)
    run = trainer(tmp_path, RESUMED[0], *spoilt)
    with torch.no_grad():
        next(run.networks["generator"].parameters()).fill_(torch.nan)
    run.folder.claim()
    run.writer.save(run.state.snapshot(run.progress))
    with pytest.raises(TrainingError, match="weights of generator are not finite at step 0, which is not saved"):
        run.writer.wait()
    assert not checkpoint.steps_in(run.folder.checkpoints)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A run of one process with sharded checkpoints."""
    return alone(tmp_path_factory.mktemp("single"), TEACHER, SHARDED)


def test_every_fault_of_a_sharded_checkpoint_is_found(single, tmp_path):
    for number, file in enumerate(sorted((single / "checkpoints/8").iterdir())):
        for kind, change in {
            "flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
            "cut": lambda data: data[:-1],
            "removed": lambda data: None,
        }.items():
            folder = tmp_path / f"{number}-{kind}"
            shutil.copytree(single / "checkpoints/8", folder)
            changed = change(file.read_bytes())
            if changed is None:
                (folder / file.name).unlink()
            else:
                (folder / file.name).write_bytes(changed)
            assert checkpoint.find_fault(folder) is not None, folder.name
            with pytest.raises(CheckpointError):
                checkpoint.load(folder)


def test_nothing_is_pickled_and_torch_reads_the_shards(session):
    folder = session / "goes_on/checkpoints/3"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    whole = checkpoint.load(folder).networks["generator"]
    reader = getattr(dcp, "HuggingFaceStorageReader", None)
    if reader is None:
        pytest.skip("this torch has no HuggingFaceStorageReader")
    mine = {f"generator.safetensors/{name}": torch.zeros_like(value) for name, value in whole.items()}
    dcp.load(mine, storage_reader=reader(str(folder)), no_dist=True)
    for name, value in whole.items():
        assert mine[f"generator.safetensors/{name}"].equal(value), name


def test_files_that_point_elsewhere_are_refused(single, tmp_path):
    folder = tmp_path / "8"
    shutil.copytree(single / "checkpoints/8", folder)
    text = (folder / "shards.json").read_text().replace("shard-00001", "../8/shard-00001")
    (folder / "shards.json").write_text(text)
    with pytest.raises(CheckpointError, match="no file of the checkpoint"):
        checkpoint.load(folder, checked=True)


def test_a_sharded_checkpoint_becomes_a_whole_one(single, tmp_path, capsys):
    plain = alone(tmp_path, TEACHER) / "checkpoints/8"
    assert main(["convert", "whole", str(single / "checkpoints/8"), "-o", str(tmp_path / "out/8")]) == 0
    assert "generator.ema.safetensors" in capsys.readouterr().out
    one, two = checkpoint_tensors(plain), checkpoint_tensors(tmp_path / "out/8")
    assert one.keys() == two.keys()
    assert all(value.equal(two[key]) for key, value in one.items())
    assert checkpoint.find_fault(tmp_path / "out/8") is None
    assert main(["convert", "whole", str(plain), "-o", str(tmp_path / "out/9")]) == 2
    assert main(["convert", "whole", str(single / "checkpoints/8"), "-o", str(tmp_path / "out/8")]) == 2  # nothing is replaced


def test_tools_read_sharded_checkpoints(single, tmp_path):
    from dlas.inference.model import find

    found = find(single, "generator")
    average = checkpoint.load(single / "checkpoints/8").emas["generator"]
    assert found.weights.keys() == average.keys()
    assert all(found.weights[key].equal(value) for key, value in average.items())
    options = tmp_path / "test.yml"
    options.write_text(
        f"name: test\nscale: 2\npath: {{run: {single}, experiments: {tmp_path}}}\ndatasets: {{val: {{mode: toy_pairs}}}}"
    )
    (result,) = run_test(load(options, ["eval.metrics=[psnr]"], mode="test")).values()
    assert result.means["psnr"] == pytest.approx(rows(single, "val")[-1]["psnr"])
