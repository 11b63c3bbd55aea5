"""Images with captions, and the digits."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dlas.data.base import BadSample, Request, create_dataset
from dlas.errors import ConfigurationError, DataError


def dataset(phase="train", **options):
    return create_dataset({"mode": "captioned_images", "target_size": 8, **options}, phase=phase, name=phase)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "b").mkdir(parents=True)
    for number, name in enumerate(("1.png", "2.png", "b/1.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (16 + 8 * number, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def sample(data, index=0, position=0):
    return data[Request(index, position, 0)]


# ---------------------------------------------------------------------------------------------------------------- captions


def test_captions_lie_beside_the_images(folder):
    (folder / "1.txt").write_text("one\n\n uno \n")
    (folder / "2.json").write_text('{"captions": ["two", "due"], "width": 3}')
    (folder / "b/1.json").write_text('{"text": "three"}')
    data = dataset("val", paths=str(folder))
    assert [sample(data, index)["caption"] for index in range(3)] == ["one", "two", "three"]
    assert data.captions == [["one", "uno"], ["two", "due"], ["three"]]
    assert [sample(data, index)["name"] for index in range(3)] == ["1", "2", "b__1"]


LISTS = {
    "list.jsonl": '{"file": "1.png", "caption": "one"}\n\n{"file_name": "2.png", "text": "two"}\n'
    '{"path": "b/1.png", "captions": ["three", "tre"]}\n{"file": "1.png", "caption": "uno"}\n',
    "list.tsv": "1.png\tone\n2.png\ttwo\nb/1.png\tthree\n1.png\tuno\nb/1.png\ttre\n",
    "list.json": json.dumps({"1.png": ["one", "uno"], "2.png": "two", "b/1.png": ["three", "tre"]}),
}


@pytest.mark.parametrize("name", LISTS)
def test_or_in_a_list(folder, tmp_path, name):
    (tmp_path / name).write_text(LISTS[name])
    data = dataset("val", paths=[str(folder)], captions=[str(tmp_path / name)])
    assert data.captions == [["one", "uno"], ["two"], ["three", "tre"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"file": "1.png", "caption": "one"}\n{"file": "2.png"}', r"a\.jsonl:2: expected one of the keys caption"),
        ("a.jsonl", '{"caption": "one"}', r"a\.jsonl:1: does not name one file"),
        ("a.jsonl", "{", r"a\.jsonl:1: is no JSON"),
        ("a.json", "[]", "expected a mapping"),
        ("a.json", '{"1.png": 3}', r"'1\.png': expected a caption or a list"),
        ("a.tsv", "1.png one", r"a\.tsv:1: expected a file, a tab"),
        ("a.tsv", "other.png\tone", r"names no image below .* other\.png, and the folder 1\.png"),
        ("a.tsv", "1.png\tone", r"2 of 3 images have no caption: .*without_caption: skip"),
        ("a.tsv", "\n", "has no captions"),
        ("a.csv", "1.png,one", r"expected \.jsonl, \.json, \.tsv"),
    ],
)
def test_lists_that_cannot_be_used_say_why(folder, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        dataset(paths=str(folder), captions=str(tmp_path / name))


def test_images_without_a_caption_can_be_left_out_or_have_an_empty_one(folder):
    (folder / "2.txt").write_text("two\n")
    assert dataset(paths=str(folder), without_caption="skip").captions == [["two"]]
    assert dataset(paths=str(folder), without_caption="empty").captions == [[""], ["two"], [""]]
    (folder / "1.txt").write_text("\n")
    with pytest.raises(DataError, match=r"1\.txt: holds no caption"):
        dataset(paths=str(folder), without_caption="skip")
    with pytest.raises(ConfigurationError, match="2 folders in paths and 1 lists"):
        dataset(paths=[str(folder), str(folder)], captions=["a.tsv"])


# ----------------------------------------------------------------------------------------------------------------- pictures


def test_the_shorter_side_is_resized_and_the_longer_one_cropped(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (16, 64, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    (tmp_path / "ramp.txt").write_text("a ramp")
    middle = sample(dataset("val", paths=str(tmp_path)))["hq"] * 255
    assert middle.shape == (3, 8, 8)
    # Halved by averaging, it has 32 columns 0.5, 2.5, ...; the middle eight begin at 12.
    torch.testing.assert_close(middle[0, 0], torch.arange(24.5, 40.5, 2), rtol=0, atol=0.5001)
    data = dataset(paths=str(tmp_path))
    starts = {round(float(sample(data, 0, position)["hq"][0, 0, 0]) * 255) // 2 for position in range(400)}
    assert starts == set(range(25))
    assert sample(data, 0, 3)["hq"].equal(sample(data, 0, 3)["hq"])
    still = dataset(paths=str(tmp_path), random_crop=False)
    assert all(sample(still, 0, position)["hq"].mul(255).equal(middle) for position in range(5))
    signed = sample(dataset("val", paths=str(tmp_path), rgb_n1_to_1=True))["hq"]
    torch.testing.assert_close(signed, middle / 255 * 2 - 1)


def test_captions_and_mirroring_are_drawn_for_each_place_in_the_order(folder):
    (folder / "1.txt").write_text("one\nuno\nun\n")
    options = {"paths": str(folder), "without_caption": "skip", "target_size": 16}
    data = dataset(**options, use_flip=True, random_crop=False)
    found = [sample(data, 0, position) for position in range(40)]
    assert {each["caption"] for each in found} == {"one", "uno", "un"}
    plain = sample(dataset("val", **options))["hq"]
    assert {bool(each["hq"].equal(plain)) for each in found} == {True, False}
    assert all(each["hq"].equal(plain) or each["hq"].equal(plain.flip(-1)) for each in found)
    first = dataset(**options, random_caption=False)
    assert {sample(first, 0, position)["caption"] for position in range(20)} == {"one"}


def test_small_images_are_bad_files_unless_they_are_enlarged(folder):
    options = {"paths": str(folder), "without_caption": "empty", "target_size": 24}
    with pytest.raises(BadSample, match=r"is 32 x 16 pixels; expected at least target_size 24 .* `enlarge: true`"):
        sample(dataset(**options))
    assert sample(dataset(**options, enlarge=True))["hq"].shape == (3, 24, 24)


# ------------------------------------------------------------------------------------------------------------------- digits


def digits(phase="train", **options):
    return create_dataset({"mode": "digits", **options}, phase=phase, name=phase)


def test_the_digits_of_scikit_learn_are_split_so_that_equal_pictures_stay_together():
    train, val = digits(), digits("val")
    assert len(train) + len(val) == 1797
    assert 0.08 < len(val) / 1797 < 0.13
    pictures = [{each.tobytes() for each in data.pixels} for data in (train, val)]
    assert pictures[0].isdisjoint(pictures[1])
    assert set(val.labels) == set(train.labels) == set(range(10))
    one = sample(train, 3)
    assert one["hq"].shape == (1, 8, 8)
    assert one["hq"].max() == 1
    assert one["label"].dtype == torch.int64
    assert one["label"].shape == ()
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert one["caption"] == f"a handwritten {words[one['label']]}"


def test_they_can_have_three_channels_black_around_and_another_range():
    small, large = digits("val"), digits("val", target_size=11, channels=3, rgb_n1_to_1=True)
    picture = sample(large, 5)["hq"]
    assert picture.shape == (3, 11, 11)
    torch.testing.assert_close(picture[:, 1:9, 1:9], sample(small, 5)["hq"].expand(3, -1, -1) * 2 - 1)
    assert (picture[:, 0] == -1).all()
    assert (picture[:, :, 9:] == -1).all()
    assert type(large).sample_spec("val", {"dataroot": None, "enlarge": 1, "target_size": 11, "channels": 3})["hq"].shape == (
        3,
        11,
        11,
    )
    with pytest.raises(ConfigurationError, match="8 x 8; give 8 or more"):
        digits(target_size=6)


def idx(array):
    magic = 0x0800 + array.ndim
    return struct.pack(f">{array.ndim + 1}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def test_mnist_is_read_from_idx_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28))
    labels = np.arange(300) % 10
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[:200])))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels[:200]))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(pixels[200:]))
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(labels[200:]))
    train, val = digits(dataroot=str(tmp_path)), digits("val", dataroot=str(tmp_path))
    assert len(train) + len(val) == 300
    by_picture = {each.astype(np.uint8).tobytes(): label for each, label in zip(pixels, labels, strict=True)}
    for data in (train, val):
        assert [by_picture[each.tobytes()] for each in data.pixels] == data.labels.tolist()
    assert sample(train)["hq"].shape == (1, 28, 28)
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(idx(labels[200:])[:-1])
    with pytest.raises(DataError, match="is no whole idx1-ubyte file"):
        digits(dataroot=str(tmp_path))
    (tmp_path / "t10k-labels.idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"its labels are missing; expected t10k-labels\.idx1-ubyte"):
        digits(dataroot=str(tmp_path))


def test_or_from_the_lists_of_the_npm_package(tmp_path):
    for digit in range(10):
        values = (np.arange(30 * 784).reshape(30, 784) * (digit + 1) % 256) / 255
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": values.flatten().tolist()}))
    train, val = digits(dataroot=str(tmp_path), target_size=32), digits("val", dataroot=str(tmp_path))
    assert len(train) + len(val) == 300
    assert sample(train)["hq"].shape == (1, 32, 32)
    first = train.pixels[list(train.labels).index(2)]
    assert first[2, 2:6].tolist() == [0, 3, 6, 9]  # of the first picture of the list of twos, inside the padding
    (tmp_path / "3.json").write_text("{}")
    with pytest.raises(DataError, match=r"3\.json: is no list of pictures"):
        digits(dataroot=str(tmp_path))
    (tmp_path / "3.json").unlink()
    with pytest.raises(DataError, match="neither files that end in idx3-ubyte"):
        digits(dataroot=str(tmp_path))
