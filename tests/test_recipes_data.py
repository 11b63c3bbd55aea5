"""The script that makes a small set of photographs out of Debian's packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "recipes/data/make_photographs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_photographs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def plant(tree: Path, photograph, width: int, height: int) -> None:
    path = tree / photograph.path
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_the_list_has_54_photographs_with_names_of_their_own_and_a_fixed_split(script):
    found = script.photographs()
    assert len(found) == len({p.name for p in found}) == 54
    assert {p.name for p in found if p.is_validation} == set(script.VALIDATION)
    assert len(script.VALIDATION) == 8


def test_jpegs_are_halved_splits_kept_apart_and_what_lacks_is_told(script, tmp_path):
    by_name = {p.name: p for p in script.photographs()}
    plant(tmp_path / "tree", by_name["Wood"], 1200, 960)  # JPEG, trained on
    plant(tmp_path / "tree", by_name["beam"], 500, 300)  # PNG, trained on, lower than a tile
    plant(tmp_path / "tree", by_name["appleflower"], 100, 80)  # PNG, validation
    missing = script.write(tmp_path / "tree", tmp_path / "out")
    assert len(missing) == 51
    sizes = {
        str(p.relative_to(tmp_path / "out").as_posix()): Image.open(p).size for p in sorted((tmp_path / "out").rglob("*.png"))
    }
    assert sizes == {
        "train/HR/Wood.png": (600, 480),
        "train/HR/beam.png": (500, 300),
        "train/HR_sub/Wood_s001.png": (480, 480),
        "train/HR_sub/Wood_s002.png": (480, 480),
        "train/HR_sub/beam_s001.png": (480, 300),
        "train/HR_sub/beam_s002.png": (480, 300),
        "valid/HR/appleflower.png": (100, 80),
    }
    assert "train/HR/Wood.png\tmate-backgrounds\t" in (tmp_path / "out/SOURCES.txt").read_text()


def test_tiles_cover_a_photograph_to_its_edges_and_flat_ones_are_left_out(script):
    pixels = np.random.default_rng(0).integers(0, 256, (480, 1000, 3), dtype=np.uint8)
    assert [script._starts(n) for n in (300, 480, 720, 1000)] == [[0], [0], [0, 240], [0, 240, 480, 520]]
    assert len(list(script.tiles(Image.fromarray(pixels)))) == 4
    pixels[:, :480] = 128
    assert len(list(script.tiles(Image.fromarray(pixels)))) == 3


def test_without_apt_the_message_says_what_to_fetch(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert script.main([str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "apt-get is not here" in said
    assert "palapeli-data" in said
    assert "--debs" in said


def test_a_folder_with_files_is_not_written_into(script, tmp_path, capsys):
    (tmp_path / "mine.png").touch()
    assert script.main([str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
