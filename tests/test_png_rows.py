"""PNG files decoded in part give what the whole file gives, or are left to the reader of whole files."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images.files import read_image
from dlas.data.images.png_rows import open_rows
from test_data_images import noise, save


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("level", [0, 6])
def test_every_window_equals_that_of_the_whole(tmp_path, mode, level):
    path = tmp_path / "a.png"
    Image.fromarray(noise(37, 53)).convert(mode).save(path, compress_level=level)
    rows, whole = open_rows(path), read_image(path)
    assert rows.shape == whole.shape
    for top, left, height, width in [(0, 0, 37, 53), (0, 0, 1, 1), (36, 52, 1, 1), (5, 7, 20, 11), (30, 0, 20, 53)]:
        window = np.s_[top : top + height, left : left + width]
        assert (rows[window] == whole[window]).all()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 9)).save(path, exif=exif)


def with_xmp(path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(noise(8, 9)).save(path, pnginfo=info)


def spoiled(place):
    def make(path):
        save(path, noise(80, 90))
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return make


def cut(path):
    save(path, noise(80, 90))
    path.write_bytes(path.read_bytes()[:-13])


@pytest.mark.parametrize(
    "make",
    [
        turned,
        with_xmp,
        spoiled(17),
        spoiled(-5000),
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: Image.fromarray(noise(8, 9)).convert("P").save(path),
        lambda path: Image.fromarray(noise(8, 9)).convert("RGBA").save(path),
        lambda path: Image.fromarray(noise(8, 9)).save(path, format="JPEG"),
        lambda path: Image.fromarray(noise(8, 9, dtype=np.uint16)[:, :, 0]).save(path),
    ],
)
def test_other_files_are_left_to_the_reader_of_whole_files(tmp_path, make):
    make(tmp_path / "a.png")
    assert open_rows(tmp_path / "a.png") is None


@pytest.fixture
def pair(tmp_path):
    save(tmp_path / "gt" / "a.png", noise(101, 122))
    save(tmp_path / "lq" / "a.png", noise(25, 30, seed=1))
    return {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq"), "scale": 4, "target_size": 32}


DEGRADED = {"mode": "degraded_images", "degradation": {"type": "bsrgan"}, "degradation_size": 64}


@pytest.mark.parametrize("options", [{"mode": "paired_images"}, DEGRADED])
def test_samples_are_the_same(pair, options):
    given = {**pair, **options}
    if options is DEGRADED:
        del given["dataroot_lq"]
    partly, whole = (create_dataset({**given, "cache": cache}, phase="train", name="x") for cache in ("none", "memory"))
    for position in range(12):
        one, other = partly[Request(0, position, 1)], whole[Request(0, position, 1)]
        assert torch.equal(one["lq"], other["lq"])
        assert torch.equal(one["hq"], other["hq"])


def test_rows_below_the_crop_are_not_decoded(pair, monkeypatch):
    sizes = []
    real = Image.Image.crop

    def noted(image, box=None):
        sizes.append(image.size)
        return real(image, box)

    monkeypatch.setattr(Image.Image, "crop", noted)
    dataset = create_dataset({"mode": "paired_images", **pair}, phase="train", name="x")
    for position in range(8):
        dataset[Request(0, position, 1)]
    assert len({height for _, height in sizes[::2]}) > 3


def test_damage_below_the_crop_is_found(pair, tmp_path):
    path = tmp_path / "gt/a.png"
    data = bytearray(path.read_bytes())
    data[-200:-100] = bytes(100)
    path.write_bytes(data)
    dataset = create_dataset({"mode": "paired_images", **pair}, phase="train", name="x")
    for position in range(8):
        with pytest.raises(BadSample, match=r"a\.png"):
            dataset[Request(0, position, 1)]
