"""Image files of every kind: what they become, and how each damage is named."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dlas.data.base import BadSample
from dlas.data.images import files
from dlas.data.images.files import list_images, read_image, to_tensor, write_png
from dlas.errors import DataError

HEIGHT, WIDTH = 12, 20


def pixels(channels=3, dtype=np.uint8):
    top = np.iinfo(dtype).max
    values = np.random.default_rng(0).integers(0, top + 1, (HEIGHT, WIDTH, channels), dtype=dtype)
    return values[:, :, 0] if channels == 1 else values


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def test_rgb_png_is_read_as_it_is(tmp_path):
    array = pixels()
    read = read_image(save(tmp_path / "a.png", array))
    assert read.dtype == np.uint8 and read.flags.c_contiguous and read.flags.writeable
    assert np.array_equal(read, array)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_agree(tmp_path, extension):
    array = pixels()
    options = {"lossless": True} if extension == "webp" else {}
    assert np.array_equal(read_image(save(tmp_path / f"a.{extension}", array, **options)), array)


def test_grey_is_repeated(tmp_path):
    grey = pixels(1)
    expected = np.stack([grey] * 3, axis=2)
    assert np.array_equal(read_image(save(tmp_path / "grey.png", grey)), expected)
    bilevel = Image.fromarray(grey).convert("1")
    bilevel.save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[:, :, 1], np.asarray(bilevel) * np.uint8(255))


def test_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(pixels()).quantize(16)
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_and_said_once(tmp_path, monkeypatch, caplog, channels, bits):
    monkeypatch.setattr(files, "_transparency_mentioned", False)
    array = pixels(channels, np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / "a.png"
    if bits == 8:
        save(path, array)
    elif channels == 4:
        cv2.imwrite(str(path), array[:, :, [2, 1, 0, 3]])
    else:
        path.write_bytes(png(4, 16, array.astype(">u2").tobytes()))
    with caplog.at_level(logging.WARNING):
        first, second = read_image(path), read_image(path)
    colours = array[:, :, :3] if channels == 4 else np.repeat(array[:, :, :1], 3, axis=2)
    assert np.array_equal(first, colours) and np.array_equal(second, colours)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has transparent pixels; alpha is dropped here and in further files (this is said once)"
    ]


def test_opaque_alpha_is_dropped_silently(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "_transparency_mentioned", False)
    array = pixels(4)
    array[:, :, 3] = 255
    assert np.array_equal(read_image(save(tmp_path / "a.png", array)), array[:, :, :3])
    assert not caplog.records


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_kept(tmp_path, extension, channels):
    array = pixels(channels, np.uint16)
    path = tmp_path / f"deep.{extension}"
    cv2.imwrite(str(path), array if channels == 1 else array[:, :, ::-1])
    read = read_image(path)
    assert read.dtype == np.uint16
    assert np.array_equal(read, np.stack([array] * 3, axis=2) if channels == 1 else array)
    assert torch.equal(to_tensor(read), torch.from_numpy(read.transpose(2, 0, 1).astype(np.float32)) / 65535)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    solid = np.broadcast_to(np.array([200, 40, 90], np.uint8), (HEIGHT, WIDTH, 3))
    Image.fromarray(solid).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - solid).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", pixels(), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    read = read_image(path)
    assert read.shape == ((WIDTH, HEIGHT, 3) if orientation > 4 else (HEIGHT, WIDTH, 3))
    assert np.array_equal(read, expected) and read.flags.c_contiguous


def test_exif_orientation_is_applied_to_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((32, 64, 3), np.uint8)
    array[:, :32] = 255  # bright on the left; turned clockwise, bright on top
    read = read_image(save(tmp_path / "a.jpg", array, exif=exif, quality=100))
    assert read.shape == (64, 32, 3)
    assert read[:30].min() > 250 and read[34:].max() < 5


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)) for value in (30, 200)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.array_equal(read_image(tmp_path / name), np.asarray(frames[0]))


def png(colour_type, bits, scanlines, height=HEIGHT, width=WIDTH):
    """A PNG file put together by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = len(scanlines) // height if height else 0
    filtered = b"".join(b"\0" + scanlines[y * row : (y + 1) * row] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def encoded(format, array=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels() if array is None else array).save(buffer, format, **options)
    return buffer.getvalue()


def deep_png():
    return cv2.imencode(".png", pixels(3, np.uint16))[1].tobytes()


DAMAGED = {
    "empty.png": (lambda: b"", r"is empty \(0 bytes\)"),
    "text.png": (lambda: b"I am not an image", r"is not an image that can be read \(it starts with b'I am not an "),
    "half.png": (lambda: encoded("PNG")[:400], r"is damaged or truncated \(400 bytes\)"),
    "half.jpg": (lambda: encoded("JPEG")[:500], r"is damaged or truncated \(500 bytes\)"),
    "half16.png": (lambda: deep_png()[:700], r"is damaged or truncated \(700 bytes\)"),
    "half.webp": (lambda: encoded("WEBP", lossless=True)[:300], "is damaged or truncated|is not an image"),
    "half.gif": (lambda: encoded("GIF")[:900], r"is damaged or truncated \(900 bytes\)"),
    "half.bmp": (lambda: encoded("BMP")[:300], r"is damaged or truncated \(300 bytes\)"),
    "half.tif": (lambda: encoded("TIFF")[:300], "is damaged or truncated|is not an image"),
    "stub.png": (lambda: encoded("PNG")[:30], "is damaged or truncated|is not an image"),
    "flipped.png": (lambda: encoded("PNG")[:200] + bytes(50) + encoded("PNG")[250:], "is damaged or truncated"),
    "nothing.png": (lambda: png(2, 8, b"", height=0), "has no pixels|is damaged|is not an image"),
    "huge.png": (lambda: png(2, 8, bytes(60), height=1, width=20)[:16] + struct.pack(">II", 40000, 40000), "too large|damaged"),
    "float.tif": (lambda: encoded("TIFF", pixels().astype(np.float32)[:, :, 0]), "has pixels of kind 'F'"),
    "int.tif": (lambda: encoded("TIFF", pixels().astype(np.int32)[:, :, 0]), "has pixels of kind 'I'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_an_unusable_file_is_named_with_what_is_wrong(tmp_path, name):
    make, message = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(BadSample, match=message) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", pixels())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadSample, match=r"is too large to decode: .*cut it into parts"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(BadSample, match=r"gone.png: does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(BadSample, match=r"cannot be read: Is a directory"):
        read_image(tmp_path)


def test_a_forbidden_file_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", pixels())
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def refuse(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(BadSample, match=r"may not be read by this user; .*chmod"):
        read_image(path)


def test_to_tensor_is_channels_first_in_the_unit_range():
    array = pixels()
    tensor = to_tensor(array)
    assert tensor.shape == (3, HEIGHT, WIDTH) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(array).permute(2, 0, 1).float() / 255)
    assert to_tensor(np.full((1, 1, 3), 255, np.uint8)).unique().tolist() == [1.0]
    assert to_tensor(np.full((1, 1, 3), 65535, np.uint16)).unique().tolist() == [1.0]


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_png_round_trip(tmp_path, bits, dtype):
    array = pixels(3, dtype)
    path = tmp_path / "new" / "folder" / "a.png"
    write_png(path, to_tensor(array), bits)
    read = read_image(path)
    assert read.dtype == dtype
    assert np.array_equal(read, array)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_png_clips_rounds_and_takes_grey(tmp_path):
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 2.0, float("nan"), float("inf")]).view(1, 1, -1)
    write_png(tmp_path / "a.png", values)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 0, 0, 1, 255, 0, 255)]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, torch.zeros(3, 4, 4))

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_png(path, torch.ones(3, 4, 4))
    assert read_image(path).max() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("shape", "bits"), [((3, 4), 8), ((2, 4, 4), 8), ((3, 0, 4), 8), ((3, 4, 4), 12)])
def test_what_cannot_be_written_is_refused(tmp_path, shape, bits):
    with pytest.raises(ValueError, match=r"write_png takes|8 or 16 bits"):
        write_png(tmp_path / "a.png", torch.zeros(shape), bits)


def test_images_are_listed_below_a_folder_in_natural_order(tmp_path):
    names = ["10.png", "2.JPG", "b/1.webp", "B/3.tiff", "a.png", "a1.png", "a01.png", ".hidden.png", ".git/x.png", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["2.JPG", "10.png", "a.png", "a01.png", "a1.png", "b/1.webp", "B/3.tiff"]


def test_links_are_followed_without_going_round_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    assert [path.name for path in list_images(tmp_path / "set")] == ["a.png"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"missing: does not exist; expected a folder of images"):
        list_images(tmp_path / "missing")
    with pytest.raises(DataError, match=r"no image in this folder or below; found nothing"):
        list_images(tmp_path)
    for name in ("a.zip", "b.zip", "README"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"found 2 x .zip, 1 x no extension; expected files ending in .*\.png"):
        list_images(tmp_path)
    with pytest.raises(DataError, match=r"a.zip: is a file; expected a folder"):
        list_images(tmp_path / "a.zip")
