"""The cache of decoded images: the same samples, whatever happens to its files."""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images.cache import MappedCache, default_folder
from dlas.data.images.files import read_image
from dlas.data.loader import build_loader
from dlas.data.sampler import SampleOrder
from dlas.errors import ConfigurationError, DataError
from test_data_images import noise, save


@pytest.fixture
def photos(tmp_path):
    for index in range(4):
        save(tmp_path / "gt" / f"{index}.png", noise(64 + index, 72, seed=index))
        save(tmp_path / "lq" / f"{index}.png", noise((64 + index) // 4, 18, seed=index + 50))
    cv2.imwrite(str(tmp_path / "gt/deep.png"), noise(80, 70, seed=9, dtype=np.uint16))
    cv2.imwrite(str(tmp_path / "lq/deep.png"), noise(20, 17, seed=10, dtype=np.uint16))
    return tmp_path


def create(photos, cache, phase="train", mode="paired_images", **options):
    sizes = {"target_size": 16} if phase == "train" or mode != "fullimage" else {}
    root = {"dataroot_GT" if mode == "fullimage" else "dataroot_gt": str(photos / "gt")}
    given = {"cache_dir": str(photos / "cache")} if cache == "mapped" else {}
    return create_dataset(
        {"mode": mode, "scale": 4, "cache": cache, **root, **sizes, **given, **options}, phase=phase, name="x"
    )


def files(photos):
    return sorted((photos / "cache").rglob("*.pixels"))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert same, key


BSRGAN = {"mode": "degraded_images", "degradation": {"type": "bsrgan"}, "degradation_size": 32}


@pytest.mark.parametrize(
    ("phase", "options"),
    [
        ("train", {}),
        ("train", {"lq": True}),
        ("train", {"use_flip": False, "use_rot": False, "target_size": 64}),
        ("val", {}),
        ("val", {"lq": True}),
        ("val", {"mode": "fullimage", "force_multiple": 2}),
        ("train", BSRGAN),
    ],
)
def test_samples_are_the_same_as_without_it(photos, phase, options):
    options = dict(options)
    if options.pop("lq", False):
        options["dataroot_lq"] = str(photos / "lq")
    plain, mapped = create(photos, "none", phase, **options), create(photos, "mapped", phase, **options)
    for turn in range(2):  # the first visit fills the cache
        for index in range(5):
            request = Request(index, index + 5 * turn, 3)
            assert_same(plain[request], mapped[request])
    assert files(photos)


def test_the_second_visit_decodes_nothing(photos, monkeypatch):
    first = create(photos, "mapped")
    wanted = [first[Request(index, index, 0)] for index in range(5)]

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("dlas.data.images.pairs.read_image", never)
    monkeypatch.setattr("dlas.data.images.pairs.shrink", never)
    again = create(photos, "mapped")
    for index in range(5):
        assert_same(wanted[index], again[Request(index, index, 0)])


def test_a_crop_of_the_cache_is_a_view_of_the_file(photos):
    cache = MappedCache(photos / "cache", 1.0)
    path = photos / "gt/0.png"
    cache.image(path, "", lambda: read_image(path))
    mapped = cache.image(path, "", lambda: pytest.fail("made again"))
    assert not mapped.flags.writeable
    assert not mapped[8:16, 8:16].flags.owndata
    assert (mapped == read_image(path)).all()


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_image_replaces_its_old_pixels(photos, change):
    dataset, path = create(photos, "mapped", "val"), photos / "gt/0.png"
    dataset[Request(0, 0, 0)]
    count = len(files(photos))
    status = path.stat()
    save(path, noise(64, 72, seed=77))
    if change == "size":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        path.write_bytes(path.read_bytes() + b"\0")  # behind the end of the PNG
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_same(create(photos, "none", "val")[Request(0, 0, 0)], dataset[Request(0, 0, 0)])
    assert len(files(photos)) == count


def test_scales_are_kept_apart(photos):
    for scale in (4, 2, 4):
        request = Request(1, 1, 0)
        assert_same(create(photos, "none", scale=scale)[request], create(photos, "mapped", scale=scale)[request])


@pytest.mark.parametrize("damage", ["empty", "short", "header", "garbage", "long"])
def test_a_damaged_file_is_made_again_with_a_word(photos, damage, caplog):
    create(photos, "mapped", "val")[Request(0, 0, 0)]
    for file in files(photos):
        data = file.read_bytes()
        spoiled = {"empty": b"", "short": data[:-1], "header": data[:9] + b"\xff" + data[10:], "long": data + b"\0"}
        file.write_bytes(spoiled.get(damage, b"\x55" * len(data)))
    with caplog.at_level(logging.WARNING):
        found = create(photos, "mapped", "val")[Request(0, 0, 0)]
    assert_same(create(photos, "none", "val")[Request(0, 0, 0)], found)
    assert sum("made again" in record.message for record in caplog.records) == 2
    caplog.clear()
    create(photos, "mapped", "val")[Request(0, 0, 0)]
    assert not caplog.records


def test_spoiled_pixels_are_found_by_the_full_check(photos):
    cache, path = MappedCache(photos / "cache", 1.0), photos / "gt/0.png"
    cache.image(path, "", lambda: read_image(path))
    assert cache.state(path, "", whole=True) == "sound"
    (file,) = files(photos)
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    assert cache.state(path, "") == "sound"
    assert cache.state(path, "", whole=True) == "spoiled"
    assert cache.state(path, "something else") == "absent"


def test_what_does_not_fit_is_decoded(photos, caplog):
    budget = 30_000  # bytes: two images of 64 x 72
    dataset = create(photos, "mapped", cache_gb=budget / 1e9)
    plain = create(photos, "none")
    with caplog.at_level(logging.WARNING):
        for position in range(10):
            assert_same(plain[Request(position % 5, position, 0)], dataset[Request(position % 5, position, 0)])
    assert 0 < sum(file.stat().st_size for file in files(photos)) <= budget
    assert sum("takes no more" in record.message for record in caplog.records) == 1
    count = len(files(photos))
    create(photos, "mapped")[Request(4, 4, 0)]  # with a larger one there is room again
    assert len(files(photos)) > count


def test_several_fill_it_at_once_and_keep_to_the_budget(photos):
    paths = sorted((photos / "gt").iterdir())
    budget = 40_000

    def fill(_):
        cache = MappedCache(photos / "cache", budget / 1e9)
        return [(cache.image(path, "", lambda path=path: read_image(path)) == read_image(path)).all() for path in paths * 3]

    with ThreadPoolExecutor(6) as pool:
        assert all(all(each) for each in pool.map(fill, range(6)))
    assert 0 < sum(file.stat().st_size for file in files(photos)) <= budget
    assert not list((photos / "cache").rglob("*.tmp"))


def test_workers_share_it(photos):
    def take(dataset, workers):
        with build_loader(dataset, batch_size=2, order=SampleOrder(4, 5), n_workers=workers) as loader:
            return [batch["hq"] for batch in islice(loader, 4)]

    for path in ("gt/deep.png", "lq/deep.png"):
        (photos / path).unlink()
    wanted = take(create(photos, "none"), 0)
    for _ in range(2):
        for one, other in zip(wanted, take(create(photos, "mapped"), 2), strict=True):
            assert torch.equal(one, other)
    assert len(files(photos)) == 8


class Plain(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.dataset[Request(index, index, 0)]["hq"]


def test_it_travels_to_a_spawned_process(photos):
    dataset = create(photos, "mapped")
    dataset.prepare()
    loader = DataLoader(
        Plain(dataset), batch_size=None, num_workers=1, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    for index, hq in enumerate(loader):
        assert torch.equal(hq, create(photos, "none")[Request(index, index, 0)]["hq"])
    assert len(files(photos)) == 4


def test_what_a_crash_left_is_removed_once_it_is_old(photos):
    cache = MappedCache(photos / "cache", 1.0)
    path = photos / "gt/0.png"
    cache.image(path, "", lambda: read_image(path))
    folder = files(photos)[0].parent
    old, new = folder / ".a.1.x.tmp", folder / ".b.1.x.tmp"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1e9, 1e9))
    (photos / "cache/used").write_text("gar")  # torn
    MappedCache(photos / "cache", 1.0).open()
    assert new.exists()
    assert not old.exists()
    assert int((photos / "cache/used").read_text()) == files(photos)[0].stat().st_size + 1


def test_a_full_disk_costs_time_not_samples(photos, monkeypatch, caplog):
    dataset = create(photos, "mapped")
    dataset.prepare()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlas.data.images.cache._write", full)
    assert_same(create(photos, "none")[Request(0, 0, 0)], dataset[Request(0, 0, 0)])
    assert "No space left" in caplog.text
    assert not [path for path in (photos / "cache").rglob("*") if path.suffix in (".tmp", ".pixels")]


def test_a_bad_file_is_told_as_without_it(photos):
    (photos / "gt/0.png").write_bytes((photos / "gt/0.png").read_bytes()[:2000])
    with pytest.raises(BadSample, match=r"0\.png: is damaged or truncated"):
        create(photos, "mapped")[Request(0, 0, 0)]


def test_where_it_lies(photos, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "home"))
    monkeypatch.delenv("DLAS_CACHE_DIR", raising=False)
    assert default_folder() == photos / "home/dlas/images"
    monkeypatch.setenv("DLAS_CACHE_DIR", str(photos / "elsewhere"))
    dataset = create_dataset({"mode": "builtin_photos", "scale": 4, "cache": "mapped"}, phase="train", name="x")
    with caplog.at_level(logging.INFO):
        dataset.prepare()
    assert str(photos / "elsewhere") in caplog.text
    (photos / "file").write_text("")
    with pytest.raises(DataError, match="cache_dir"):
        create(photos, "mapped", cache_dir=str(photos / "file/below")).prepare()
    with pytest.raises(ConfigurationError, match="cache_gb"):
        MappedCache(photos, 0.0)
