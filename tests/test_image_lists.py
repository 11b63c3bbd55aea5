"""Lists of images, folders taken more often than others, and LMDB databases as BasicSR writes them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import yaml

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images import lmdb_folder
from dlas.data.images.files import list_images, read_image
from dlas.data.images.lists import partners_in, read_list
from dlas.errors import ConfigurationError, DataError, MissingPackageError
from dlas.interop.option_files import convert
from test_data_images import noise, save


@pytest.fixture
def folders(tmp_path):
    for name in ("a", "b"):
        for index in range(3):
            save(tmp_path / name / f"{index}.png", noise(40, 48, seed=index))
            save(tmp_path / f"{name}_lq" / f"{index}x4.png", noise(10, 12, seed=index))
    return tmp_path


def create(folders, phase="train", **options):
    options = {"mode": "paired_images", "scale": 4, "target_size": 16, "dataroot_gt": str(folders / "a"), **options}
    return create_dataset(options, phase=phase, name="x")


def sources(dataset):
    return ["/".join(dataset.source(index).split("/")[-2:]) for index in range(len(dataset))]


def test_basicsr_and_plain_lines_are_understood(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("0001_s001.png (480,480,3)\n\nsub/b.png (7, 8, 3) 1\nwith space.png\nc (1).jpg\n")
    assert read_list(path) == ["0001_s001.png", "sub/b.png", "with space.png", "c (1).jpg"]


def test_lists_of_pairs_name_both_files(folders):
    path = folders / "pairs.txt"
    path.write_text("2.png, 0x4.png\n\n1.png\n0.png, 2x4.png\n")
    dataset = create(folders, dataroot_lq=str(folders / "a_lq"), meta_info=str(path), filename_template="{}x4")
    pairs = [(files.hq.name, files.lq.name) for files in dataset.files]
    assert pairs == [("2.png", "0x4.png"), ("1.png", "1x4.png"), ("0.png", "2x4.png")]
    with pytest.raises(ConfigurationError, match=r"pairs\.txt names pairs, and dataroot_lq, where the second"):
        create(folders, meta_info=str(path))
    path.write_text("2.png, 7x4.png\n")
    with pytest.raises(DataError, match=r"1 \(2\.png\) have no low-quality partner in .*a_lq"):
        create(folders, dataroot_lq=str(folders / "a_lq"), meta_info=str(path))


def test_a_comma_alone_makes_no_pair(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a, b.png\nc.png, d.jpg\nsub/e.png (7, 8, 3) 1\n")
    assert read_list(path) == ["a, b.png", "c.png", "sub/e.png"]
    assert [(str(name), str(partner)) for name, partner in partners_in(path).items()] == [("c.png", "d.jpg")]


@pytest.mark.parametrize("content", [None, "", "\n \n", "a.png\na.png\n", b"\xff\xfe\x00"])
def test_unusable_lists_are_refused(tmp_path, content):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"list\.txt"):
        read_list(path)


def test_a_list_chooses_images_and_their_order(folders):
    (folders / "list.txt").write_text("2.png (40,48,3)\n0.png (40,48,3)\n")
    options = {"meta_info": str(folders / "list.txt")}
    assert sources(create(folders, **options)) == ["a/2.png", "a/0.png"]
    assert sources(create(folders, mode="degraded_images", degradation={"type": "bsrgan"}, **options)) == ["a/2.png", "a/0.png"]
    paired = create(folders, dataroot_lq=str(folders / "a_lq"), filename_template="{}x4", **options)
    assert [pair.lq.name for pair in paired.files] == ["2x4.png", "0x4.png"]
    (folders / "list.txt").write_text("2.png\n7.png\n")
    with pytest.raises(DataError, match=r"1 files that are not below .*: 7\.png"):
        create(folders, **options)
    (folders / "list.txt").write_text("2.png\n")
    (folders / "a_lq/2x4.png").unlink()
    with pytest.raises(DataError, match="no low-quality partner"):
        create(folders, dataroot_lq=str(folders / "a_lq"), filename_template="{}x4", **options)


def test_folders_are_taken_as_often_as_asked(folders):
    roots = {"dataroot_gt": [str(folders / "a"), str(folders / "b")], "repeats": [1, 3]}
    for mode in ({}, {"mode": "degraded_images", "degradation": {"type": "bsrgan"}}):
        found = sources(create(folders, **roots, **mode))
        assert [found.count(f"{name}/0.png") for name in "ab"] == [1, 3]
        assert len(found) == 12
    partners = {"dataroot_lq": [str(folders / "a_lq"), str(folders / "b_lq")], "filename_template": "{}x4"}
    dataset = create(folders, **roots, **partners, cache="memory")
    assert len(dataset) == 12
    dataset.prepare()
    assert len(dataset._kept) == 6  # an image is kept once, however often it is taken
    with pytest.raises(ConfigurationError, match="repeats 1 values"):
        create(folders, dataroot_gt=roots["dataroot_gt"], repeats=[2])
    with pytest.raises(ConfigurationError, match="repeats is for training"):
        create(folders, phase="val", **roots)


@pytest.fixture
def database(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    for name, scale in (("gt", 1), ("lq", 4)):
        root = tmp_path / f"{name}.lmdb"
        lines = []
        with lmdb.open(str(root), map_size=1 << 22) as made, made.begin(write=True) as transaction:
            for index in range(3):
                image = noise(40 // scale, 48 // scale, seed=index)
                transaction.put(f"{index:03d}".encode(), cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
                lines.append(f"{index:03d}.png ({image.shape[0]},{image.shape[1]},3) 1\n")
        (root / "meta_info.txt").write_text("".join(lines))
    return tmp_path


def test_a_database_reads_like_a_folder_of_files(database):
    paths = list_images(database / "gt.lmdb")
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
    for index, path in enumerate(paths):
        assert (read_image(path) == noise(40, 48, seed=index)).all()
    for index, path in enumerate(paths):
        save(database / "files/gt" / path.name, noise(40, 48, seed=index))
        save(database / "files/lq" / path.name, noise(10, 12, seed=index))
    roots = {"dataroot_gt": str(database / "gt.lmdb"), "dataroot_lq": str(database / "lq.lmdb")}
    files = {"dataroot_gt": str(database / "files/gt"), "dataroot_lq": str(database / "files/lq")}
    for cache in ({}, {"cache": "memory"}, {"cache": "mapped", "cache_dir": str(database / "cache")}):
        for visit in range(2):
            one, other = (create(database, **each, **cache)[Request(1, visit, 0)] for each in (roots, files))
            assert torch.equal(one["lq"], other["lq"])
            assert torch.equal(one["hq"], other["hq"])


def test_a_broken_database_is_told(database, monkeypatch):
    listing = database / "gt.lmdb/meta_info.txt"
    listing.write_text(listing.read_text() + "999.png (1,1,3) 1\n")
    with pytest.raises(BadSample, match="not in the database"):
        read_image(list_images(database / "gt.lmdb")[3])
    listing.write_text("")
    with pytest.raises(DataError, match="names no image"):
        list_images(database / "gt.lmdb")
    listing.unlink()
    with pytest.raises(DataError, match=r"meta_info\.txt: does not exist"):
        list_images(database / "gt.lmdb")
    (database / "lq.lmdb/data.mdb").write_bytes(np.zeros(9000, np.uint8).tobytes())
    with pytest.raises(DataError, match="cannot be opened"):
        read_image(database / "lq.lmdb/000.png")


def test_without_the_package_the_message_says_so(tmp_path, monkeypatch):
    (tmp_path / "x.lmdb").mkdir()
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(MissingPackageError, match="lmdb"):
        lmdb_folder.entries(tmp_path / "x.lmdb")


@pytest.mark.parametrize(("ending", "lost"), [(".lmdb", []), ("", ["datasets.train.io_backend.type"])])
def test_databases_are_carried_over_from_basicsr(tmp_path, ending, lost):
    tree = yaml.safe_load((__import__("pathlib").Path(__file__).parent / "option_files/basicsr_gan.yml").read_text())
    before = [each.path for each in convert(write(tmp_path / "0.yml", tree)).uncarried if "io_backend" not in each.path]
    for key in ("dataroot_gt", "dataroot_lq"):
        tree["datasets"]["train"][key] += ending
    found = [each.path for each in convert(write(tmp_path / "1.yml", tree)).uncarried]
    assert sorted(found) == sorted(before + lost)


def write(path, tree):
    path.write_text(yaml.safe_dump(tree))
    return path
