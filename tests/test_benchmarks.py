"""The runner of benchmarks and the network that ours is compared with."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from pathlib import Path

import pytest
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


def test_an_unknown_case_is_an_error(monkeypatch, capsys):
    run = imported("run", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["run.py", "no_such"])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "no case no_such" in capsys.readouterr().err


def test_a_worker_answers_with_numbers(monkeypatch):
    worker = imported("paired", monkeypatch).Worker([sys.executable, "-uc", "print(2 * int(input()))"])
    assert worker.ask(3) == 6.0
    worker.close()
    assert json.dumps(imported("paired", monkeypatch).describe_machine())


def test_options_are_handed_on_to_the_scripts_that_take_them(monkeypatch, tmp_path):
    run = imported("run", monkeypatch)
    for name in ("takes", "other"):
        (tmp_path / f"{name}.py").write_text("import json, sys; print(json.dumps({'given': sys.argv[1:]}))")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "CASES", {name: [f"{name}.py"] for name in ("takes", "other")})
    monkeypatch.setattr(run, "TOLD_OF", {"--peers": ("takes.py",), "--peer-python": ("takes.py", "other.py")})
    given = {"--peers": "folder", "--peer-python": None}
    assert run.run("takes", False, given) == ([{"given": ["--peers", "folder"]}], True)
    assert run.run("other", False, given) == ([{"given": []}], True)


def test_a_network_of_another_program_is_imported_without_that_program(monkeypatch, tmp_path):
    networks = imported("peers.networks", monkeypatch)
    archs = tmp_path / "neosr" / "neosr" / "archs"
    archs.mkdir(parents=True)
    (archs.parent / "__init__.py").write_text("raise AssertionError('all of it is imported')")
    text = """
    from neosr.archs.arch_util import net_opt

    def esrgan(**options):
        return net_opt()[0], options
    """
    (archs / "esrgan_arch.py").write_text(textwrap.dedent(text))
    before = set(sys.modules)
    assert "neosr" in networks.available(tmp_path)
    try:
        assert networks.rrdbnet("neosr", tmp_path, 8, 2) == (4, {"num_feat": 8, "num_block": 2, "num_grow_ch": 32})
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
