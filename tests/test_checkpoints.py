"""Checkpoint folders: complete or absent, verified, exact, without pickles."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

import toys
from dlas.engine import checkpoint
from dlas.engine.checkpoint import Snapshot
from dlas.errors import CheckpointError
from runs import checkpoint_tensors, trainer


@pytest.fixture
def saved(tmp_path):
    snapshot = Snapshot(
        5,
        {"net": {"weight": torch.randn(4, 3)}},
        {"net": {"weight": torch.randn(4, 3)}},
        {"step": 5, "best": {}},
        {"step": {"state": {0: {"m": torch.randn(3), "betas": (0.9, 0.99), "none": None}}, "list": [1, 2.5, "x", True]}},
    )
    return checkpoint.save(tmp_path / "checkpoints", snapshot), snapshot


def test_what_is_saved_comes_back(saved):
    path, snapshot = saved
    back = checkpoint.load(path)
    assert back.step == 5
    assert back.networks["net"]["weight"].equal(snapshot.networks["net"]["weight"])
    assert back.emas["net"]["weight"].equal(snapshot.emas["net"]["weight"])
    state = back.optimizers["step"]["state"][0]
    assert state["m"].equal(snapshot.optimizers["step"]["state"][0]["m"])
    assert (state["betas"], state["none"], back.optimizers["step"]["list"]) == ((0.9, 0.99), None, [1, 2.5, "x", True])
    assert (path.parent / "latest").read_text() == "5"


def test_every_kind_of_damage_to_every_file_is_found_and_the_older_one_is_taken(saved, caplog):
    path, snapshot = saved
    snapshot.step = 9
    newer = checkpoint.save(path.parent, snapshot)
    assert checkpoint.newest(path.parent) == newer
    intact = path.parent / "intact"
    shutil.copytree(newer, intact)
    for name in sorted(p.name for p in intact.iterdir()):
        content = (intact / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damage in (flipped, content[:-1], b"", None):
            target = newer / name
            target.unlink() if damage is None else target.write_bytes(damage)
            caplog.clear()
            assert checkpoint.newest(path.parent) == path, (name, damage)
            assert f"checkpoint {newer} is passed over" in caplog.text
            with pytest.raises(CheckpointError, match=str(newer)):
                checkpoint.load(newer)
            target.write_bytes(content)
    assert checkpoint.newest(path.parent) == newer


def test_an_unfinished_folder_is_not_a_checkpoint(saved):
    path, snapshot = saved
    (path.parent / ".partial-9").mkdir()
    (path.parent / "77").mkdir()
    assert checkpoint.newest(path.parent) == path
    assert "incomplete" in (checkpoint.find_fault(path.parent / "77") or "")
    snapshot.step = 9  # the leftovers of a crash do not hinder the next one
    assert checkpoint.find_fault(checkpoint.save(path.parent, snapshot)) is None


def test_a_failing_write_leaves_the_last_checkpoint_in_place(saved, monkeypatch):
    path, snapshot = saved

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.disk, "write_file", full)
    snapshot.step = 6
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(path.parent, snapshot)
    assert checkpoint.newest(path.parent) == path
    assert (path.parent / "latest").read_text() == "5"


def test_a_checkpoint_of_another_format_says_so(saved):
    path, _ = saved
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "another version of this program" in (checkpoint.find_fault(path) or "")


def test_objects_that_would_need_pickling_are_refused():
    with pytest.raises(TypeError, match="a/b: a object cannot be saved without pickling"):
        checkpoint.pack({"a": {"b": object()}}, {})


def test_tied_weights_are_saved_once_each(tmp_path):
    tied = nn.Parameter(torch.randn(3))
    path = checkpoint.save(tmp_path, Snapshot(1, {"net": {"a": tied, "b": tied}}))
    assert checkpoint.load(path).networks["net"]["b"].equal(tied.detach())


def test_weights_files_have_the_network_s_own_names(tmp_path):
    run = trainer(tmp_path, toys.PSNR)
    run.run()
    names = {k.split(":", 1)[1] for k in checkpoint_tensors(tmp_path / "toy/checkpoints/8") if k.startswith("generator.safe")}
    assert names == set(run.networks["generator"].state_dict())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("networks.generator.width=8", "generator.safetensors"),
        ("steps.generator.optimizer_params={lr: 1e-2, param_groups: {a: {match: last, lr: 1}}}", "optimiser's state"),
    ],
)
def test_a_run_folder_of_another_network_or_optimiser_is_refused(tmp_path, override, message):
    trainer(tmp_path, toys.PSNR).run()
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, toys.PSNR, "train.niter=20", override).run()


def test_moments_lie_in_memory_as_their_parameters_do(tmp_path):
    trainer(tmp_path, toys.PSNR, "memory_format=channels_last").run()
    run = trainer(tmp_path, toys.PSNR, "memory_format=channels_last", "train.niter=9")
    run.run()
    weight = run.networks["generator"].last.weight
    assert run.steps[0].optimizer.state[weight]["exp_avg"].stride() == weight.stride()
