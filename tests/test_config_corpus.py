"""Files that are wrong in one way each: exactly the expected problems are found, at their places, and no others.

Each file under `tests/config/broken` begins with what is expected of it::

    # expect: [FILE:]LINE:COLUMN SEVERITY PATH: part of the message or of the proposed fix
    # set: key=value         an override from the command line; the place of its problems is called `set`
    # mode: test             the file is for testing

FILE is given for problems in an included file (relative to the folder); a path of `-` stands for the whole file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dlas.config import Problem, check

FOLDER = Path(__file__).resolve().parent / "config" / "broken"
FILES = sorted(FOLDER.glob("*.yml"))
EXPECTATION = re.compile(r"# expect: (?P<place>\S+) (?P<severity>\S+) (?P<path>\S+): (?P<text>.*)")


def header(path: Path) -> tuple[list[re.Match[str]], list[str], str]:
    """Expectations, overrides and mode of a file."""
    expected, overrides, mode = [], [], "train"
    for line in path.read_bytes().decode().splitlines():
        if match := EXPECTATION.fullmatch(line):
            expected.append(match)
        elif line.startswith("# set: "):
            overrides.append(line.removeprefix("# set: "))
        elif line.startswith("# mode: "):
            mode = line.removeprefix("# mode: ")
        else:
            break
    return expected, overrides, mode


def place_of(problem: Problem, path: Path) -> str:
    if problem.mark.file.startswith("--set"):
        return "set"
    file = Path(os.path.relpath(problem.mark.file, FOLDER)).as_posix()
    position = f"{problem.mark.line}:{problem.mark.column}"
    return position if file == path.name else f"{file}:{position}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exactly_the_expected_problems_are_found(path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    expected, overrides, mode = header(path)
    assert expected, "the file says nothing of what is expected"
    found = check(path, overrides, mode)
    listing = "\n".join(map(str, found))
    assert [(place_of(p, path), p.severity, p.path or "-") for p in found] == [
        (e["place"], e["severity"], e["path"]) for e in expected
    ], listing
    for problem, expectation in zip(found, expected, strict=True):
        assert expectation["text"] in f"{problem.message}; {problem.fix}".replace(f"{FOLDER}/", ""), listing


def test_the_corpus_is_large_and_every_error_says_what_to_do():
    assert len(FILES) >= 150
    without = set()
    for path in FILES:
        _, overrides, mode = header(path)
        without |= {p.message for p in check(path, overrides, mode) if not p.fix and "expected" not in p.message}
    # What stands in the message itself, and faults of YAML's own that have no single mending.
    allowed = ("not valid YAML", "cannot be read", "nested more than", "the file has more than", "plugin ", "this is no path")
    assert [message for message in sorted(without) if not message.startswith(allowed)] == []


def test_a_batch_is_shared_by_the_processes_that_there_are(tmp_path, monkeypatch):
    path = tmp_path / "file.yml"
    text = (FOLDER / "batch_micro.yml").read_text().replace("mega_batch_factor: 16", "mega_batch_factor: 4")
    path.write_text(text)
    for processes, expected in (("1", ""), ("2", ""), ("4", "a batch of 2 on each of 4 processes cannot be cut into 4"),
                                ("3", "a batch of 8 cannot be shared evenly by 3 processes")):  # fmt: skip
        monkeypatch.setenv("WORLD_SIZE", processes)
        found = check(path)
        assert bool(found) == bool(expected)
        assert all(expected in problem.message for problem in found)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("every: 2", False),
        ("every: 3", True),
        ("every: 6", True),
        ("after: 2\n        every: 3", True),
        ("after: 4", False),
    ],
)
def test_gates_are_compared_as_sets_of_iterations(tmp_path, text, fits):
    """Two writers that together cover what is read: multiples of 3, and the iterations before 4."""
    source = (FOLDER / "reach_data_only.yml").read_text()
    source = source.replace(
        "        out: gen\n",
        "        out: gen\n      a: {type: direct, in: gen, out: x, every: 3, train: true}\n",
    )
    source = source.replace("        fake: hq\n", f"        fake: x\n        {text}\n")
    path = tmp_path / "file.yml"
    path.write_text(source)
    problems = [p for p in check(path) if "nothing has written 'x'" in p.message]
    assert (problems == []) == fits, problems
