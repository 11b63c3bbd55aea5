"""Super-resolution pairs from folders and from the built-in photographs."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images import photographs
from dlas.data.images.files import read_image, to_tensor
from dlas.data.images.pairs import shrink, unique_names
from dlas.data.images.photographs import TRAIN, VALIDATION, locate
from dlas.data.loader import build_loader, evaluation_items
from dlas.data.sampler import SampleOrder
from dlas.errors import ConfigurationError, DataError, MissingPackageError
from dlas.layers.resize import imresize


def noise(height, width, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype=dtype)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def positions_image(height, width):
    """Every pixel holds its own place: red the row, green the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


def paired(phase="train", **options):
    options = {"mode": "paired_images", "scale": 4, "target_size": 16, **{k: _text(v) for k, v in options.items()}}
    return create_dataset(options, phase=phase, name="photos")


def _text(value):
    return str(value) if isinstance(value, Path) else value


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        save(tmp_path / "gt" / f"{index}.png", noise(40 + index, 50, seed=index))
    return tmp_path / "gt"


@pytest.fixture
def grid(tmp_path):
    """One pair in which every low-quality pixel says which high-quality block it belongs to."""
    save(tmp_path / "gt" / "a.png", positions_image(120, 160))
    save(tmp_path / "lq" / "a.png", positions_image(120, 160)[::4, ::4])
    return {"dataroot_gt": tmp_path / "gt", "dataroot_lq": tmp_path / "lq"}


def rows_and_columns(sample, key):
    return (sample[key][:2] * 255).round().long()


@pytest.mark.parametrize("use_flip", [False, True])
@pytest.mark.parametrize("use_rot", [False, True])
def test_crops_are_aligned_and_turned_together(grid, use_flip, use_rot):
    dataset = paired(**grid, use_flip=use_flip, use_rot=use_rot)
    attitudes, corners = set(), set()
    for position in range(200):
        sample = dataset[Request(0, position, seed=1)]
        hq, lq = rows_and_columns(sample, "hq"), rows_and_columns(sample, "lq")
        assert hq.shape == (2, 16, 16) and lq.shape == (2, 4, 4)
        blocks = hq.unfold(1, 4, 4).unfold(2, 4, 4).amin((-1, -2))  # the least place in each 4 x 4 block
        assert torch.equal(blocks, lq)
        corners.add(tuple(lq.amin((1, 2)).tolist()))
        attitudes.add(tuple((hq[:, 0, 1] - hq[:, 0, 0]).tolist() + (hq[:, 1, 0] - hq[:, 0, 0]).tolist()))
    assert len(attitudes) == {(False, False): 1, (True, False): 2, (False, True): 4, (True, True): 8}[use_flip, use_rot]
    assert {row for row, _ in corners} == set(range(0, 120 - 16 + 1, 4))  # every place is reached, the last one too
    assert {column for _, column in corners} == set(range(0, 160 - 16 + 1, 4))


def test_switching_an_augmentation_leaves_the_places_of_the_crops(grid):
    plain, turned = paired(**grid, use_flip=False, use_rot=False), paired(**grid)
    for position in range(20):
        request = Request(0, position, seed=0)
        assert torch.equal(plain[request]["hq"].amin((1, 2)), turned[request]["hq"].amin((1, 2)))


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_reads_of_one_request_are_identical(folder, cache):
    first, second = paired(dataroot_gt=folder, cache=cache), paired(dataroot_gt=folder, cache="none")
    for position in range(10):
        request = Request(position % 5, position, seed=3)
        a, b, again = first[request], second[request], first[request]
        assert a["path"] == b["path"] == str(folder / f"{position % 5}.png")
        for key in ("lq", "hq"):
            assert a[key].dtype == torch.float32 and a[key].is_contiguous()
            assert torch.equal(a[key], b[key]) and torch.equal(a[key], again[key])


def test_a_batch_may_be_changed_without_changing_the_cache(folder):
    dataset = paired(dataroot_gt=folder, cache="memory")
    before = dataset[Request(0, 0, 0)]["hq"].clone()
    dataset[Request(0, 0, 0)]["hq"].zero_()
    assert torch.equal(dataset[Request(0, 0, 0)]["hq"], before)
    whole = paired("val", dataroot_gt=folder, cache="memory")
    whole[Request(0, 0, 0)]["hq"].zero_()
    assert whole[Request(0, 0, 0)]["hq"].max() == 1


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_workers_change_nothing(folder, cache):
    def batches(n_workers, start):
        dataset = paired(dataroot_gt=folder, cache=cache)
        with build_loader(dataset, batch_size=4, order=SampleOrder(5, 9), start_position=start, n_workers=n_workers) as loader:
            return list(islice(loader, 4))

    alone = batches(0, 0)
    for other, expected in ((batches(2, 0), alone), (batches(2, 8)[:2], alone[2:])):
        for a, b in zip(other, expected, strict=True):
            assert torch.equal(a["lq"], b["lq"]) and torch.equal(a["hq"], b["hq"])
            assert (a["path"], a["positions"]) == (b["path"], b["positions"])


@pytest.mark.parametrize(("scale", "size"), [(2, (42, 50)), (3, (42, 51)), (4, (40, 48))])
def test_evaluation_gives_whole_images_and_the_bicubic_of_them(tmp_path, scale, size):
    save(tmp_path / "a.png", noise(43, 51))
    (item,) = evaluation_items(paired("val", dataroot_gt=tmp_path, scale=scale, target_size=1000))
    whole = to_tensor(read_image(tmp_path / "a.png"))[None]
    height, width = size
    assert torch.equal(item["hq"], whole[:, :, :height, :width])
    expected = imresize(item["hq"].double(), 1 / scale).clamp(0, 1).mul(255)
    assert item["lq"].shape == (1, 3, height // scale, width // scale)
    levels = item["lq"].double() * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)  # the low-quality image has whole 8-bit levels ...
    assert (levels - expected).abs().max() <= 0.5 + 1e-3  # ... the nearest ones
    assert item["name"] == ["a"] and item["path"] == [str(tmp_path / "a.png")]


def test_sixteen_bits_stay_sixteen_bits():
    image = noise(16, 16, dtype=np.uint16)
    small = shrink(image, 4)
    assert small.dtype == np.uint16
    expected = imresize(to_tensor(image).double(), 0.25).clamp(0, 1).mul(65535)
    assert np.abs(small.transpose(2, 0, 1) - expected.numpy()).max() <= 0.5 + 0.05


def test_scale_one_gives_equal_images(folder):
    sample = paired(dataroot_gt=folder, scale=1, target_size=15)[Request(0, 0, 0)]
    assert sample["lq"].shape == (3, 15, 15) and torch.equal(sample["lq"], sample["hq"])


def test_partners_are_found_by_template_in_lists_of_folders(tmp_path):
    for root in ("one", "two"):
        for name in ("10.png", "2.png", "sub/a.b.png"):
            save(tmp_path / root / "gt" / name, noise(16, 16))
            save(tmp_path / root / "lq" / name.replace(".png", "x4.bmp"), noise(4, 4))
    dataset = paired(
        dataroot_gt=[str(tmp_path / "one/gt"), str(tmp_path / "two/gt")],
        dataroot_lq=[str(tmp_path / "one/lq"), str(tmp_path / "two/lq")],
        filename_template="{}x4",
    )
    names = [(str(hq.relative_to(tmp_path)), str(lq.relative_to(tmp_path))) for hq, lq in dataset.files]
    expected = [("gt/2.png", "lq/2x4.bmp"), ("gt/10.png", "lq/10x4.bmp"), ("gt/sub/a.b.png", "lq/sub/a.bx4.bmp")]
    assert names == [(f"{root}/{hq}", f"{root}/{lq}") for root in ("one", "two") for hq, lq in expected]


def test_missing_partners_are_counted_and_shown(tmp_path):
    for index in range(8):
        save(tmp_path / "gt" / f"{index}.png", noise(16, 16))
    save(tmp_path / "lq" / "0.png", noise(4, 4))
    save(tmp_path / "lq" / "extra.png", noise(4, 4))
    with pytest.raises(
        DataError,
        match=r"datasets.photos \(mode paired_images, phase train\): .*gt has 8 images and .*lq has 2.* 7 \(1, 2, 3, 4, 5, "
        r"\.\.\.\) without a low-quality partner, 1 \(extra\) without a high-quality one; .*filename_template",
    ):
        paired(dataroot_gt=tmp_path / "gt", dataroot_lq=tmp_path / "lq")


def test_an_unclear_partner_is_refused(tmp_path):
    for name in ("gt/a.png", "lq/a.png", "lq/a.bmp"):
        save(tmp_path / name, noise(16, 16))
    with pytest.raises(DataError, match="differ only in extension"):
        paired(dataroot_gt=tmp_path / "gt", dataroot_lq=tmp_path / "lq")


def test_a_pair_of_the_wrong_sizes_names_both_files(tmp_path):
    save(tmp_path / "gt" / "a.png", noise(42, 50))
    save(tmp_path / "lq" / "a.png", noise(20, 25))
    dataset = paired(dataroot_gt=tmp_path / "gt", dataroot_lq=tmp_path / "lq")
    with pytest.raises(
        BadSample,
        match=r"gt/a.png: is 48 x 40 pixels .*scale 4.* partner .*lq/a.png is 25 x 20; expected 12 x 10; correct `scale`",
    ):
        dataset[Request(0, 0, 0)]


def test_an_image_smaller_than_the_crop_is_named(tmp_path):
    save(tmp_path / "a.png", noise(15, 64))
    with pytest.raises(
        BadSample, match=r"a.png: is 64 x 12 pixels once cropped to a multiple of scale 4; expected 16 x 16 at least; lower"
    ):
        paired(dataroot_gt=tmp_path)[Request(0, 0, 0)]
    save(tmp_path / "a.png", noise(3, 64))
    with pytest.raises(BadSample, match=r"a.png: is 64 x 3 pixels; expected 4 or more each way"):
        paired("val", dataroot_gt=tmp_path)[Request(0, 0, 0)]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_bad_files_are_skipped_alike_with_and_without_workers(folder, cache):
    (folder / "1.png").write_bytes(b"")
    (folder / "3.png").write_bytes((folder / "4.png").read_bytes()[:300])

    def batches(n_workers):
        dataset = paired(dataroot_gt=folder, on_bad_file="skip", cache=cache)
        with build_loader(dataset, batch_size=5, order=SampleOrder(5, 0), n_workers=n_workers) as loader:
            return list(islice(loader, 4)), loader.bad_files

    alone, bad = batches(0)
    crew, bad_of_crew = batches(2)
    assert bad == bad_of_crew
    assert bad.keys() == {str(folder / "1.png"), str(folder / "3.png")}
    assert all(Path(path).name in ("0.png", "2.png", "4.png") for batch in alone for path in batch["path"])
    assert all(torch.equal(a["hq"], b["hq"]) for a, b in zip(alone, crew, strict=True))
    with pytest.raises(BadSample, match=r"[13].png: is (empty|damaged).*on_bad_file: skip"):
        next(build_loader(paired(dataroot_gt=folder, cache=cache), batch_size=5, order=SampleOrder(5, 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 18}, "target_size 18 is not a multiple of scale 4; the nearest are 16 and 20"),
        ({"target_size": 3}, "target_size 3 is not a multiple of scale 4; the nearest are 4 and 8"),
        ({"scale": 0}, "scale must be 1 or more"),
        ({"filename_template": "x4"}, "one {}"),
        ({"filename_template": "{}x4"}, "dataroot_lq, which is not given"),
        ({"dataroot_gt": []}, "dataroot_gt is an empty list"),
        ({"dataroot_lq": ["a", "b"]}, "dataroot_gt has 1 folders and dataroot_lq 2"),
        ({"target_sise": 16}, "no option 'target_sise'; did you mean 'target_size'"),
    ],
)
def test_wrong_options_are_found_at_once(folder, options, message):
    with pytest.raises(ConfigurationError, match=f"^datasets.photos: .*{message}"):
        paired(**{"dataroot_gt": folder, **options})


def test_names_are_short_where_they_can_be():
    def names(*paths):
        return unique_names([Path(path) for path in paths])

    assert names("/x/a.png", "/x/b.png") == ["a", "b"]
    assert names("/x/one/a.png", "/x/two/a.png", "/x/two/b.png") == ["one__a", "two__a", "two__b"]
    assert names("/x/a.png", "/x/a.jpg", "/x/b.jpg") == ["a.png", "a.jpg", "b"]


def builtin(phase, **options):
    return create_dataset({"mode": "builtin_photos", "scale": 4, **options}, phase=phase, name=phase)


def test_the_built_in_split_has_no_image_on_both_sides():
    def scenes(photos):
        return {Path(photo.file).stem.removesuffix("_left").removesuffix("_right") for photo in photos}

    assert not scenes(TRAIN) & scenes(VALIDATION)
    assert {len(TRAIN), len(set(TRAIN))} == {10}
    train, val = builtin("train"), builtin("val")
    assert {pair.hq for pair in train.files} == {locate(photo) for photo in TRAIN}
    assert {pair.hq for pair in val.files} == {locate(photo) for photo in VALIDATION}


def test_built_in_photographs_have_the_sizes_of_the_table():
    from dlas.data.images.photographs import BuiltinPhotos

    table = {}
    for line in BuiltinPhotos.__doc__.splitlines():
        words = line.split()
        if len(words) > 5 and words[2] == "x":
            table[words[0]] = (int(words[1]), int(words[3]), words[4])
    found = {}
    for split, photos in (("train", TRAIN), ("val", VALIDATION)):
        for photo in photos:
            height, width, _ = read_image(locate(photo)).shape
            found[Path(photo.file).name] = (width, height, split)
    assert table == found


def test_built_in_photographs_train_and_validate():
    sample = builtin("train")[Request(0, 0, 0)]
    assert sample["hq"].shape == (3, 128, 128) and sample["lq"].shape == (3, 32, 32)
    items = list(evaluation_items(builtin("val")))
    assert [item["name"] for item in items] == [["astronaut"], ["chelsea"], ["china"], ["coffee"]]
    for item in items:
        assert item["hq"].shape[2] == 4 * item["lq"].shape[2] and item["hq"].shape[3] == 4 * item["lq"].shape[3]


def test_packages_of_photographs_are_not_imported():
    import subprocess

    program = (
        "import sys; from dlas.data.base import create_dataset; "
        "create_dataset({'mode': 'builtin_photos', 'scale': 4}, phase='train', name='train'); "
        "print([m for m in ('skimage', 'sklearn', 'scipy') if m in sys.modules])"
    )
    codes = Path(photographs.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(codes)}, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_missing_package_or_file_is_named(monkeypatch):
    with pytest.raises(DataError, match=r"data/gone.png is missing from the installed scikit-image; .*pip install"):
        locate(photographs.Photograph("skimage", "data/gone.png"))
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"scikit-learn.*pip install scikit-learn"):
        locate(photographs.Photograph("sklearn", "datasets/images/china.jpg"))


def test_input_images_are_given_as_they_are_and_cannot_be_trained_on(folder):
    options = {"mode": "input_images", "dataroot": str(folder)}
    dataset = create_dataset(options, phase="val", name="mine")
    items = list(evaluation_items(dataset))
    assert [item["name"][0] for item in items] == ["0", "1", "2", "3", "4"]
    assert items[3]["lq"][0].equal(to_tensor(read_image(folder / "3.png")))
    assert "hq" not in items[0]
    (folder / "9.png").write_bytes(b"no image")
    with pytest.raises(BadSample, match=r"9\.png"):
        list(evaluation_items(create_dataset(options, phase="val", name="mine")))
    bad: dict[str, str] = {}
    left = list(evaluation_items(create_dataset({**options, "on_bad_file": "skip"}, phase="val", name="mine"), bad))
    assert len(left) == 5
    assert list(bad) == [str(folder / "9.png")]
    with pytest.raises(ConfigurationError, match="no true pictures"):
        create_dataset(options, phase="train", name="train")
