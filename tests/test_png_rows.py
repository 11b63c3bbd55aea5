"""PNG files decoded in part give what the whole file gives, or are left to the reader of whole files."""

from __future__ import annotations

import itertools
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images import png_rows
from dlas.data.images.files import open_rows, read_image, read_with_header
from test_data_images import noise, save

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
KINDS = [(colour, depth) for colour, depths in DEPTHS.items() for depth in depths]
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
WINDOWS = [(0, 0, 37, 53), (0, 0, 1, 1), (36, 52, 1, 1), (5, 7, 20, 11), (30, 0, 20, 53)]


@pytest.fixture(params=["zlib", "isal"])
def library(request, monkeypatch):
    """The library that decompresses."""
    if request.param == "isal":
        monkeypatch.setattr(png_rows, "_deflate", pytest.importorskip("isal.isal_zlib"))
    else:
        monkeypatch.setattr(png_rows, "_deflate", zlib)
    return request.param


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path, height, width, colour, depth, *, interlaced=False, filters=(0, 1, 2, 3, 4), seed=0, piece=1000, extra=b""):
    """Writes a PNG whose rows, as they are stored, are random: each has any of the filters."""
    rng = np.random.default_rng(seed)
    stored = b""
    for top, left, down, right in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        size = -(-columns * depth * CHANNELS[colour] // 8)
        if rows > 0 < columns:
            kinds = rng.choice(filters, (rows, 1))
            stored += np.hstack([kinds, rng.integers(0, 256, (rows, size))]).astype(np.uint8).tobytes()
    stream = zlib.compress(stored + extra)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    palette = chunk(b"PLTE", rng.integers(0, 256, 3 << depth).astype(np.uint8).tobytes()) if colour == PALETTE else b""
    pieces = b"".join(chunk(b"IDAT", stream[start : start + piece]) for start in range(0, len(stream), piece))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + palette + pieces + chunk(b"IEND", b""))
    return path


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("colour", "depth"), KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_files_of_every_kind_are_read_as_opencv_reads_them(tmp_path, colour, depth, interlaced):
    for seed, (height, width) in enumerate([(1, 1), (7, 5), (37, 53), (3, 200)]):
        path = png(tmp_path / "a.png", height, width, colour, depth, interlaced=interlaced, seed=seed)
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)[:, :, ::-1]
        read = read_image(path)
        assert read.dtype == expected.dtype == (np.uint16 if depth == 16 else np.uint8)
        assert np.array_equal(read, expected)
        assert read.flags.c_contiguous and read.flags.writeable


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("colour", [GREY, RGB])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 4, 4, 1), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("piece", [10, 1 << 20])
def test_every_window_equals_that_of_the_whole(tmp_path, colour, depth, filters, piece):
    path = png(tmp_path / "a.png", 37, 53, colour, depth, filters=filters, piece=piece)
    rows, (whole, _) = open_rows(path), read_with_header(path)
    assert rows.shape == whole.shape
    for top, left, height, width in WINDOWS:
        window = np.s_[top : top + height, left : left + width]
        assert rows[window].dtype == whole.dtype
        assert np.array_equal(rows[window], whole[window])


def outcome(read):
    """Pixels, or the message of the error."""
    try:
        return read()
    except BadSample as error:
        return str(error)


@pytest.mark.usefixtures("library")
def test_damage_that_the_checksums_of_the_chunks_hide_changes_nothing(tmp_path):
    """Each bit of a file's stream in turn: the same pixels, or the same words, as from the reader that uses none of this."""
    path = png(tmp_path / "a.png", 5, 4, RGB, 8, piece=1 << 20)
    data = path.read_bytes()
    place = data.index(b"IDAT") + 4
    length = int.from_bytes(data[place - 8 : place - 4], "big")
    messages = set()
    for byte, bit in itertools.product(range(length), range(8)):
        stream = bytearray(data[place : place + length])
        stream[byte] ^= 1 << bit
        path.write_bytes(data[: place - 8] + chunk(b"IDAT", bytes(stream)) + chunk(b"IEND", b""))
        slow, fast = outcome(lambda: read_with_header(path)[0]), outcome(lambda: read_image(path))
        assert np.array_equal(slow, fast), (byte, bit)
        messages |= {slow} if isinstance(slow, str) else set()
    assert len(messages) > 1


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("options", [{"filters": (0, 5)}, {"extra": bytes(7)}, {"extra": bytes(500)}])
def test_strange_rows_are_left_to_the_reader_of_whole_files(tmp_path, options):
    path = png(tmp_path / "a.png", 37, 53, RGB, 8, **options)
    whole = outcome(lambda: read_with_header(path)[0])
    assert np.array_equal(outcome(lambda: read_image(path)), whole)
    for top, left, height, width in WINDOWS:
        part = outcome(lambda window=np.s_[top : top + height, left : left + width]: open_rows(path)[window])
        if isinstance(whole, str) or isinstance(part, str):
            assert part == whole or top + height < 37
        else:
            assert np.array_equal(part, whole[top : top + height, left : left + width])


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(8, 9)).save(path, exif=exif)


def with_xmp(path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(noise(8, 9)).save(path, pnginfo=info)


def with_hidden_exif(path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n4\n45786966", zip=False)
    Image.fromarray(noise(8, 9)).save(path, pnginfo=info)


def divided(path):
    """Another chunk lies between the pieces of the stream."""
    data = png(path, 8, 9, RGB, 8, piece=50).read_bytes()
    place = data.rindex(b"IDAT") - 4
    path.write_bytes(data[:place] + chunk(b"tIME", bytes(7)) + data[place:])


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
        with_hidden_exif,
        divided,
        spoiled(17),
        spoiled(-5000),
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: Image.fromarray(noise(8, 9)).convert("P").save(path),
        lambda path: Image.fromarray(noise(8, 9)).convert("RGBA").save(path),
        lambda path: Image.fromarray(noise(8, 9)).save(path, format="JPEG"),
        lambda path: png(path, 8, 9, RGB, 8, interlaced=True),
        lambda path: png(path, 2, 21845, RGB, 8),  # a row is longer than a stored block may be
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


@pytest.fixture
def decoded(monkeypatch):
    """(width, height) of what OpenCV decodes."""
    sizes = []
    real = cv2.imdecode

    def noted(data, flags):
        sizes.append(struct.unpack(">II", data[16:24]))
        return real(data, flags)

    monkeypatch.setattr(cv2, "imdecode", noted)
    return sizes


@pytest.mark.usefixtures("library")
def test_prediction_is_undone_no_further_than_needed(tmp_path, decoded):
    rows = open_rows(png(tmp_path / "a.png", 400, 50, RGB, 8, filters=(4,)))
    rows[20:30, 5:15]
    rows[0:9, 49:50]
    open_rows(png(tmp_path / "b.png", 400, 50, RGB, 8, filters=(0, 1)))[300:310, 5:15]
    assert decoded == [(15, 30), (50, 9), (15, 10)]


@pytest.mark.usefixtures("library")
def test_the_stream_is_left_early(tmp_path):
    path = png(tmp_path / "a.png", 400, 50, RGB, 8)
    whole = read_image(path)
    data = path.read_bytes()
    place = data.rindex(b"IDAT", 0, data.rindex(b"IDAT")) - 4  # the piece before the last one
    length = int.from_bytes(data[place : place + 4], "big")
    path.write_bytes(data[:place] + chunk(b"IDAT", bytes(length)) + data[place + 12 + length :])
    rows = open_rows(path)
    assert np.array_equal(rows[:300, :], whole[:300])
    with pytest.raises(BadSample, match=r"a\.png.*damaged"):
        rows[390:400, :]


def test_texts_that_do_not_turn_the_image_are_no_hindrance(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x xmp:CreatorTool="a program"/>')
    info.add_text("Software", "a program")
    Image.fromarray(noise(8, 9)).save(tmp_path / "a.png", pnginfo=info, icc_profile=b"profile")
    assert np.array_equal(open_rows(tmp_path / "a.png")[2:5, 3:7], noise(8, 9)[2:5, 3:7])


def test_damage_below_the_crop_is_found(pair, tmp_path):
    path = tmp_path / "gt/a.png"
    data = bytearray(path.read_bytes())
    data[-200:-100] = bytes(100)
    path.write_bytes(data)
    dataset = create_dataset({"mode": "paired_images", **pair}, phase="train", name="x")
    for position in range(8):
        with pytest.raises(BadSample, match=r"a\.png"):
            dataset[Request(0, position, 1)]
