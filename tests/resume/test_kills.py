"""A few kills of each configuration; `python tests/resume/harness.py` makes hundreds."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from resume.configurations import CONFIGURATIONS
from resume.harness import Harness, differences, server, stage_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and forks")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    with server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, forks, name):
    harness = Harness(name, tmp_path / "runs", forks)
    report = harness.kill_often(3, per_run=3)
    assert report.differences == []
    assert sum(report.kills.values()) >= 3
    rows = [json.loads(line) for line in (harness.reference / "metrics.jsonl").read_text().splitlines()]
    if name == "workers":
        assert [row["bad_files"] for row in rows if row["phase"] == "train"][-1] == 2
    if name == "fp16":
        scales = [
            json.loads((harness.reference / f"checkpoints/{step}/state.json").read_text())["optimizers"] for step in (3, 40)
        ]
        assert all('"scale", 65536' not in json.dumps(each) for each in scales)


def test_what_differs_is_found(tmp_path, forks):
    one = Harness("gan", tmp_path / "runs", forks).reference
    for folder in (one / "checkpoints").glob("[0-9]*"):
        if folder.name not in ("6", "36", "39", "40"):
            shutil.rmtree(folder)
    two = shutil.copytree(one, tmp_path / "two")
    assert differences(one, two) == []

    def after(change):
        shutil.rmtree(two)
        shutil.copytree(one, two)
        change()
        (found,) = differences(one, two)
        return found

    rows = (one / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "rows instead of" in after(lambda: (two / "metrics.jsonl").write_text("".join(rows[:-1])))
    assert "rows instead of" in after(lambda: (two / "metrics.jsonl").write_text("".join([rows[0], *rows])))
    assert "tensors differ" in after(
        lambda: shutil.copy(one / "checkpoints/36/generator.safetensors", two / "checkpoints/39/generator.safetensors")
    )
    assert "says 3 instead of 40" in after(lambda: (two / "checkpoints/latest").write_text("3"))
    assert "checkpoints" in after(lambda: shutil.rmtree(two / "checkpoints/6"))
    assert "other pictures" in after(lambda: (two / "val/val/picture0/7.png").write_bytes(b""))
    state = json.loads((one / "checkpoints/39/state.json").read_text())
    state["progress"]["best"] = {}
    assert "another state.json" in after(lambda: (two / "checkpoints/39/state.json").write_text(json.dumps(state)))


def test_stages_are_read_from_stacks():
    def stacks(*calls):
        return "\n".join(f'  File "/x/dlas/engine/{call.split()[0]}", line 9 in {call.split()[1]}' for call in calls)

    assert stage_of(stacks("checkpoint.py _write", "checkpoint.py save", "trainer.py save")) == "checkpoint"
    assert stage_of(stacks("checkpoint.py load", "trainer.py _restore", "trainer.py _run")) == "restoring"
    assert stage_of(stacks("iteration.py run", "trainer.py advance")) == "training step"
    assert stage_of("") == "start-up"
