"""A run in words and as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import toys
from dlas.cli.main import main
from dlas.config import load
from dlas.explain.mermaid import mermaid
from dlas.explain.picture import draw
from dlas.explain.words import explain
from runs import configure

ROOT = Path(__file__).resolve().parent.parent
TRAINING = sorted((ROOT / "options").glob("train*.yml"))


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_the_words_name_everything_in_the_file(path):
    config = load(path)
    words = " ".join(explain(config, str(path)).split())
    for name, network in config.networks.items():
        assert f"{name}: {network.which_model}" in words
    for name, step in config.steps.items():
        assert f"Step {name} trains" in words
        for each in [*step.injectors, *step.losses]:
            assert each in words
        assert f"lr {step.optimizer_params['lr']:g}" in words.replace("e-05", "e-5")
    assert f"{config.train.niter} iterations" in words.replace(",", "")
    for metric in config.eval.metrics:
        assert metric in words


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.name)
def test_the_picture_is_well_formed_and_shows_every_part(path):
    config = load(path)
    root = ElementTree.fromstring(draw(config))
    assert root.tag.endswith("svg")
    texts = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
    shown = " ".join(texts)
    for section in (config.networks, config.datasets, config.steps):
        for name in section:
            assert name in shown
    for step in config.steps.values():
        for name, loss in step.losses.items():
            assert name in shown
            assert loss.type in shown
    width, height = float(root.get("width")), float(root.get("height"))
    for node in root.iter():
        if node.tag.endswith("rect") and node.get("x") is not None:
            assert 0 <= float(node.get("x")) <= float(node.get("x")) + float(node.get("width")) <= width
            assert 0 <= float(node.get("y")) <= height


def test_names_cannot_break_the_picture(tmp_path):
    text = toys.PSNR.replace("pix: {type: pix", "'a<b>&\"c': {type: pix")
    config = configure(tmp_path, text)
    assert 'a<b>&"c' in "".join(ElementTree.fromstring(draw(config)).itertext())
    assert "a#lt;b#gt;#amp;#quot;c" in mermaid(config)


def test_mermaid_text_has_the_grammar_of_a_flow_chart():
    lines = mermaid(load(ROOT / "options/train_gan_x.yml")).splitlines()
    assert lines[0] == "flowchart LR"
    node = re.compile(r"(\w+)(\[\(|\(\[|\{\{|\[)\"[^\"]*\"(\)\]|\]\)|\}\}|\])$")
    arrow = re.compile(r"(\w+) -->\|\"[^\"]*\"\| (\w+)$")
    defined, used, depth = set(), set(), 0
    for line in (each.strip() for each in lines[1:]):
        if found := arrow.match(line):
            used |= set(found.groups())
        elif line.startswith("subgraph "):
            depth += 1
        elif line == "end":
            depth -= 1
        else:
            found = node.match(line)
            assert found, line
            defined.add(found[1])
    assert depth == 0
    assert used <= defined


def test_gates_and_schedules_are_told(tmp_path):
    config = load(ROOT / "options/train_gan_x.yml")
    words = explain(config, "file")
    assert "from iteration 200 on" in words
    assert "It runs from iteration 100 on" in words
    assert "one_cycle" in explain(load(ROOT / "options/train_x.yml"), "file")
    stepped = configure(tmp_path, toys.PSNR, "train.lr_scheme={type: StepLR, step_size: 2}")
    assert "StepLR" in explain(stepped, "file")
    assert "<svg" in draw(stepped)


def test_the_command_prints_and_draws(tmp_path, capsys):
    picture = tmp_path / "run.svg"
    assert main(["explain", "-opt", str(ROOT / "options/train_x.yml"), "-o", str(picture)]) == 0
    assert "The run train_x" in capsys.readouterr().out
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert main(["explain", "-opt", str(ROOT / "options/train_x.yml"), "-o", str(tmp_path / "none/run.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err
