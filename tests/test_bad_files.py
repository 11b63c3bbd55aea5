"""A file that goes bad while it is in use, in every mode that reads files: named, and left out if that is asked for."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dlas.cli.main import main
from dlas.data.base import BadSample, Dataset, create_dataset
from dlas.data.images import png_rows
from dlas.data.images.files import list_images, read_image
from dlas.data.images.pairs import shrink, unique_names
from dlas.data.loader import build_loader, evaluation_items
from dlas.data.sampler import SampleOrder
from dlas.errors import DataError, printable
from planted import encoded, part, save

VICTIM = "b.png"


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_by_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing.png")


def make_sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 << 30)


DAMAGE = {
    "gone": (Path.unlink, "does not exist"),
    "emptied": (lambda path: path.write_bytes(b""), "is empty"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:900]), "is damaged or truncated"),
    "text": (lambda path: path.write_bytes(b"some text"), "is not an image that can be read"),
    "page": (lambda path: path.write_bytes(b"\n<!doctype HTML><p>404"), "is a web page"),
    "pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 0\n"), "is a Git LFS pointer"),
    "folder": (replace_by_folder, "cannot be read: Is a directory"),
    "pipe": (replace_by_pipe, "is a pipe, socket or device"),
    "loop": (replace_by_loop, "is a link that leads back to itself"),
    "dangling": (replace_by_dangling_link, "is a link to nothing.png, which does not exist"),
    "enormous": (make_sparse, "has 3.0 GB, more than any image"),
    "float": (lambda path: path.write_bytes(encoded(np.zeros((64, 64), np.float32), "TIFF")), "has pixels of kind 'F'"),
}

MODES = {
    "paired": ("train", {"mode": "paired_images", "dataroot_gt": "hq", "scale": 4, "target_size": 32}),
    "paired_lq": ("train", {"mode": "paired_images", "dataroot_gt": "hq", "dataroot_lq": "lq", "scale": 4, "target_size": 32}),
    "paired_val": ("val", {"mode": "paired_images", "dataroot_gt": "hq", "scale": 4}),
    "fullimage": ("val", {"mode": "fullimage", "dataroot_GT": "hq", "scale": 4}),
    "degraded": (
        "train",
        {
            "mode": "degraded_images",
            "dataroot_gt": "hq",
            "scale": 4,
            "target_size": 32,
            "degradation_size": 32,
            "degradation": {"type": "realesrgan"},
        },
    ),
    "inputs": ("val", {"mode": "input_images", "dataroot": "hq"}),
    "imagefolder": ("train", {"mode": "imagefolder", "paths": "hq", "scale": 4}),
    "tiles": ("train", {"mode": "single_image_extensible", "paths": "hq", "scale": 4, "target_size": 32}),
}


def build(tmp_path: Path, mode: str, policy: str) -> Dataset:
    for index, name in enumerate(("a.png", VICTIM, "c.png")):
        hq = part(index, side=64)
        save(tmp_path / "hq" / name, hq)
        save(tmp_path / "lq" / name, shrink(hq, 4))
    phase, options = MODES[mode]
    options = {key: str(tmp_path / value) if value in ("hq", "lq") else value for key, value in options.items()}
    return create_dataset({**options, "on_bad_file": policy}, phase=phase, name="x")


def read_all(dataset: Dataset, phase: str, n_workers: int = 0) -> tuple[list[str], dict[str, str]]:
    """Names of the files that came, and the bad ones."""
    if phase != "train":
        bad: dict[str, str] = {}
        return [Path(batch["path"][0]).name for batch in evaluation_items(dataset, bad)], bad
    order = SampleOrder(len(dataset), 0, shuffle=False)
    with build_loader(dataset, batch_size=1, order=order, n_workers=n_workers) as loader:
        return [Path(batch["path"][0]).name for batch in islice(loader, 3)], loader.bad_files


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_goes_bad_is_named_or_left_out(tmp_path, mode, damage):
    phase = MODES[mode][0]
    spoil, message = DAMAGE[damage]
    victim = tmp_path / "hq" / VICTIM
    dataset = build(tmp_path, mode, "error")
    spoil(victim)
    with pytest.raises(BadSample, match=message) as caught:
        read_all(dataset, phase)
    assert caught.value.path == str(victim)
    assert "`on_bad_file: skip`" in str(caught.value)
    dataset.on_bad_file = "skip"
    names, bad = read_all(dataset, phase)
    assert names == (["a.png", "c.png", "c.png"] if phase == "train" else ["a.png", "c.png"])
    assert list(bad) == [str(victim)] and message in bad[str(victim)]


@pytest.mark.parametrize("damage", ["gone", "cut", "pipe"])
def test_workers_tell_the_same(tmp_path, damage):
    spoil, message = DAMAGE[damage]
    dataset = build(tmp_path, "paired", "error")
    spoil(tmp_path / "hq" / VICTIM)
    with pytest.raises(BadSample, match=message):
        read_all(dataset, "train", n_workers=1)


SMALL = dict.fromkeys(["paired", "paired_lq", "paired_val", "fullimage"], r"is {1} x {0} pixels; expected 4 or more each way")
SMALL["imagefolder"] = r"leaves \d x \d pixels to use; expected at least 4 each way"  # of the largest square


@pytest.mark.parametrize("mode", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 3)])
def test_an_image_that_became_tiny_is_named_with_its_size(tmp_path, mode, size):
    dataset = build(tmp_path, mode, "error")
    save(tmp_path / "hq" / VICTIM, np.zeros((*size, 3), np.uint8))
    with pytest.raises(BadSample, match=SMALL[mode].format(*size)):
        read_all(dataset, MODES[mode][0])


def test_a_partner_that_changed_its_size_is_named(tmp_path):
    dataset = build(tmp_path, "paired_lq", "error")
    save(tmp_path / "lq" / VICTIM, part(0, side=32))
    with pytest.raises(BadSample, match=r"its low-quality partner .*lq/b\.png is 32 x 32; expected 16 x 16; correct `scale`"):
        read_all(dataset, "train")


def test_an_image_may_grow_while_it_is_in_use(tmp_path):
    dataset = build(tmp_path, "paired", "error")
    save(tmp_path / "hq" / VICTIM, part(0, side=128))
    assert read_all(dataset, "train")[0] == ["a.png", VICTIM, "c.png"]


def test_a_video_takes_the_policy(tmp_path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in range(10):
        writer.write(np.full((48, 64, 3), value * 20, np.uint8))
    writer.release()
    # The index of the file says ten frames; from the seventh on, the frames themselves are overwritten.
    data = bytearray(path.read_bytes())
    starts = [place for place in range(len(data)) if data[place : place + 4] == b"00dc"][:10]
    data[starts[6] + 8 : starts[9]] = bytes(starts[9] - starts[6] - 8)
    path.write_bytes(data)
    options = {"mode": "video_frames", "video_file": str(path)}
    with pytest.raises(BadSample, match=r"frame \d cannot be read; .*`on_bad_file: skip`"):
        list(evaluation_items(create_dataset(options, phase="val", name="v")))
    bad: dict[str, str] = {}
    found = list(evaluation_items(create_dataset({**options, "on_bad_file": "skip"}, phase="val", name="v"), bad))
    assert [batch["name"][0] for batch in found[:5]] == ["000000", "000001", "000002", "000003", "000004"]
    assert len(found) < 10 and list(bad) == [str(path)]


def test_too_little_memory_for_a_file_is_said(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", part(0))

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(png_rows, "_unpredict", refuse)
    monkeypatch.setattr(Image.Image, "load", refuse)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    with pytest.raises(BadSample, match=r"does not fit into memory \(160 x 160 pixels\); cut it into parts"):
        read_image(path)


# ------------------------------------------------------------------------------------------------- folders and names


def test_a_folder_that_may_not_be_listed_is_named_and_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path / "a.png", part(0, side=16))
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):  # the superuser may list everything
        scan = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"closed: this folder cannot be listed: Permission denied; change its permissions"):
        list_images(tmp_path)


def test_a_path_that_is_no_path_is_named():
    with pytest.raises(DataError, match=r"File name too long|does not exist"):
        list_images("x" * 5000)


ODD = [b"undecodable\xff.png", b"line\nbreak.png", b"\x1b[31mred.png", "naïve 写真.png".encode(), b"%s {0}.png", b"a  b .png"]


def odd_folder(root: Path) -> Path:
    root.mkdir()
    for index, name in enumerate(ODD):
        Path(os.fsdecode(bytes(root) + b"/" + name)).write_bytes(encoded(part(index, side=64), "PNG"))
    return root


def test_names_of_pictures_are_text():
    names = unique_names([Path(os.fsdecode(name)) for name in ODD])
    assert names == ["undecodable%FF", "line%0Abreak", "%1B[31mred", "naïve 写真", "%s {0}", "a  b "]
    for name in names:
        name.encode()


def test_messages_are_one_line_of_text():
    text = str(BadSample(os.fsdecode(ODD[0] + ODD[1] + ODD[2]), "is bad"))
    assert text == r"undecodable\udcff.pngline\nbreak.png\x1b[31mred.png: is bad"
    assert printable("naïve 写真") == "naïve 写真"


RUN = """\
name: odd
scale: 4
datasets:
  train: {{mode: paired_images, dataroot_gt: "{root}/images", target_size: 32, batch_size: 2, n_workers: 0, on_bad_file: skip}}
  val: {{mode: paired_images, dataroot_gt: "{root}/images", on_bad_file: skip}}
networks: {{g: {{which_model_G: RRDBNet, nf: 4, nb: 1, gc: 4}}}}
steps:
  g:
    training: g
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors: {{gen: {{type: generator, generator: g, in: lq, out: gen}}}}
    losses: {{pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}}}
train: {{niter: 8, val_freq: 8}}
eval: {{metrics: [psnr]}}
logger: {{print_freq: 4}}
path: {{experiments: "{root}"}}
"""


def test_a_run_over_files_with_odd_names(tmp_path, capsys):
    root = odd_folder(tmp_path / "images")
    Path(os.fsdecode(bytes(root) + b"/bad\xfe\n.png")).write_bytes(b"no image")
    (tmp_path / "o.yml").write_text(RUN.format(root=tmp_path))
    assert main(["train", "-opt", str(tmp_path / "o.yml")]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    log = (tmp_path / "odd/train.log").read_text()
    assert r"images/bad\udcfe\n.png: is not an image that can be read" in log
    assert (tmp_path / "odd/val/val/line%0Abreak").is_dir()
    assert main(["data", "audit", "-opt", str(tmp_path / "o.yml"), "--workers", "0", "--report", str(tmp_path / "r.csv")]) == 1
    assert r"images/bad\udcfe\n.png: is not an image" in capsys.readouterr().out
    assert r"bad\udcfe\n.png" in (tmp_path / "r.csv").read_text()
