"""Every planted fault is found, in its place and with its figures; sound data are clean; nothing depends on the workers."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import planted
import toys
from dlas.cli.main import main
from dlas.config import load
from dlas.data.audit import Audit, audit, render, write_report
from dlas.data.audit.alignment import RESOLUTION, estimate_shift
from dlas.data.audit.findings import KINDS
from dlas.data.audit.likeness import find_like, likeness, luma, near_duplicates
from dlas.data.images.files import read_image
from dlas.data.images.pairs import shrink
from dlas.data.images.photographs import TRAIN, VALIDATION, locate
from dlas.data.pool import map_in_processes
from dlas.engine.inventories import inventories
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = [*TRAIN, *VALIDATION]


def audited(path: Path, *overrides: str, workers: int = 0, mode=None) -> Audit:
    return audit(inventories(load(path, overrides, mode)), workers)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    (root / "options.yml").write_text(planted.plant(root))
    return root / "options.yml"


@pytest.fixture(scope="module")
def result(options) -> Audit:
    return audited(options)


EXPECTED = {
    "train": {
        ("unreadable", "hq/truncated.png", r"is damaged or truncated \(5000 bytes\)"),
        ("alone", "hq/alone.png", "has no low-quality partner alone.* in"),
        ("alone", "lq/widow.png", "has no high-quality partner in"),
        ("size", "lq/scale2.png", "scale 4 makes 40 x 40; looks like scale 2"),
        ("too_small", "hq/small.png", "100 x 100; expected at least 128 each way"),
        ("unlike", "lq/other.png", "it looks like ROOT/train/hq/good2.png"),
        ("shifted", "lq/shift_half.png", "by +0.50 right and +0.00 down"),
        ("shifted", "lq/shift_one.png", "by +1.00 right and +0.00 down"),
        ("slightly_shifted", "lq/shift_quarter.png", "by +0.2"),
        ("duplicate", "hq/good0.png", "same pixels as ROOT/train/hq/copy.png"),
        ("blank", "hq/blank.png", "every pixel is the same"),
        ("blank", "lq/blank.png", "every pixel is the same"),
    },
    "val": {
        ("unreadable", "l_web.png", "is a web page, not an image"),
        ("unreadable", "m_empty.png", "is empty (0 bytes)"),
        ("leak", "b_leak.png", "ROOT/train/hq/good2.png has the same pixels and is in datasets.train"),
        ("near_leak", "c_near_leak.jpg", "like ROOT/train/hq/good1.png in datasets.train"),
        ("transparent", "e_alpha.png", "PNG, RGBA"),
        ("profile", "f_profile.png", "profile 'Lab identity built-in'"),
        ("animated", "g_animation.gif", "GIF of 2 pictures"),
        ("grey", "h_grey.png", "PNG, 8 bits"),
        ("converted", "i_cmyk.jpg", "CMYK"),
        ("turned", "j_turned.png", "orientation 6"),
        ("ending", "k_named.png", "is a JPEG file"),
    },
    "gone": {("unusable", "", "nowhere: does not exist; expected a folder of images")},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_planted_fault_is_found_and_nothing_else(result, options, name):
    root = options.parent
    found = {f for f in result.findings if f.dataset == name}
    for kind, file, detail in EXPECTED[name]:
        folder = root / name
        text = detail.replace("ROOT", str(root)).replace("\\", "")
        matching = {
            f for f in found if f.kind == kind and (not file or f.files[0] == folder / file) and text in f.detail
        }  # fmt: skip
        assert len(matching) == 1, (kind, file, [f for f in found if f.kind == kind])
        found -= matching
    assert not found


def test_the_report_groups_counts_and_cuts_long_lists(result):
    text = render(result, examples=1)
    assert "train (paired_images): 13 pairs" in text
    assert "  ERROR    2 files: low-quality image is shifted against the high-quality one\n" in text
    assert "and 1 more" in text
    assert "shift_one" not in text and "shift_one" in render(result, examples=2)
    assert text.splitlines()[-1] == "26 samples of 3 data sets read: 12 errors, 8 warnings, 4 notes"
    for kind in {finding.kind for finding in result.findings}:
        assert KINDS[kind].fix in text


def test_the_written_reports_are_complete(result, tmp_path):
    write_report(result, tmp_path / "r.json")
    document = json.loads((tmp_path / "r.json").read_text())
    assert (document["errors"], document["warnings"], document["notes"]) == (12, 8, 4)
    assert len(document["findings"]) == 24
    assert len(document["datasets"]["train"]["samples"]) == 13
    half = next(s for s in document["datasets"]["train"]["samples"] if s["hq"]["path"].endswith("shift_half.png"))
    assert half["pair"]["shift"] == [0.0, 0.5]
    assert half["hq"]["width"] == planted.SIDE and half["hq"]["bits"] == 8
    write_report(result, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert rows[0]["severity"] == "error" and rows[0]["kind"] == "unreadable" and rows[0]["file"].endswith("truncated.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.json"]


def test_the_result_does_not_depend_on_the_workers(options, result):
    assert audited(options, workers=2).findings == result.findings


def test_the_command(options, tmp_path, capsys):
    assert main(["data", "audit", "-opt", str(options), "--workers", "0", "--report", str(tmp_path / "r.json")]) == 1
    assert "12 errors" in capsys.readouterr().out
    assert (tmp_path / "r.json").is_file()
    only_warnings = ["--set", "datasets={train: {mode: builtin_photos, batch_size: 2}}"]
    assert main(["data", "audit", "-opt", str(options), "--workers", "0", *only_warnings]) == 0
    out = capsys.readouterr().out
    assert "rocket.jpg: profile 'Adobe RGB (1998)'" in out and "0 errors, 1 warning" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "datasets.train.scael=4"], "scael"),
        (["--set", "datasets.train.filename_template=x"], "datasets.train: filename_template 'x' must be a file name"),
        (["--report", "r.txt"], "--report r.txt: expected a name ending in .json or .csv"),
        (["--report", "/nowhere/r.json"], "there is no folder /nowhere"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(options, capsys, arguments, message):
    assert main(["data", "audit", "-opt", str(options), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_needs_a_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["data"])
    assert end.value.code == 2
    assert "audit" not in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once(options, tmp_path):
    many = tmp_path / "many"
    photograph = read_image(locate(TRAIN[0]))
    big = np.tile(photograph, (2, 2, 1))
    planted.save(many / "0.png", big)
    for index in range(1, 300):
        os.link(many / "0.png", many / f"{index}.png")
    command = [sys.executable, "-m", "dlas", "data", "audit", "-opt", str(options), "--workers", "2"]
    command += ["--set", f"datasets={{train: {{mode: paired_images, dataroot_gt: {many}, batch_size: 1}}}}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "codes")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                               start_new_session=True)  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert (out, err.strip()) == ("", "stopped; no report was written")


# ---------------------------------------------------------------------------------------------- every kind of data set


def entry(path: Path, text: str) -> Path:
    path.write_text(toys.PSNR.replace("train: {mode: toy_pairs, batch_size: 4}", text))
    return path


def video(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in range(12):
        writer.write(np.full((48, 64, 3), value * 20, np.uint8))
    writer.release()
    return path


def test_each_mode_lists_what_it_reads(tmp_path):
    images = tmp_path / "images"
    for index in range(3):
        planted.save(images / f"a/{index}.png", planted.part(index, side=64))
    (images / "a/3.png").write_bytes(b"nothing")
    planted.save(images / "a/ref.png", planted.part(3))
    clip = video(tmp_path / "v.avi")
    modes = {
        "train": f"train: {{mode: imagefolder, paths: {images}, weights: [2], target_size: 96, batch_size: 1}}",
        "tiles": f"train: {{mode: single_image_extensible, paths: {images}, target_size: 64, ignore_first: 1, batch_size: 1}}",
        "folder": f"a: {{mode: imagefolder, paths: {images}, center_crop_hq_sz: 80}}",
        "full": f"b: {{mode: fullimage, dataroot_GT: {images}, force_multiple: 40}}",
        "inputs": f"c: {{mode: input_images, dataroot: {images}}}",
        "video": f"d: {{mode: video_frames, video_file: {clip}, start_at_seconds: 0.5}}",
    }
    config = ["train: {mode: toy_pairs, batch_size: 1}"]
    found = {}
    for name, text in modes.items():
        lines = [text] if text.startswith("train") else [*config, text]
        path = entry(tmp_path / f"{name}.yml", "\n  ".join(lines))
        sets = audited(path, mode="train").sets
        findings = audited(path, mode="train").findings
        key = text.split(":")[0]
        found[name] = (
            next(len(s.items) for s in sets if s.source.name == key),
            {(f.kind, f.files[0].name) for f in findings if f.dataset == key},
        )
    bad = ("unreadable", "3.png")
    enlarged = {("enlarged", f"{index}.png") for index in range(3)}
    assert found["train"] == (5, {bad, *enlarged})  # with `weights` an image is still read once
    assert found["tiles"] == (3, {bad})
    assert found["folder"] == (5, {bad, *{("too_small", f"{index}.png") for index in range(3)}})
    assert found["full"] == (5, {bad, *{("too_small", f"{index}.png") for index in range(3)}})
    assert found["inputs"] == (5, {bad})
    assert found["video"] == (1, set())


def test_a_video_that_is_cut_off_is_found(tmp_path):
    clip = video(tmp_path / "v.avi")
    path = entry(
        tmp_path / "o.yml", f"train: {{mode: toy_pairs, batch_size: 1}}\n  d: {{mode: video_frames, video_file: {clip}}}"
    )
    named = inventories(load(path))
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    (finding,) = [f for f in audit(named).findings if f.dataset == "d"]
    assert finding.kind == "unreadable"
    assert "cannot be read; the file may be damaged or cut off" in finding.detail


def test_a_set_that_does_not_list_its_files_is_named(tmp_path):
    path = entry(tmp_path / "o.yml", "train: {mode: toy_pairs, batch_size: 1}")
    result = audited(path)
    assert [(f.kind, f.dataset, f.detail) for f in result.findings] == [
        ("not_audited", "train", "mode toy_pairs"),
        ("not_audited", "val", "mode toy_pairs"),
    ]
    assert result.count("error") == 0


def test_every_shipped_mode_lists_its_files_or_says_why_not():
    without = {"toy_pairs", "my_noise"}
    from dlas.data.base import Dataset

    for name, found in DATASETS.entries().items():
        if found.source.startswith("dlas.") and name not in without:
            assert DATASETS.get(name).inventory.__func__ is not Dataset.inventory.__func__, name


def test_folders_that_overlap_are_told(tmp_path):
    planted.save(tmp_path / "all/part/a.png", planted.part(0))
    folders = f"[{tmp_path}/all, {tmp_path}/all/part]"
    path = entry(tmp_path / "o.yml", f"train: {{mode: paired_images, dataroot_gt: {folders}, batch_size: 1}}")
    kinds = [f.kind for f in audited(path).findings if f.dataset == "train"]
    assert kinds == ["listed_twice"]


# ---------------------------------------------------------------------------------------------------------- alignment


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda p: Path(p.file).stem)
@pytest.mark.parametrize("scale", [2, 4])
def test_low_quality_images_in_place_have_no_shift(photograph, scale):
    hq = read_image(locate(photograph))
    hq = hq[: hq.shape[0] // scale * scale, : hq.shape[1] // scale * scale]
    small = shrink(hq, scale)
    reference = luma(small)
    assert estimate_shift(reference, reference) == (0, 0)
    size = (hq.shape[1] // scale, hq.shape[0] // scale)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=40)
    noisy = small + np.random.default_rng(0).normal(0, 25, small.shape)
    others = {
        "area": cv2.resize(hq, size, interpolation=cv2.INTER_AREA),
        "bilinear": cv2.resize(hq, size, interpolation=cv2.INTER_LINEAR),
        "jpeg": np.array(Image.open(buffer)),
        "noise": noisy.clip(0, 255).round().astype(np.uint8),
    }
    for name, image in others.items():
        shift = estimate_shift(reference, luma(image))
        assert shift is None or max(map(abs, shift)) <= 0.1 + 1e-9, name


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda p: Path(p.file).stem)
@pytest.mark.parametrize("pixels", [1, 2, -2, 4, 12])
def test_a_shift_is_measured_to_a_fraction_of_a_pixel(photograph, pixels):
    hq = read_image(locate(photograph))
    hq = hq[: hq.shape[0] // 4 * 4, : hq.shape[1] // 4 * 4]
    reference = luma(shrink(hq, 4))
    right = estimate_shift(reference, luma(shrink(np.roll(hq, pixels, axis=1), 4)))
    down = estimate_shift(reference, luma(shrink(np.roll(hq, pixels, axis=0), 4)))
    tolerance = RESOLUTION * (1 if abs(pixels) <= 4 else 2) + 1e-9  # with 12, a tenth of the rocket's height is other content
    assert right == pytest.approx((0, pixels / 4), abs=tolerance)
    assert down == pytest.approx((pixels / 4, 0), abs=tolerance)


def test_where_no_shift_can_be_told_none_is():
    plain = np.full((40, 40), 7.0)
    noise = np.random.default_rng(0).normal(0, 1, (2, 64, 64))
    assert estimate_shift(plain, plain) is None
    assert estimate_shift(noise[0, :8], noise[1, :8]) is None
    assert estimate_shift(noise[0], noise[1]) is None


# ---------------------------------------------------------------------------------------------------------- likeness


def resaved(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


ALTERED = {
    "jpeg": partial(resaved, quality=30),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda image: (image * 0.9 + 20).astype(np.uint8),
    "less contrast": lambda image: (image * 0.8 + 25).astype(np.uint8),
    "a row less": lambda image: image[1:, 1:],
}


@pytest.mark.parametrize("how", ALTERED)
def test_altered_copies_are_near_and_other_pictures_are_not(how):
    images = [read_image(locate(photograph)) for photograph in PHOTOGRAPHS]
    known = [likeness(image, luma(image)) for image in images]
    altered = [ALTERED[how](image) for image in images]
    likes = [likeness(image, luma(image)) for image in altered]
    assert near_duplicates(known) == {}
    assert near_duplicates(known + likes) == {14 + index: index for index in range(14)}
    assert [find_like(like, known) for like in likes] == list(range(14))


def test_plain_tiles_are_not_near_duplicates():
    sky = read_image(locate(TRAIN[3]))  # a rocket in front of a grey sky
    tiles = [sky[y : y + 48, x : x + 48] for y in range(0, 384, 48) for x in range(0, 624, 48)]
    assert near_duplicates([likeness(tile, luma(tile)) for tile in tiles]) == {}


def test_many_alike_cost_one_comparison_each():
    image = planted.part(0)
    noise = np.random.default_rng(0)
    likes = []
    for _ in range(300):
        frame = (image + noise.normal(0, 1, image.shape)).clip(0, 255).astype(np.uint8)
        likes.append(likeness(frame, luma(frame)))
    assert near_duplicates(likes) == dict.fromkeys(range(1, 300), 0)


# -------------------------------------------------------------------------------------------------------------- pool


def deadly(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * 10


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_one_result(workers):
    found = list(map_in_processes(deadly, range(12), workers, died=lambda number: -number))
    assert found == [number * 10 if number != 3 else -3 for number in range(12)]
    assert multiprocessing.active_children() == []


def test_inputs_are_drawn_as_they_are_needed():
    drawn = []

    def inputs():
        for number in range(1000):
            drawn.append(number)
            yield number

    results = map_in_processes(abs, inputs(), 2, died=abs)
    assert next(results) == 0
    assert len(drawn) < 20
    results.close()
    assert multiprocessing.active_children() == []


def test_a_report_that_cannot_be_written_says_so(result, tmp_path):
    (tmp_path / "r.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"r\.json: is a folder"):
        write_report(result, tmp_path / "r.json")
