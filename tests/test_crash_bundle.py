"""Crash bundles hold what a step needs to run again, are complete or not there, and never end a run themselves."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import toys
from dlas.cli.main import main
from dlas.engine import crash
from dlas.engine.crash import CrashReporter, bundles, find_fault
from dlas.engine.diagnosis import diagnose
from dlas.engine.health import BadUpdate
from dlas.engine.replay import replay
from dlas.errors import CheckpointError, TrainingError
from runs import assert_same_tensors, batches, configure, rows, trainer
from test_diagnosis import NAN, prepared


def report(run, step, parts, contexts) -> Path:
    """The bundle of a bad update."""
    CrashReporter(run.config, run.folder.path).report_bad_update(step, parts, contexts)
    return bundles(run.folder.path / "crashes")[-1]


def fails_at(monkeypatch, iteration: int) -> None:
    original = toys.ToyGenerator.forward

    def forward(self, x):
        if self.training and float(self.calls) == iteration:
            raise RuntimeError("the fault")
        return original(self, x)

    monkeypatch.setattr(toys.ToyGenerator, "forward", forward)


def test_an_error_in_a_step_leaves_a_bundle_that_raises_it_again(tmp_path, monkeypatch, caplog):
    fails_at(monkeypatch, 2)
    run = trainer(tmp_path, toys.PSNR)
    with pytest.raises(Exception, match="the fault"):
        run.run()
    (bundle,) = bundles(tmp_path / "toy/crashes")
    assert bundle.name == "3-generator"
    assert find_fault(bundle) is None
    assert sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()) == [
        "batch.safetensors", "bundle.json", "config.resolved.yml", "environment.json", "losses.safetensors", "manifest.json",
        "networks/generator.safetensors", "report.json", "report.txt",
    ]  # fmt: skip
    text = (bundle / "report.txt").read_text()
    assert "in forward" in text  # the traceback
    assert f"dlas replay {bundle}" in text
    assert f"dlas replay {bundle}" in caplog.text
    result = replay(bundle)
    assert result.diagnosis.reproduced
    assert "the fault" in result.diagnosis.text()
    assert "in the run: TrainingError: network 'generator' cannot work on its inputs" in result.text()
    assert result.text().endswith("the fault shows again")
    monkeypatch.undo()
    assert replay(bundle).text().endswith("the fault does not show again")


@pytest.mark.parametrize("index", [0, 1], ids=["discriminator", "generator"])
def test_a_replay_is_the_step_bit_for_bit(tmp_path, index):
    """Dropout, noise in losses, two micro-batches, entries of earlier steps, a moved generator."""
    overrides = ["train.mega_batch_factor=2", "precision=bf16", "memory_format=channels_last"]
    run, step, parts, contexts = prepared(tmp_path, toys.GAN, *overrides, parts=2, step=index)
    for batch in batches(run, 3):
        run.iterate(batch)
    for part, context in zip(parts, contexts, strict=True):
        context.step = 3
        part.state |= {"dgen": torch.rand(2, 3, 16, 16)} if index else {}
    parts[1].state["lq"][1] = NAN
    inside = diagnose(step, parts, contexts)
    bundle = report(run, step, parts, contexts)
    outside = replay(bundle).diagnosis
    assert inside.reproduced
    assert json.dumps(inside.to_json()) == json.dumps(outside.to_json())
    assert outside.losses.keys() == ({"gan"} if index == 0 else {"pix", "gan"})


def test_a_bundle_needs_nothing_but_itself(tmp_path, monkeypatch):
    weights = tmp_path / "start.safetensors"
    first = trainer(tmp_path, toys.PSNR)
    save_file(first.networks["generator"].state_dict(), weights)
    overrides = [f"path.pretrain={{generator: {weights}}}"]
    run, step, parts, contexts = prepared(tmp_path, toys.PSNR, *overrides)
    parts[0].state["hq"][1] = NAN
    bundle = report(run, step, parts, contexts)
    weights.unlink()
    elsewhere = tmp_path / "sent/away"
    elsewhere.parent.mkdir()
    bundle.rename(elsewhere)
    monkeypatch.chdir(elsewhere.parent)
    assert [sample.names["path"] for sample in replay(Path("away")).diagnosis.cause.samples] == [parts[0].state["path"][1]]


def test_the_command_replays(tmp_path, capsys):
    run, step, parts, contexts = prepared(tmp_path)
    parts[0].state["lq"][2] = NAN
    bundle = report(run, step, parts, contexts)
    assert main(["replay", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "cause      'lq' of the batch" in out
    assert f"sample 2 (position {parts[0].positions[2]}): path {parts[0].state['path'][2]}" in out
    assert out.rstrip().endswith("the fault shows again")
    assert main(["replay", str(bundle), "--precision", "bf16", "--device", "cpu", "--anomaly"]) == 0
    out = capsys.readouterr().out
    assert "note: bf16; the run computed in fp32" in out
    assert "returned nan values" in out
    (bundle / "batch.safetensors").write_bytes(b"")
    assert main(["replay", str(bundle)]) == 1
    assert "batch.safetensors is damaged" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nothing")]) == 1


def test_a_fault_of_half_precision_goes_away_in_single(tmp_path):
    run, step, parts, contexts = prepared(tmp_path, toys.PSNR, "precision=fp16")
    run.networks["generator"].first.weight.data.mul_(1e5)
    bundle = report(run, step, parts, contexts)
    assert replay(bundle).diagnosis.reproduced
    assert replay(bundle).diagnosis.loss_scale == 65536.0
    assert not replay(bundle, precision="fp32").diagnosis.reproduced


def test_a_run_keeps_its_first_bundles(tmp_path, caplog):
    run, step, parts, contexts = prepared(tmp_path, toys.PSNR, "train.crash_bundles.count=2")
    parts[0].state["lq"][2] = NAN
    reporter = CrashReporter(run.config, run.folder.path)
    for _ in range(4):
        found = reporter.report_bad_update(step, parts, contexts)
    assert found is None
    assert [path.name for path in bundles(run.folder.path / "crashes")] == ["1-generator", "1-generator.2"]
    assert "2 crash bundles are in" in caplog.text
    none = CrashReporter(configure(tmp_path, toys.PSNR, "train.crash_bundles.count=0", "name=none"), tmp_path / "none")
    none.report_bad_update(step, parts, contexts)
    assert not (tmp_path / "none").exists()


def test_a_bundle_that_is_too_large_is_a_report(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path, toys.PSNR, "train.crash_bundles.max_mb=1")
    parts[0].state["lq"][2] = NAN
    parts[0].state["large"] = torch.zeros(2**19)
    bundle = report(run, step, parts, contexts)
    assert (
        "without batch and weights: batch and weights have 2 MB, and train.crash_bundles.max_mb is 1"
        in (bundle / "report.txt").read_text()
    )
    assert not list(bundle.rglob("*.safetensors"))
    with pytest.raises(CheckpointError, match="written without batch and weights"):
        replay(bundle)
    usage = type("usage", (), {"free": 2**20})
    monkeypatch.setattr(crash.shutil, "disk_usage", lambda path: usage)
    run.config.train.crash_bundles.max_mb = 4000
    assert "1 MB are free" in (report(run, step, parts, contexts) / "report.txt").read_text()


def test_a_full_disk_costs_the_bundle_and_not_the_run(tmp_path, monkeypatch, caplog):
    def full(tensors, path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    fails_at(monkeypatch, 2)
    monkeypatch.setattr(crash, "save_file", full)
    with pytest.raises(Exception, match="the fault"):
        trainer(tmp_path, toys.PSNR).run()
    assert list((tmp_path / "toy/crashes").iterdir()) == []
    assert "no crash bundle could be written" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_diagnosis_that_fails_leaves_a_bundle_all_the_same(tmp_path, monkeypatch, caplog):
    run, step, parts, contexts = prepared(tmp_path)

    def broken(*arguments):
        raise RuntimeError("the diagnosis is broken")

    monkeypatch.setattr(crash, "diagnose", broken)
    report(run, step, parts, contexts)
    assert "the diagnosis is broken" in caplog.text


def test_a_lack_of_memory_and_a_mistake_in_the_file_leave_no_bundle(tmp_path):
    run, step, parts, contexts = prepared(tmp_path)
    told = TrainingError("out of memory; use smaller micro-batches")
    told.__cause__ = torch.OutOfMemoryError("full")
    for error in (torch.OutOfMemoryError("full"), told, TrainingError("no loss depends on a parameter")):
        CrashReporter(run.config, run.folder.path).report_error(step, parts, contexts, error)
    assert not (run.folder.path / "crashes").exists()


def test_entries_that_no_file_can_hold_are_named(tmp_path):
    run, step, parts, contexts = prepared(tmp_path)
    parts[0].state |= {"object": [object()] * 4, "nested": {"a": [torch.ones(2), None, 1.5, "x"]}}
    parts[0].state["lq"][2] = NAN
    result = replay(report(run, step, parts, contexts))
    assert result.notes == ["'object' of the batch is no tensor, number or text and is not in the bundle"]
    assert result.diagnosis.reproduced


def test_what_a_loss_remembers_goes_along(tmp_path):
    text = toys.PSNR.replace("    losses:\n", "    losses:\n      memory: {type: toy_memory, weight: 1, in: gen}\n")
    run, step, parts, contexts = prepared(tmp_path, text)
    step.losses[0].loss.memory.fill_(NAN)
    found = replay(report(run, step, parts, contexts)).diagnosis
    assert found.cause.name == "loss 'memory'"
    assert found.buffers == {"loss memory.memory": "nan"}


def test_every_file_of_a_bundle_is_checked(tmp_path):
    run, step, parts, contexts = prepared(tmp_path)
    parts[0].state["lq"][2] = NAN
    bundle = report(run, step, parts, contexts)
    names = [path for path in bundle.rglob("*") if path.is_file() and path.name != "manifest.json"]
    for path in names:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert str(path.relative_to(bundle)) in find_fault(bundle)
        path.unlink()
        assert "is missing" in find_fault(bundle)
        path.write_bytes(content)
    assert find_fault(bundle) is None
    (bundle / "manifest.json").write_text("{}")
    assert find_fault(bundle) == "manifest.json is damaged"


def test_logs_carry_the_report(tmp_path, caplog):
    run, step, parts, contexts = prepared(tmp_path)
    parts[0].state["lq"][2] = NAN
    with caplog.at_level(logging.WARNING, logger="dlas"):
        report(run, step, parts, contexts)
    assert "step 'generator', iteration 1 (fp32, cpu): not finite" in caplog.text


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_a_bad_update_of_a_run_is_diagnosed_and_can_be_replayed(tmp_path, monkeypatch, caplog, policy):
    original = toys.ToyPairs.__getitem__

    def spoilt(self, request):
        sample = original(self, request)
        if self.training and request.position == 10:
            sample["lq"][0, 0, 0] = NAN
        return sample

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", spoilt)
    run = trainer(tmp_path, toys.PSNR, f"train.health.non_finite={policy}")
    if policy == "stop":
        with pytest.raises(TrainingError, match="iteration 3"):
            run.run()
    else:
        assert run.run().step == 8
    assert "cause: 'lq' of the batch" in caplog.text
    (bundle,) = bundles(tmp_path / "toy/crashes")
    assert bundle.name == "3-generator"
    found = replay(bundle).diagnosis
    assert found.reproduced
    assert [sample.position for sample in found.cause.samples] == [10]
    assert found.cause.samples[0].names["path"] in (bundle / "report.txt").read_text()


def test_spikes_are_not_diagnosed(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    bad = BadUpdate(step, 0, "spike", parts, contexts, {"generator/pix": 100.0})
    assert run.on_bad_update(bad) == ""
    assert not (run.folder.path / "crashes").exists()


def test_a_diagnosis_leaves_the_run_as_one_that_had_none(tmp_path, monkeypatch):
    """Two runs with a bad batch, one of which may not write bundles and so looks at nothing: the same bits."""
    original = toys.ToyPairs.__getitem__

    def spoilt(self, request):
        sample = original(self, request)
        if self.training and request.position == 10:
            sample["hq"][0, 0, 0] = NAN
        return sample

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", spoilt)
    for name, count in (("looked", 3), ("unseen", 0)):
        overrides = [f"name={name}", f"train.crash_bundles.count={count}", "train.health.non_finite=skip"]
        trainer(tmp_path, toys.PSNR, *overrides).run()
    assert len(bundles(tmp_path / "looked/crashes")) == 1
    assert not (tmp_path / "unseen/crashes").exists()
    assert_same_tensors(tmp_path / "looked/checkpoints/8", tmp_path / "unseen/checkpoints/8")
    assert rows(tmp_path / "looked", "train") == rows(tmp_path / "unseen", "train")
