"""What the documentation shows works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import toys  # noqa: F401  # registers its components
from dlas.config import check, load
from dlas.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT).as_posix()))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_components_of_the_guide_train(tmp_path):
    page = ROOT / "docs/extending.md"
    (tmp_path / "mine.py").write_text("\n".join(blocks(page, "python")))
    (options,) = blocks(page, "yaml")
    (tmp_path / "mine.yml").write_text(options)
    config = load(tmp_path / "mine.yml", ["train.niter=2", "logger.tensorboard=false", f"path.experiments={tmp_path}"])
    assert Trainer(config).run().step == 2
    row = (tmp_path / "mine/metrics.jsonl").read_text().splitlines()[0]
    assert "generator/edges" in row


def test_the_example_of_a_diffusion_trains_and_is_sampled(tmp_path):
    options, *_ = blocks(ROOT / "docs/diffusion.md", "yaml")
    (tmp_path / "flow.yml").write_text(options)
    small = ["eval.injectors.gen.steps=2", "datasets.val={mode: toy_pairs}"]
    run = ["train.niter=2", "logger.tensorboard=false", "logger.print_freq=1", f"path.experiments={tmp_path}"]
    assert check(tmp_path / "flow.yml") == []
    assert Trainer(load(tmp_path / "flow.yml", [*small, *run])).run().step == 2
    written = [json.loads(line) for line in (tmp_path / "sr_flow/metrics.jsonl").read_text().splitlines()]
    assert written[0]["generator/diffusion"] > 0
    assert written[-1]["psnr_y"] > 0
