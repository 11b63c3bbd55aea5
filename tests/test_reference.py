"""Listings, the generated pages and the schema for editors say what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from dlas.cli.main import main
from dlas.config import check
from dlas.config.schema import SECTIONS
from dlas.explain.catalogue import keys_of, options_of
from dlas.explain.reference import generated_files
from dlas.registry import REGISTRIES

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "options/schema.json").read_text())
OPTIONS = sorted((ROOT / "options").glob("*.yml"))
ENTRIES = [entry for registry in REGISTRIES for entry in registry.entries().values() if entry.source.startswith("dlas.")]


def test_the_generated_files_are_up_to_date(capsys):
    assert main(["reference", "--check", "-o", str(ROOT)]) == 0, capsys.readouterr().err


def test_what_is_written_is_what_is_generated(tmp_path):
    assert main(["reference", "-o", str(tmp_path)]) == 0
    for path, text in generated_files().items():
        assert (tmp_path / path).read_text() == text
    (tmp_path / "docs/reference/old.md").write_text("a kind that is no more")
    assert main(["reference", "--check", "-o", str(tmp_path)]) == 2
    assert main(["reference", "-o", str(tmp_path)]) == 0
    assert not (tmp_path / "docs/reference/old.md").exists()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind}-{e.name}")
def test_every_option_has_a_meaning(entry):
    for option in options_of(entry):
        assert option.meaning, option.name


def test_every_key_of_every_section_has_a_meaning():
    for cls in SECTIONS.values():
        assert all(option.meaning for option in keys_of(cls)), cls.__name__


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", OPTIONS, ids=lambda p: p.name)
def test_shipped_files_fit_the_schema_and_name_it(path):
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.Draft202012Validator(SCHEMA).validate(_plain(text))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("niter: 1200", "nitre: 1200"),
        ("niter: 1200", "niter: 0"),
        ("niter: 1200", "niter: many"),
        ("which_model_G: RRDBNet", "which_model_G: RRDBnet"),
        ("nf: 24", "nff: 24"),
        ("nf: 24", "nf: 2.5"),
        ("criterion: l1", "criterion: l3"),
        ("mode: builtin_photos", "mode: builtin_fotos"),
        ("precision: auto", "precision: bf32"),
        ("metrics: [psnr_y, ssim_y]", "metrics: [psnr_z]"),
        ("in: lq", "inn: lq"),
        ("target_size: 128", "target_size: -4"),
    ],
)
def test_what_the_checker_refuses_the_schema_refuses(tmp_path, before, after):
    text = (ROOT / "options/train_x.yml").read_text()
    assert before in text
    broken = text.replace(before, after, 1)
    path = tmp_path / "broken.yml"
    path.write_text(broken)
    assert any(problem.severity == "error" for problem in check(path))
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(_plain(broken))


def test_older_spellings_fit_the_schema():
    older = yaml.safe_load((ROOT / "tests/upstream-recipes/srflow/train_div2k_rrdb_psnr.yml").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(older)


def test_listings(capsys):
    assert main(["list", "archs"]) == 0
    assert "RRDBNet" in capsys.readouterr().out
    assert main(["list", "archs", "RRDBNet"]) == 0
    out = capsys.readouterr().out
    assert "zero_init_last" in out
    assert "23" in out
    assert main(["list", "sections", "train"]) == 0
    assert "niter" in capsys.readouterr().out
    assert main(["list", "archs", "RRDBnet"]) == 2


def _plain(text: str):
    """As an editor reads it: YAML 1.2 numbers."""
    from dlas.config.source import parse_yaml, plain

    tree, problems = parse_yaml(text, "file")
    assert not problems
    return plain(tree)
