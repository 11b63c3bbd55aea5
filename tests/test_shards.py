"""Files packed into shards: tar as webdataset has them, and MDS; to a data set they are a folder."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.cli.main import main
from dlas.data.audio.files import list_sounds, read_sound
from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images.files import list_images, read_image
from dlas.data.loader import build_loader
from dlas.data.sampler import SampleOrder
from dlas.data.shards import folder as shards
from dlas.data.shards import packing, tar
from dlas.data.shards.names import files_of, key_and_ending, split, without_field
from dlas.errors import ConfigurationError, DataError
from test_data_images import noise, save

COUNT = 7


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "pictures"
    for number in range(COUNT):
        path = root / f"{number:04d}.png"
        save(path, noise(40 + number, 44, seed=number))
        path.with_suffix(".txt").write_text(f"picture {number}\n")
    return root


def packed(folder, kind="tar", size=12_000):
    out = folder.parent / f"{folder.name}_{kind}_{size}"
    packing.pack(folder, out, kind, size)
    return out


def shard_pattern(out):
    last = max(out.glob("*.tar")).stem
    return f"{out}/{{00000..{last}}}.tar"


def write_tar(path, files, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def create(mode="paired_images", phase="train", **options):
    defaults = {"paired_images": {"scale": 4, "target_size": 16}, "captioned_images": {"target_size": 16}}
    return create_dataset({"mode": mode, **defaults.get(mode, {}), **options}, phase=phase, name="x")


def same(a, b):
    assert a.keys() == b.keys()
    for key in a.keys() - {"path"}:
        assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


def requests(dataset):
    return [Request(index, 100 + index, 5) for index in range(len(dataset))]


# names


def test_ranges_lists_and_wildcards_name_shards(tmp_path):
    for name in ("a/08.tar", "a/09.tar", "a/10.tar", "b/08.tar"):
        write_tar(tmp_path / name, [("x", b"1")])

    def found(pattern):
        files_of.cache_clear()
        return [path.relative_to(tmp_path).as_posix() for path in files_of(f"{tmp_path}/{pattern}")]

    assert found("a/{08..10}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar"]
    assert found("{b,a}/08.tar") == ["b/08.tar", "a/08.tar"]
    assert found("*/*.tar") == ["a/08.tar", "a/09.tar", "a/10.tar", "b/08.tar"]
    with pytest.raises(DataError, match=r"b/09\.tar: this shard does not exist \(2 of 3 of .* do not\)"):
        found("b/{08..10}.tar")
    with pytest.raises(DataError, match="ends before it begins"):
        found("a/{9..8}.tar")
    with pytest.raises(DataError, match="no file is called so"):
        found("c/*.tar")


def test_paths_into_shards():
    assert split("a/{0..9}.tar/b/c.d.png") == (("a/{0..9}.tar", ""), "b/c.d.png")
    assert split("a.tar:gt/1.png") == (("a.tar", "gt"), "1.png")
    assert split("a/index.json:image.hq") == (("a/index.json", "image.hq"), "")
    assert split("a/my_index.json/b.png") is None
    assert split("a/tar/b.png") is None
    assert key_and_ending("a.b/0001.gt.png") == ("a.b/0001", "gt.png")
    assert without_field("a/0001.gt.png", "gt") == "a/0001.png"
    assert without_field("a/0001.png", "gt") is None


# the same samples as from the folder


@pytest.mark.parametrize("kind", ["tar", "mds"])
@pytest.mark.parametrize("phase", ["train", "val"])
def test_samples_are_those_of_the_folder(pictures, kind, phase):
    out = packed(pictures, kind)
    root = shard_pattern(out) if kind == "tar" else str(out)
    assert len(list(out.glob("*.tar" if kind == "tar" else "*.mds"))) > 2
    plain, from_shards = create(dataroot_gt=str(pictures), phase=phase), create(dataroot_gt=root, phase=phase)
    assert len(from_shards) == COUNT
    for request in requests(plain):
        a, b = plain[request], from_shards[request]
        if kind == "mds":  # samples of MDS have numbers, no names
            b = {**b, **{key: a[key] for key in ("name",) if key in a}}
        same(a, b)


def test_degradations_and_caches_read_shards(pictures, tmp_path):
    root = shard_pattern(packed(pictures))
    options = {"scale": 4, "target_size": 16, "degradation": {"type": "bsrgan"}}
    plain, from_shards = (create("degraded_images", dataroot_gt=str(each), **options) for each in (pictures, root))
    for request in requests(plain)[:2]:
        same(plain[request], from_shards[request])
    cached = create(dataroot_gt=root, cache="mapped", cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        same(create(dataroot_gt=str(pictures))[requests(cached)[3]], cached[requests(cached)[3]])
    assert len(list((tmp_path / "cache").rglob("*.*"))) >= 1


@pytest.mark.parametrize("kind", ["tar", "mds"])
def test_captions_lie_in_the_shards(pictures, kind):
    out = packed(pictures, kind)
    dataset = create("captioned_images", paths=shard_pattern(out) if kind == "tar" else str(out), random_caption=False)
    assert [dataset[request]["caption"] for request in requests(dataset)] == [f"picture {n}" for n in range(COUNT)]


def test_fields_of_one_key_are_folders_of_their_own(tmp_path):
    source = tmp_path / "pairs"
    for number in range(4):
        save(source / f"{number}.gt.png", noise(32, 32, seed=number))
        save(source / f"{number}.lq.png", noise(8, 8, seed=number))
    for root in (shard_pattern(packed(source)), f"{packed(source, 'mds')}/index.json"):
        fields = {name: f"{root}:{column}" for name, column in (("dataroot_gt", "gt"), ("dataroot_lq", "lq"))}
        if root.endswith(".json"):
            fields = {name: value.replace(":gt", ":gt.png").replace(":lq", ":lq.png") for name, value in fields.items()}
        dataset = create(phase="val", **fields)
        sample = dataset[Request(2, 0, 0)]
        expected = read_image(source / "2.gt.png"), read_image(source / "2.lq.png")
        for key, pixels in zip(("hq", "lq"), expected, strict=True):
            assert torch.equal(sample[key], torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255)
    with pytest.raises(DataError, match=r"holds no file of the field 'hq'; found 4 x gt\.png, 4 x lq\.png"):
        create(dataroot_gt=f"{shard_pattern(packed(source))}:hq")


def test_a_list_names_files_in_shards(pictures, tmp_path):
    (tmp_path / "list.txt").write_text("0005.png\n0002.png\n")
    dataset = create(dataroot_gt=shard_pattern(packed(pictures)), meta_info=str(tmp_path / "list.txt"))
    assert [dataset.source(n).rpartition("/")[2] for n in range(2)] == ["0005.png", "0002.png"]


def test_sounds_are_read_from_shards(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    source = tmp_path / "sounds"
    (source / "anna").mkdir(parents=True)
    for number in range(3):
        wave = 0.1 * np.random.default_rng(number).standard_normal(4000 + 100 * number)
        soundfile.write(source / "anna" / f"{number}.wav", wave, 8000)
    root = shard_pattern(packed(source))
    for number, path in enumerate(list_sounds(root)):
        assert torch.equal(read_sound(path, 8000), read_sound(source / "anna" / f"{number}.wav", 8000))
    options = {"sampling_rate": 8000, "pad_to_samples": 2000, "extra_samples": 1, "extra_sample_length": 500}
    plain, from_shards = (create("unsupervised_audio", path=str(each), **options) for each in (source, root))
    for request in requests(plain):
        same(plain[request], from_shards[request])
    listed = tmp_path / "sounds_tar_12000" / "clips.jsonl"
    listed.write_text("".join(f'{{"file": "*.tar/anna/{n}.wav", "text": "hello", "speaker": "a"}}\n' for n in range(2)))
    speech = create(
        "paired_voice_audio",
        path=str(listed),
        fetcher_mode="jsonl",
        sample_rate=8000,
        only_clip="self",
        bucket_batches=1,
        use_bpe_tokenizer=False,
    )
    assert list(speech.buckets().lengths) == [(source / "anna" / f"{n}.wav").stat().st_size for n in range(2)]


# order


def first_batches(root, n_workers=0, world_size=1, start=0, count=4):
    """The positions and pictures of the first global batches of 4."""
    dataset = create(dataroot_gt=root)
    found = []
    loaders = [
        build_loader(
            dataset,
            batch_size=4,
            order=SampleOrder(len(dataset), seed=3),
            start_position=start,
            n_workers=n_workers,
            world_size=world_size,
            rank=rank,
        )
        for rank in range(world_size)
    ]
    for _ in range(count):
        parts = [next(loader) for loader in loaders]
        names = [path.rpartition("/")[2] for part in parts for path in part["path"]]
        found.append((names, torch.cat([part["hq"] for part in parts])))
    for loader in loaders:
        loader.close()
    return found


def test_order_and_pictures_depend_neither_on_shards_nor_on_ranks_and_workers_nor_on_a_stop(pictures):
    root = shard_pattern(packed(pictures))
    expected = first_batches(str(pictures))
    others = {
        "shards": first_batches(root),
        "larger shards": first_batches(shard_pattern(packed(pictures, size=30_000))),
        "workers": first_batches(root, n_workers=2),
        "ranks": first_batches(root, world_size=4),
        "resumed": expected[:2] + first_batches(root, world_size=2, start=8, count=2),
    }
    for what, found in others.items():
        for (names, pixels), (wanted, wanted_pixels) in zip(found, expected, strict=True):
            assert names == wanted, what
            assert torch.equal(pixels, wanted_pixels), what


# tar files of others


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_all_kinds_of_headers_are_walked(tmp_path, kind):
    long = "d" * 90 + "/" + "n" * 90 + ("ä" if kind != tarfile.USTAR_FORMAT else "a") + ".txt"
    files = [("a.txt", b"one"), (long, b"two" * 300), ("./empty.txt", b""), ("z.txt", b"x" * 512)]
    path = write_tar(tmp_path / "a.tar", files, format=kind)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
    found = tar.members(path)
    assert [member.name for member in found] == ["a.txt", long, "empty.txt", "z.txt"]
    for name, data in files:
        assert shards.content(path / name.removeprefix("./")) == data
    assert shards.content(path / "b.txt") is None


def test_equal_names_in_two_shards_are_told_apart_by_the_shard(tmp_path):
    for number in range(2):
        data = io.BytesIO()
        save(tmp_path / "x.png", noise(8, 8, seed=number))
        data = (tmp_path / "x.png").read_bytes()
        write_tar(tmp_path / f"s{number}.tar", [("0.png", data)])
    found = list_images(tmp_path / "s{0..1}.tar")
    assert [path.as_posix().partition("}.tar/")[2] for path in found] == ["s0/0.png", "s1/0.png"]
    assert np.array_equal(read_image(found[1]), noise(8, 8, seed=1))


def test_a_compressed_tar_file_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("x.png", b"1")])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar\.gz: this shard is compressed as a whole.*unpack it to a\.tar"):
        list_images(tmp_path / "a.tar.gz")


def test_a_folder_may_be_called_like_a_shard(tmp_path):
    save(tmp_path / "x.tar" / "1.png", noise(8, 8, seed=0))
    assert [path.name for path in list_images(tmp_path / "x.tar")] == ["1.png"]
    assert np.array_equal(read_image(tmp_path / "x.tar" / "1.png"), noise(8, 8, seed=0))


# damage


def spoil(path, place, data):
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)


def test_a_shard_that_is_cut_off_is_named_with_the_place(pictures):
    out = packed(pictures)
    path = out / "00001.tar"
    tar.index_file(path).unlink()
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        DataError, match=r"00001\.tar: is cut off after 3000 bytes: 000\d\.png at byte 512 has \d+; fetch it again"
    ):
        create(dataroot_gt=shard_pattern(out))


def test_a_spoiled_header_is_named_with_the_place(pictures):
    out = packed(pictures)
    path = out / "00001.tar"
    second = tar.members(path)[1].offset - 512
    dataset = create(dataroot_gt=shard_pattern(out))
    spoil(path, second, b"spoiled")
    tar.index_file(path).unlink()
    with pytest.raises(DataError, match=rf"00001\.tar: is damaged \(bad checksum at byte {second} of"):
        list_images(shard_pattern(out))
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(DataError, match=r"00001\.tar: is no tar file"):
        list_images(shard_pattern(out))
    assert len(dataset) == COUNT


def test_damage_that_is_met_while_reading_makes_a_bad_file_and_skip_goes_on(pictures):
    out = packed(pictures)
    dataset = create(dataroot_gt=shard_pattern(out), on_bad_file="skip")
    place = next(member for member in tar.members(out / "00001.tar") if member.name.endswith(".png"))
    spoil(out / "00001.tar", place.offset - 512, b"spoiled")
    index = next(n for n in range(COUNT) if dataset.source(n).endswith(place.name))
    with pytest.raises(BadSample, match=rf"{place.name}: shard .*00001\.tar, byte {place.offset - 512}: has no valid header"):
        dataset[Request(index, 0, 0)]
    with build_loader(dataset, batch_size=COUNT, order=SampleOrder(COUNT, seed=0, shuffle=False)) as loader:
        assert next(loader)["hq"].shape[0] == COUNT
        assert [path.rpartition("/")[2] for path in loader.bad_files] == [place.name]


def test_a_shard_that_was_replaced_is_noticed(pictures):
    out = packed(pictures)
    dataset = create(dataroot_gt=shard_pattern(out))
    path = out / "00000.tar"
    write_tar(path, [("0000.png", b"other"), ("0000.txt", b"x" * 90_000)])
    with pytest.raises(BadSample, match=r"is a file of 5 bytes, not of \d+; it is damaged, or another than at the start"):
        dataset[Request(0, 0, 0)]


def test_an_index_of_another_state_is_not_used(pictures):
    out = packed(pictures)
    path = out / "00000.tar"
    write_tar(path, [("new.txt", b"x")])
    assert [member.name for member in tar.members(path)] == ["new.txt"]
    tar.index_file(path).write_text("{")
    assert [member.name for member in tar.members(path)] == ["new.txt"]


def test_damaged_mds_is_named_with_the_place(pictures):
    out = packed(pictures, "mds")
    dataset = create(dataroot_gt=str(out))
    path = out / "shard.00001.mds"
    first = json.loads((out / "index.json").read_text())["shards"][0]["samples"]
    spoil(path, 4, b"\xff\xff\xff\xff")
    with pytest.raises(BadSample, match=r"shard .*shard\.00001\.mds, byte 4: sample 0 cannot lie from 4294967295"):
        dataset[Request(first, 0, 0)]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"shard\.00001\.mds: has \d+ bytes where .*index\.json says \d+; fetch it again"):
        create(dataroot_gt=str(out))
    path.unlink()
    with pytest.raises(DataError, match=r"shard\.00001\.mds: this shard does not exist"):
        create(dataroot_gt=str(out))


# packing


def test_packing_goes_on_where_it_was_and_overwrites_nothing(pictures, capsys):
    out = packed(pictures)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "00001.tar").unlink()
    (out / ".00002.tar.tmp").write_bytes(b"left by a kill")
    assert packing.pack(pictures, out, "tar", 12_000).made == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ConfigurationError, match="holds shards of other files, or of another format or size"):
        packing.pack(pictures, out, "tar", 10_000)
    with pytest.raises(ConfigurationError, match="is not empty, and nothing is overwritten"):
        packing.pack(out, pictures, "tar", 10_000)
    assert main(["data", "shards", str(pictures), "-o", str(pictures.parent / "new"), "--size", "1"]) == 0
    assert f"{2 * COUNT} files of {COUNT} samples in 1 shards, 1 of them new" in capsys.readouterr().out
    assert main(["data", "shards", str(pictures)]) == 2


def test_indices_are_made_for_shards_of_others(pictures, capsys):
    out = packed(pictures)
    indices = {path: path.read_bytes() for path in out.glob("*.index")}
    next(iter(indices)).unlink()
    assert main(["data", "shards", "--index", shard_pattern(out)]) == 0
    assert capsys.readouterr().out == f"1 indices written for {len(indices)} shards\n"
    assert {path: path.read_bytes() for path in out.glob("*.index")} == indices


def test_mds_wants_the_same_files_of_every_sample(pictures):
    (pictures / "0003.txt").unlink()
    with pytest.raises(DataError, match=r"0003\.png: its sample has the files png, and the first one png, txt"):
        packed(pictures, "mds")
    assert packing.pack(pictures, pictures.parent / "out", "tar", 10**9).files == 2 * COUNT - 1


# what other programs wrote: tests/shards_of_others, by webdataset 1.0.2 and mosaicml-streaming 0.13.0

OTHERS = Path(__file__).parent / "shards_of_others"


@pytest.mark.parametrize("name", ["mds_plain", "mds_gz", "mds_zstd", "webdataset-{00..01}.tar"])
def test_shards_of_others(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CACHE_DIR", str(tmp_path / "images"))
    if name == "mds_zstd":
        pytest.importorskip("zstandard")
    found = list_images(OTHERS / name)
    assert [path.name for path in found] == [f"{n:04d}.png" if "webdataset" in name else f"{n:08d}.png" for n in range(4)]
    for number, path in enumerate(found):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5 + number, 3), dtype=np.uint8)
        assert np.array_equal(read_image(path), pixels)
        told = json.loads(shards.content(path.with_suffix(".json")))
        assert told == {"caption": f"käse {number}"} | ({"label": number} if "mds" in name else {})
    unpacked = list((tmp_path / "shards").glob("*"))
    assert len(unpacked) == (4 if name in ("mds_gz", "mds_zstd") else 0)


def test_a_compressed_shard_that_is_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CACHE_DIR", str(tmp_path / "images"))
    shutil.copytree(OTHERS / "mds_gz", tmp_path / "m")
    spoil(tmp_path / "m" / "shard.00002.mds.gz", 40, b"spoiled")
    found = list_images(tmp_path / "m")
    with pytest.raises(BadSample, match=r"shard\.00002\.mds\.gz: is damaged and cannot be unpacked"):
        read_image(found[2])
    assert read_image(found[3]).shape == (6, 8, 3)


# the packages themselves


def test_webdataset_reads_what_is_packed_here_and_the_other_way_round(pictures, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    root = shard_pattern(packed(pictures))
    theirs = list(webdataset.WebDataset(root, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [f"{number:04d}" for number in range(COUNT)]
    assert all(sample["png"] == (pictures / f"{sample['__key__']}.png").read_bytes() for sample in theirs)
    with webdataset.ShardWriter(f"{tmp_path}/w-%02d.tar", maxcount=3, verbose=0) as writer:
        for sample in theirs:
            writer.write(
                {"__key__": sample["__key__"], "png": sample["png"], "json": {"caption": f"sample {sample['__key__']}"}}
            )
    dataset = create("captioned_images", paths=f"{tmp_path}/w-{{00..02}}.tar", phase="val")
    assert [dataset[request]["caption"] for request in requests(dataset)] == [f"sample {n:04d}" for n in range(COUNT)]


@pytest.fixture
def streaming():
    return pytest.importorskip("streaming")


def test_streaming_reads_what_is_packed_here(pictures, streaming):
    out = packed(pictures, "mds")
    theirs = streaming.LocalDataset(local=str(out))
    assert [theirs[number]["__key__"] for number in range(len(theirs))] == [f"{number:04d}" for number in range(COUNT)]
    assert theirs[3]["txt"] == "picture 3\n"
    assert np.array_equal(np.asarray(theirs[3]["png"].convert("RGB")), read_image(pictures / "0003.png"))


@pytest.mark.parametrize("compression", [None, "zstd:3", "gz", "bz2"])
def test_what_streaming_wrote_is_read(tmp_path, streaming, compression, monkeypatch):
    if compression == "zstd:3":
        pytest.importorskip("zstandard")
    monkeypatch.setenv("DLAS_CACHE_DIR", str(tmp_path / "cache" / "images"))
    from PIL import Image

    pixels = [noise(24, 20 + number, seed=number) for number in range(5)]
    columns = {"image": "pil", "caption": "str", "label": "int", "score": "float32", "size": "ndarray:int32:2"}
    with streaming.MDSWriter(out=str(tmp_path / "m"), columns=columns, compression=compression, size_limit=4000) as writer:
        for number, each in enumerate(pixels):
            told = {"caption": f"käse {number}", "label": number, "score": 0.5, "size": np.array(each.shape[:2], np.int32)}
            writer.write({"image": Image.fromarray(each), **told})
    assert len(list((tmp_path / "m").glob("*.mds*"))) > 1
    found = list_images(tmp_path / "m")
    assert [path.name for path in found] == [f"{number:08d}.png" for number in range(5)]
    assert all(np.array_equal(read_image(path), each) for path, each in zip(found, pixels, strict=True))
    assert json.loads(shards.content(found[4].with_suffix(".json"))) == {"caption": "käse 4", "label": 4, "score": 0.5}
    dataset = create("captioned_images", paths=str(tmp_path / "m"), phase="val")
    assert dataset[Request(2, 0, 0)]["caption"] == "käse 2"
