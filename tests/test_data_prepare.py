"""Pictures made ready ahead of training: what is written is what data sets would have made, once, whole, and by any workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import planted
from dlas.cli.main import main
from dlas.data.base import Request, create_dataset
from dlas.data.images import cache as cache_module
from dlas.data.images.files import list_images, read_image
from dlas.data.preparation.tiles import detail, starts
from test_data_images import noise, save

ROOT = Path(__file__).resolve().parent.parent
TILES = ["--tile-size", "24", "--step", "16"]


@pytest.fixture
def photos(tmp_path):
    """One picture of each kind that is read."""
    root = tmp_path / "photos"
    save(root / "colour.png", noise(50, 66, seed=1))
    save(root / "sub/grey.png", noise(49, 41, seed=2)[:, :, 0])
    save(root / "alpha.png", np.dstack([noise(40, 40, seed=3), noise(40, 40, seed=4)[:, :, 0]]))
    cv2.imwrite(str(root / "deep.png"), noise(42, 40, seed=5, dtype=np.uint16))
    return root


def prepare(*arguments, workers=0):
    return main(["data", "prepare", *map(str, arguments), "--workers", str(workers)])


def tree(out):
    """Every file of the results, but the notes on what was made when."""
    files = (file for file in sorted(out.rglob("*")) if file.is_file() and ".prepare" not in file.parts)
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def pairs(**options):
    return create_dataset({"mode": "paired_images", **options}, phase="val", name="x")


def assert_same_samples(one, other, keys=("hq", "lq")):
    assert len(one) == len(other) > 0
    for index in range(len(one)):
        for key in keys:
            assert torch.equal(one[Request(index, index, 0)][key], other[Request(index, index, 0)][key])


@pytest.mark.parametrize(
    ("length", "size", "step", "thresh", "expected"),
    [
        (480, 480, 240, 0, [0]),
        (481, 480, 240, 0, [0, 1]),  # one pixel is left over
        (481, 480, 240, 1, [0]),
        (1000, 480, 240, 0, [0, 240, 480, 520]),
        (1000, 480, 240, 39, [0, 240, 480, 520]),
        (1000, 480, 240, 40, [0, 240, 480]),
        (10, 3, 5, 0, [0, 5, 7]),  # gaps
        (10, 3, 5, 2, [0, 5]),
    ],
)
def test_tiles_lie_as_basicsr_lays_them(length, size, step, thresh, expected):
    assert starts(length, size, step, thresh) == expected


def test_detail_is_the_mean_difference_of_neighbours_at_any_depth():
    stripes = np.zeros((6, 8, 3), np.uint8)
    stripes[:, ::2] = 100
    assert detail(stripes) == pytest.approx(50)  # 100 from column to column, 0 from row to row
    assert detail(stripes.astype(np.uint16) * 257) == pytest.approx(50)
    assert detail(np.full((6, 8, 3), 77, np.uint8)) == pytest.approx(0)
    green = np.zeros((6, 8, 3), np.uint8)
    green[:, ::2, 1] = 100
    assert detail(green) == pytest.approx(50 * 0.587)


@pytest.mark.parametrize(("scale", "options"), [(4, TILES), (3, [*TILES, "--thresh-size", "7"]), (4, []), (1, TILES)])
def test_results_are_what_the_loader_makes_of_the_same_pictures(photos, tmp_path, scale, options, capsys):
    out = tmp_path / "out"
    assert prepare(photos, "-o", out, "--scale", scale, *options, "--meta-info", out / "list.txt") == 0
    made = {"dataroot_gt": str(out / "HR"), "scale": scale}
    partners = {"dataroot_lq": str(out / f"LR_x{scale}")} if scale > 1 else {}
    assert_same_samples(pairs(**made), pairs(**made, **partners))
    assert_same_samples(pairs(**made), pairs(**made, meta_info=str(out / "list.txt")))
    side = 24 // scale * scale
    for file in list_images(out / "HR"):
        name, _, number = file.stem.partition("_s")
        source = read_image(next(photos.rglob(f"{name}.png")))
        image = read_image(file)
        assert image.dtype == source.dtype
        if not options:
            height, width = (length // scale * scale for length in source.shape[:2])
            assert (image == source[:height, :width]).all()
            continue
        rows, columns = (starts(length, 24, 16, 7 if "--thresh-size" in options else 0) for length in source.shape[:2])
        top, left = rows[(int(number) - 1) // len(columns)], columns[(int(number) - 1) % len(columns)]
        assert (image == source[top : top + side, left : left + side]).all()
    said = capsys.readouterr().out
    assert "4 pictures: 4 prepared now" in said
    assert f"{len(list_images(out / 'HR'))} {'tiles' if options else 'pictures'} in HR" in said


def test_flat_tiles_are_left_out_and_counted(photos, tmp_path, capsys):
    image = noise(24, 72, seed=6)
    image[:, 24:48] = 128
    save(tmp_path / "half/a.png", image)
    assert prepare(tmp_path / "half", "-o", tmp_path / "out", "--tile-size", 24, "--min-detail", 2) == 0
    assert sorted(tree(tmp_path / "out")) == ["HR/a_s001.png", "HR/a_s003.png"]
    assert "1 left out as flat" in capsys.readouterr().out


def test_results_do_not_depend_on_the_workers(photos, tmp_path):
    for workers in (0, 1, 3):
        prepare(photos, "-o", tmp_path / str(workers), *TILES, "--scale", 4, workers=workers)
    assert tree(tmp_path / "0") == tree(tmp_path / "1") == tree(tmp_path / "3")


def test_a_second_call_makes_only_what_is_missing(photos, tmp_path, capsys):
    out = tmp_path / "out"
    call = [photos, "-o", out, *TILES, "--scale", 4]
    prepare(*call)
    whole, times = tree(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    capsys.readouterr()
    prepare(*call)
    assert "0 prepared now, 4 there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == times
    (out / "LR_x4/grey_s002.png").unlink()
    (out / "HR/deep_s001.png").write_bytes(b"half")
    prepare(*call)
    said = capsys.readouterr().out
    assert "2 prepared now, 2 there already" in said
    assert "LR_x4/grey_s002.png" in said
    assert tree(out) == whole


def test_spoiled_results_are_found_by_verify(photos, tmp_path, capsys):
    out = tmp_path / "out"
    call = [photos, "-o", out, *TILES]
    prepare(*call)
    whole = tree(out)
    file = out / "HR/colour_s003.png"
    file.write_bytes(file.read_bytes()[:-30] + bytes(30))
    prepare(*call)
    assert tree(out) != whole
    capsys.readouterr()
    prepare(*call, "--verify")
    assert tree(out) == whole
    assert "1 files were missing or spoiled and have been made again:\n  HR/colour_s003.png" in capsys.readouterr().out


def test_a_changed_picture_replaces_its_results_and_a_broken_one_takes_them_along(photos, tmp_path, capsys):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    call = [*TILES, "--scale", 4]
    prepare(photos, "-o", out, *call)
    save(photos / "colour.png", noise(30, 30, seed=9))  # fewer tiles
    save(photos / "new.png", noise(30, 30, seed=10))
    (photos / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    capsys.readouterr()
    prepare(photos, "-o", out, *call)
    assert "5 pictures: 2 prepared now, 2 there already, 1 damaged" in capsys.readouterr().out
    prepare(photos, "-o", fresh, *call)
    assert tree(out) == tree(fresh)


def test_unusable_pictures_are_named_and_strict_makes_them_an_error(photos, tmp_path, capsys):
    (photos / "torn.png").write_bytes((photos / "colour.png").read_bytes()[:300])
    save(photos / "tiny.png", noise(30, 23))
    call = [photos, "-o", tmp_path / "out", *TILES]
    assert prepare(*call) == 0
    said = capsys.readouterr().out
    assert "6 pictures: 4 prepared now, 0 there already, 1 too small, 1 damaged" in said
    assert "torn.png: is damaged or truncated (300 bytes)" in said
    assert "tiny.png: is 23 x 30 pixels; expected 24 x 24 (tile-size) at least" in said
    assert prepare(*call, "--strict") == 1
    for path in photos.rglob("*.png"):
        path.write_bytes(b"nothing")
    assert prepare(photos, "-o", tmp_path / "none", *TILES) == 1


def test_nothing_is_overwritten_or_mixed(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert prepare(photos, "-o", out, *TILES) == 0
    before = tree(out)

    def refused(*arguments):
        status = prepare(*arguments)
        return capsys.readouterr().err if status else ""

    assert "tile_size was 24 and is 20" in refused(photos, "-o", out, "--tile-size", 20, "--step", 16)
    assert "folders was" in refused(photos / "sub", "-o", out, *TILES)
    assert "lies in" in refused(photos, "-o", photos / "out", *TILES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    assert "nothing is overwritten" in refused(photos, "-o", tmp_path / "mine", *TILES)
    (tmp_path / "list.txt").write_text("mine")
    assert "exists with other content" in refused(photos, "-o", out, *TILES, "--meta-info", tmp_path / "list.txt")
    grey = (photos / "sub/grey.png").rename(tmp_path / "grey.png")
    assert "results of 1 files that are no longer in the sources" in refused(photos, "-o", out, *TILES)
    grey.rename(photos / "sub/grey.png")
    assert tree(out) == before
    (out / "HR/stranger.txt").write_text("mine")
    assert prepare(photos, "-o", out, "--tile-size", 20, "--overwrite") == 0
    assert prepare(photos, "-o", tmp_path / "fresh", "--tile-size", 20) == 0
    assert tree(out) == {**tree(tmp_path / "fresh"), "HR/stranger.txt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{photos}"], "nothing to do"),
        ([], "one of the two"),
        (["{photos}", "-opt", "x.yml"], "one of the two"),
        (["{photos}", "--lmdb", "--cache"], "--lmdb is about results"),
        (["{photos}", "-o", "{out}", "--step", "3"], "give tile-size"),
        (["{photos}", "-o", "{out}", "--layout", "chunks"], "give tile-size"),
        (["{photos}", "-o", "{out}", "--layout", "chunks", "--tile-size", "24", "--scale", "4"], "remove scale"),
        (["{photos}", "-o", "{out}", "--layout", "chunks", "--tile-size", "24", "--cache"], "remove --lmdb, --cache"),
        (["{photos}", "-o", "{out}", "--tile-size", "3", "--scale", "4"], "less than a pixel"),
    ],
)
def test_options_that_contradict_each_other_are_refused(photos, tmp_path, arguments, words, capsys):
    assert prepare(*(each.format(photos=photos, out=tmp_path / "out") for each in arguments)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_killed_at_any_time_it_goes_on_to_the_same_end(tmp_path):
    for index in range(24):
        save(tmp_path / f"photos/{index}.png", noise(200, 200, seed=index))
    call = [*map(str, ["data", "prepare", tmp_path / "photos", "--tile-size", 64, "--step", 32, "--scale", 4, "--workers", 2])]
    assert main([*call, "-o", str(tmp_path / "unkilled")]) == 0
    expected, out = tree(tmp_path / "unkilled"), tmp_path / "out"
    kills, amounts = 0, []
    for tiles in (1, 60, 200, 400):
        process = multiprocessing.get_context("fork").Process(target=main, args=([*call, "-o", str(out)],))
        process.start()
        while process.is_alive() and len(list(out.glob("*/*.png"))) < tiles:
            time.sleep(0.005)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        found = {name: content for name, content in tree(out).items() if not Path(name).name.startswith(".")}
        amounts.append(len(found))
        assert all(expected[name] == content for name, content in found.items())
    assert kills >= 3
    assert amounts == sorted(amounts)
    time.sleep(1.5)  # workers of the killed ones end by themselves
    assert main([*call, "-o", str(out)]) == 0
    assert tree(out) == expected
    assert not list(out.rglob("*.tmp"))


def test_workers_end_with_a_killed_program(tmp_path):
    program = (
        "import os, time\n"
        "from dlas.data.pool import map_in_processes\n"
        "def wait(_):\n"
        f"    open(r'{tmp_path}/' + str(os.getpid()), 'w').close()\n"
        "    time.sleep(60)\n"
        "list(map_in_processes(wait, range(8), 2, str))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "codes")})
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    while any(map(_is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_alive, workers))


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_chunk_folders_are_read_back(photos, tmp_path):
    out = tmp_path / "out"
    assert prepare(photos, "-o", out, *TILES, "--layout", "chunks") == 0
    assert prepare(photos, "-o", tmp_path / "files", *TILES) == 0
    options = {"mode": "single_image_extensible", "target_size": 24, "scale": 4, "strict": True, "eval": True}
    chunks = create_dataset({**options, "paths": str(out / "chunks")}, phase="val", name="x")
    assert_same_samples(chunks, pairs(dataroot_gt=str(tmp_path / "files/HR"), scale=1), keys=["hq"])
    folder = out / "chunks/colour"
    with Image.open(folder / "ref.jpg") as reference:
        assert reference.size == (24, 24)
    # 50 x 66 pixels: rows begin at 0, 16, 26 and columns at 0, 16, 32, 42
    places = torch.load(folder / "centers.pt", weights_only=True)
    assert sorted(places) == list(range(1, 13)) == [int(tile.stem) for tile in sorted(folder.glob("0*.png"))]
    width = round(24 * (24 / 50 + 24 / 66) / 2)
    assert places[1] == ((int(12 * 24 / 50), int(12 * 24 / 66)), width)
    assert places[8] == ((int(28 * 24 / 50), int(54 * 24 / 66)), width)


def test_databases_are_read_back_and_alike_every_time(photos, tmp_path, capsys):
    pytest.importorskip("lmdb")
    for name in ("one", "two"):
        assert prepare(photos, "-o", tmp_path / name, *TILES, "--scale", 4, "--lmdb") == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    out = tmp_path / "one"
    capsys.readouterr()
    prepare(photos, "-o", out, *TILES, "--scale", 4, "--lmdb")
    assert "wrote" not in capsys.readouterr().out
    files = pairs(dataroot_gt=str(out / "HR"), dataroot_lq=str(out / "LR_x4"), scale=4)
    assert_same_samples(files, pairs(dataroot_gt=str(out / "HR.lmdb"), dataroot_lq=str(out / "LR_x4.lmdb"), scale=4))
    save(photos / "colour.png", noise(30, 30, seed=9))
    prepare(photos, "-o", out, *TILES, "--scale", 4, "--lmdb")
    assert len(list_images(out / "HR.lmdb")) == len(list_images(out / "HR"))


def test_without_the_package_no_database_is_begun(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert prepare(photos, "-o", tmp_path / "out", *TILES, "--lmdb") == 1
    assert "lmdb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def configuration(tmp_path, *sets):
    """A file with data sets, whatever else a file needs."""
    head, rest = planted.plant(tmp_path / "planted").split("datasets:\n")
    rest = rest[rest.index("networks:\n") :]
    (tmp_path / "x.yml").write_text(head + "datasets:\n" + "".join(f"  {each}\n" for each in sets) + rest)
    return tmp_path / "x.yml"


def entries(folder):
    return sorted(folder.rglob("*.pixels"))


def test_the_cache_of_a_file_is_warm_before_training(photos, tmp_path, monkeypatch, capsys):
    for index, path in enumerate(list_images(photos)):
        save(tmp_path / f"degraded/{index}.png", read_image(path).astype(np.uint8))
    common = f"cache: mapped, cache_dir: {tmp_path}/cache"
    configuration(
        tmp_path,
        f"train: {{mode: paired_images, dataroot_gt: {photos}, target_size: 16, {common}}}",
        f"val: {{mode: degraded_images, dataroot_gt: {tmp_path}/degraded, degradation: {{type: bsrgan}}, {common}}}",
        f"plain: {{mode: paired_images, dataroot_gt: {photos}}}",
    )
    assert prepare("-opt", tmp_path / "x.yml") == 0
    said = capsys.readouterr().out
    assert "12 images added" in said  # four with what is made of them, and four
    total = sum(file.stat().st_size for file in entries(tmp_path / "cache"))
    assert f"{total / 1e9:.3f} GB are missing" in said
    assert prepare("-opt", tmp_path / "x.yml") == 0
    assert "0 images added (0.000 GB), 12 were there" in capsys.readouterr().out
    wanted = pairs(dataroot_gt=str(photos), scale=4)
    samples = [wanted[Request(index, index, 0)] for index in range(4)]
    for name in ("read_image", "shrink"):
        monkeypatch.setattr(f"dlas.data.images.pairs.{name}", lambda *_: pytest.fail("decoded again"))
    warm = pairs(dataroot_gt=str(photos), scale=4, cache="mapped", cache_dir=str(tmp_path / "cache"))
    for index in range(4):
        assert torch.equal(warm[Request(index, index, 0)]["lq"], samples[index]["lq"])


@pytest.mark.parametrize("results", [True, False])
def test_the_cache_of_folders_is_warm(photos, tmp_path, results, monkeypatch):
    out = ["-o", tmp_path / "out", *TILES] if results else []
    assert prepare(photos, *out, "--scale", 4, "--cache", "--cache-dir", tmp_path / "cache", workers=2) == 0
    roots = {"dataroot_gt": str(photos)}
    if results:
        roots = {"dataroot_gt": str(tmp_path / "out/HR"), "dataroot_lq": str(tmp_path / "out/LR_x4")}
    monkeypatch.setattr("dlas.data.images.pairs.read_image", lambda *_: pytest.fail("decoded again"))
    warm = pairs(**roots, scale=4, cache="mapped", cache_dir=str(tmp_path / "cache"))
    for index in range(len(warm)):
        warm[Request(index, index, 0)]


def test_a_cache_without_room_is_refused_before_anything_is_written(photos, tmp_path, monkeypatch, capsys):
    call = [photos, "--scale", 4, "--cache", "--cache-dir", tmp_path / "cache"]
    sizes = [(50, 66, 1), (12, 16, 1), (49, 41, 1), (12, 10, 1), (40, 40, 1), (10, 10, 1), (42, 40, 2), (10, 10, 2)]
    needed = sum(64 + 3 * height * width * depth for height, width, depth in sizes)
    assert prepare(*call, "--cache-gb", (needed - 1) / 1e9) == 1
    assert "raise cache_gb" in capsys.readouterr().err
    monkeypatch.setattr(cache_module, "_free", lambda folder: (1 << 30) + needed - 1)
    assert prepare(*call) == 1
    assert "the disk has room for" in capsys.readouterr().err
    assert not entries(tmp_path / "cache")
    monkeypatch.undo()
    assert prepare(*call, "--cache-gb", needed / 1e9) == 0
    assert len(entries(tmp_path / "cache")) == 8
    assert sum(file.stat().st_size for file in entries(tmp_path / "cache")) == needed


def test_verify_finds_spoiled_images_of_the_cache(photos, tmp_path, capsys):
    call = [photos, "--scale", 4, "--cache", "--cache-dir", tmp_path / "cache"]
    prepare(*call)
    sound = {file: file.read_bytes() for file in entries(tmp_path / "cache")}
    spoiled = [file for file in sound if len(sound[file]) > 1000][:2]
    for file in spoiled:
        data = bytearray(sound[file])
        data[900] ^= 1
        file.write_bytes(data)
    prepare(*call)
    assert "0 images added" in capsys.readouterr().out.splitlines()[-2]
    prepare(*call, "--verify")
    assert "2 files were missing or spoiled" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in entries(tmp_path / "cache")} == sound
    used = int((tmp_path / "cache/used").read_text())
    assert used == sum(map(len, sound.values()))


def test_files_that_cannot_be_cached_are_named(photos, tmp_path, capsys):
    (photos / "torn.png").write_bytes((photos / "colour.png").read_bytes()[:300])
    save(photos / "tiny.png", noise(30, 3))
    call = [photos, "--scale", 4, "--cache", "--cache-dir", tmp_path / "cache"]
    assert prepare(*call, "--strict") == 1
    said = capsys.readouterr().out
    assert "2 files cannot be used" in said
    assert "torn.png: is damaged" in said
    assert "tiny.png: is 3 x 30 pixels; expected 4 or more" in said
    assert "9 images added" in said  # the small one as it is, too


def test_a_file_without_a_mapped_cache_is_refused(photos, tmp_path, capsys):
    configuration(tmp_path, f"train: {{mode: paired_images, dataroot_gt: {photos}}}")
    assert prepare("-opt", tmp_path / "x.yml") == 2
    assert "datasets.train.cache=mapped" in capsys.readouterr().err


def test_two_calls_do_not_work_in_one_folder(photos, tmp_path, capsys):
    from dlas.observe.lock import locked

    with locked(tmp_path / "out/.prepare/lock", "preparing out"):
        assert prepare(photos, "-o", tmp_path / "out", *TILES) == 1
    assert "give another --output" in capsys.readouterr().err
