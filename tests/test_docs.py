"""What the documentation shows works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlas.config import load
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
