"""Comparing what runs reached in which time."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import toys
from dlas.cli.main import main
from dlas.errors import DataError
from dlas.observe.curves import draw, read_curves
from runs import trainer


def run_folder(path: Path, values: list[tuple[float, int, float | None]], **more: Any) -> Path:
    path.mkdir()
    head = {"phase": "train", "step": 1, "samples": 4, "seconds": 0.5, "generator/pix": 0.1}
    lines = [json.dumps(head)]
    for seconds, step, value in values:
        row = {"phase": "val", "step": step, "samples": 4 * step, "seconds": seconds, "set": "photos", "psnr_y": value, **more}
        lines.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"phase": "val", "st')  # killed while it wrote
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        run_folder(tmp_path / "plain", [(10, 100, 20.0), (20, 200, 22.0), (40, 400, None), (80, 800, 21.5)]),
        run_folder(tmp_path / "fast", [(5, 100, 21.0), (9, 200, 22.5), (30, 600, 23.0)], lpips=0.3),
    ]


def test_tables_tell_best_last_and_time_to_the_same_figure(two, capsys, tmp_path):
    assert main(["compare", *map(str, two), "-o", str(tmp_path / "a.svg")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["psnr_y", "of", "photos,"]
    assert lines[2] == ["plain", "22.0000", "200", "20.0", "21.5000", "80.0", "20.0"]
    assert lines[3] == ["fast", "23.0000", "600", "30.0", "23.0000", "30.0", "9.0"]
    assert lines[-2:] == [["100", "20.0000", "21.0000", "+1.0000"], ["200", "22.0000", "22.5000", "+0.5000"]]


def test_less_may_be_better_and_a_run_may_never_get_there(two, capsys):
    assert main(["compare", str(two[1]), str(two[0]), "--mode", "min", "--metric", "psnr_y"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2][:3] == ["fast", "21.0000", "100"]
    assert lines[3][-1] == "10.0"
    assert main(["compare", str(two[1]), str(two[0])]) == 0
    assert "not reached" in capsys.readouterr().out


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("axis", ["seconds", "step", "samples"])
def test_the_picture_has_a_mark_for_each_validation_in_order(two, axis, logarithmic):
    _, _, found = read_curves(two, None, None)
    picture = ET.fromstring(draw(found, "<psnr> & more", axis, logarithmic))
    circles = [each.attrib for each in picture if each.tag.endswith("circle")]
    assert len(circles) == 3 + 3
    for own in (circles[:3], circles[3:]):
        assert [float(c["cx"]) for c in own] == sorted(float(c["cx"]) for c in own)
    assert all(0 < float(c["cx"]) < 640 and 0 < float(c["cy"]) < 320 for c in circles)
    assert float(circles[1]["cy"]) < float(circles[0]["cy"])  # 22 lies above 20
    words = [each.text for each in picture if each.tag.endswith("text")]
    assert {"plain", "fast", axis, "<psnr> & more"} <= set(words)


def test_a_single_validation_is_a_picture_too(tmp_path):
    _, _, found = read_curves([run_folder(tmp_path / "one", [(10, 100, 20.0)])], None, None)
    for logarithmic in (False, True):
        assert "nan" not in draw(found, "t", "seconds", logarithmic)


def test_what_is_missing_is_named(two, tmp_path, capsys):
    with pytest.raises(DataError, match="no validation gives 'lpips' of 'photos'; there are: photos: psnr_y"):
        read_curves(two, "lpips", None)
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) != 0
    assert "metrics.jsonl: No such file" in capsys.readouterr().err
    (tmp_path / "empty/metrics.jsonl").write_text("")
    assert main(["compare", str(tmp_path / "empty")]) != 0
    assert "there is no validation in it" in capsys.readouterr().err
    one = run_folder(tmp_path / "own", [(1, 1, 1.0)], bound=2.0)
    assert main(["compare", str(one), "--metric", "bound"]) != 0
    assert "--mode max" in capsys.readouterr().err


def test_a_cyclic_run_has_a_point_at_each_trough(tmp_path):
    scheme = "train.lr_scheme={type: cyclic_tradeoff, first_cycle: 2}"
    trainer(tmp_path, toys.PSNR, "train.niter=14", "train.val_freq=0", scheme).run()
    _, metric, (curve,) = read_curves([tmp_path / "toy"], None, None)
    assert metric == "psnr"
    assert [x for x, _ in curve.along("step")] == [2, 6, 14]
