"""The runner of benchmarks and the network that ours is compared with."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import torch

from dlas.archs.rrdb import RRDBNet

FOLDER = Path(__file__).parents[1] / "benchmarks"


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


def test_the_plain_network_is_ours(monkeypatch):
    plain = imported("plain_rrdb", monkeypatch).PlainRRDBNet(8, 2, 4)
    ours, x = RRDBNet(nf=8, nb=2, gc=4), torch.rand(1, 3, 5, 6)
    ours.load_state_dict(dict(zip(ours.state_dict(), plain.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(x), plain(x))


def test_cases_are_scripts_that_are_there(monkeypatch):
    cases = imported("run", monkeypatch).CASES
    assert all((FOLDER / script).is_file() for script, *_ in cases.values())


def test_results_of_a_case_are_collected_and_a_failure_is_told(monkeypatch, tmp_path):
    run = imported("run", monkeypatch)
    (tmp_path / "case.py").write_text("print('{\"case\": 1}'); print('words'); raise SystemExit(3)")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "CASES", {"case": ["case.py"]})
    assert run.run("case", echo=False) == ([{"case": 1}], False)


def test_an_unknown_case_is_an_error():
    result = subprocess.run([sys.executable, FOLDER / "run.py", "no_such"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no case no_such" in result.stderr


def test_a_worker_answers_with_numbers(monkeypatch):
    worker = imported("paired", monkeypatch).Worker([sys.executable, "-uc", "print(2 * int(input()))"])
    assert worker.ask(3) == 6.0
    worker.close()
    assert json.dumps(imported("paired", monkeypatch).describe_machine())
