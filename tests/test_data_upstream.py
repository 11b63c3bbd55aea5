"""Data sets under the names of DL-Art-School: tiles, folders, whole images, videos; and deliberate damage."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images.corruptions import CORRUPTIONS, Corruptor
from dlas.errors import ConfigurationError, DataError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return cv2.resize(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8), (width, height))


def write(path: Path, image: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return image[:, :, ::-1].astype(np.float32).transpose(2, 0, 1) / 255


def dataset(phase: str = "train", **options):
    return create_dataset(options, phase=phase, name="set")


def sample(data, index: int = 0, position: int = 0):
    return data[Request(index, position, 0)]


@pytest.fixture
def tiles(tmp_path) -> Path:
    for image in ("a", "b"):
        for number in range(3):
            write(tmp_path / "tiles" / image / f"{number:08d}.png", picture(32, 32, number))
        write(tmp_path / "tiles" / image / "ref.png", picture(32, 32))
        (tmp_path / "tiles" / image / "centers.pt").touch()
    return tmp_path / "tiles"


def test_tiles_are_found_without_the_picture_of_the_whole(tiles):
    data = dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4)
    assert len(data) == 6
    assert not any("ref" in path.name for path in data.files)
    assert len(dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4, ignore_first=2)) == 2
    twice = dataset(
        mode="single_image_extensible", paths=[str(tiles / "a"), str(tiles / "b")], weights=[2, 1], target_size=32, scale=4
    )
    assert len(twice) == 9


def test_a_low_quality_tile_is_the_mean_over_pixels(tiles):
    first = sample(dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4))
    expected = torch.nn.functional.avg_pool2d(first["hq"], 4)
    torch.testing.assert_close(first["lq"], expected, rtol=0, atol=1e-6)
    same = sample(dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4, eval=True))
    assert same["lq"].equal(same["hq"])


def test_tiles_that_were_not_cut_for_this(tiles):
    (tiles / "b" / "centers.pt").unlink()
    with pytest.raises(DataError, match=r"b has no centers\.pt"):
        dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4, strict=True)
    with pytest.raises(ConfigurationError, match="must be a multiple of scale x force_multiple = 12"):
        dataset(mode="single_image_extensible", paths=str(tiles), target_size=32, scale=4, force_multiple=3)
    with pytest.raises(ConfigurationError, match="2 paths and 1 weights"):
        dataset(mode="single_image_extensible", paths=[str(tiles)] * 2, weights=[1], target_size=32, scale=4)


def test_a_folder_gives_squares_from_the_middle(tmp_path):
    written = write(tmp_path / "p/0.png", picture(20, 30))
    data = dataset("val", mode="imagefolder", paths=str(tmp_path / "p"), scale=2)
    first = sample(data)
    torch.testing.assert_close(first["hq"], torch.tensor(written[:, :, 5:25]), rtol=0, atol=1e-6)
    assert first["lq"].shape == (3, 10, 10)
    whole = sample(dataset("val", mode="imagefolder", paths=str(tmp_path / "p"), scale=2, force_square=False))
    assert whole["hq"].shape == (3, 20, 30)
    small = sample(
        dataset("val", mode="imagefolder", paths=str(tmp_path / "p"), scale=2, center_crop_hq_sz=8, force_multiple=3)
    )
    assert small["lq"].shape == (3, 3, 3)
    with pytest.raises(BadSample, match="at least center_crop_hq_sz 21"):
        sample(dataset("val", mode="imagefolder", paths=str(tmp_path / "p"), scale=2, center_crop_hq_sz=21))


def test_ranges_of_a_folder(tmp_path):
    write(tmp_path / "p/0.png", picture(16, 16))
    options = {"mode": "imagefolder", "paths": str(tmp_path / "p"), "scale": 1, "disable_flip": True}
    plain = sample(dataset(**options))["hq"]
    torch.testing.assert_close(sample(dataset(**options, rgb_n1_to_1=True))["hq"], plain * 2 - 1)
    imagenet = sample(dataset(**options, normalize="imagenet"))["hq"]
    torch.testing.assert_close(imagenet[1], (plain[1] - 0.456) / 0.224)
    with pytest.raises(ConfigurationError, match="keep one of them"):
        dataset(**options, rgb_n1_to_1=True, normalize="imagenet")


def test_folders_are_classes(tmp_path):
    for name in ("b/0", "a/1", "a/more/2"):
        write(tmp_path / f"p/{name}.png", picture(8, 8))
    write(tmp_path / "q/c/0.png", picture(8, 8))
    paths = [str(tmp_path / "p"), str(tmp_path / "q")]
    data = dataset(mode="imagefolder", paths=paths, weights=[1, 2], scale=1, labels="label")
    samples = [sample(data, index) for index in range(len(data))]
    found = {each["path"].removeprefix(f"{tmp_path}/"): each["label"] for each in samples}
    assert {path: int(label) for path, label in found.items()} == {
        "p/a/1.png": 0, "p/a/more/2.png": 0, "p/b/0.png": 1, "q/c/0.png": 2,
    }  # fmt: skip
    assert all(label.dtype == torch.int64 for label in found.values())
    write(tmp_path / "q/3.png", picture(8, 8))
    with pytest.raises(DataError, match=r"q/3\.png: is in no class's folder.*q/cat/3\.png"):
        dataset(mode="imagefolder", paths=paths, scale=1, labels="label")


def test_images_are_mirrored_at_random_in_training_only(tmp_path):
    write(tmp_path / "p/0.png", picture(16, 16))
    for phase, options, kinds in (("train", {}, 2), ("val", {}, 1), ("train", {"disable_flip": True}, 1)):
        data = dataset(phase, mode="imagefolder", paths=str(tmp_path / "p"), scale=1, **options)
        seen = {sample(data, position=position)["hq"].numpy().tobytes() for position in range(20)}
        assert len(seen) == kinds


def test_what_a_network_is_told_of_the_damage(tmp_path):
    write(tmp_path / "p/0.png", picture(32, 32))
    options = {
        "mode": "imagefolder", "paths": str(tmp_path / "p"), "scale": 2, "fixed_corruptions": ["jpeg-broad", "gaussian_blur"],
        "random_corruptions": ["none"], "num_corrupts_per_image": 1,
    }  # fmt: skip
    data = dataset(**options)
    first, again, other = sample(data), sample(data), sample(data, position=1)
    assert first["corruption_entropy"].shape == (2,)
    assert first["lq"].equal(again["lq"])
    assert not first["corruption_entropy"].equal(other["corruption_entropy"])
    seeded = dataset(**options, random_seed=5)
    assert sample(seeded)["corruption_entropy"].equal(sample(seeded, position=9)["corruption_entropy"])
    fixed = dataset(**options, skip_lq=True, fixed_parameters={"corruption_entropy": [0.2, 0.5]})
    assert sample(fixed)["corruption_entropy"].tolist() == pytest.approx([0.2, 0.5])
    assert sample(fixed)["lq"].equal(sample(fixed)["hq"])


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_a_corruption_grows_with_its_severity_and_keeps_its_input(name):
    image = picture(32, 40).astype(np.float32) / 255 * 0.6 + 0.2
    before = image.copy()
    corruptor = Corruptor([name], [], 0, 1.0, True)
    mild, heavy = (corruptor.apply(image, [(name, severity)], np.random.default_rng(1)) for severity in (0.05, 1.0))
    assert np.array_equal(image, before)
    assert mild.shape == heavy.shape == image.shape
    assert mild.dtype == np.float32
    assert 0 <= heavy.min() <= heavy.max() <= 1
    distances = [float(np.abs(each - image).mean()) for each in (mild, heavy)]
    if name == "none":
        assert distances == [0, 0]
    elif name in ("noise-5", "lq_resampling4x", "greyscale"):  # of one strength
        assert distances[1] == pytest.approx(distances[0]) and distances[0] > 0
    else:
        assert distances[1] > distances[0]


def test_severity_is_mostly_mild():
    draws = {}
    for bias in (True, False):
        corruptor, rng = Corruptor(["none"], [], 0, 1.0, bias), np.random.default_rng(0)
        draws[bias] = np.mean([corruptor.entropy(corruptor.plan(rng))[0] for _ in range(4000)])
    assert draws[False] == pytest.approx(0.5, abs=0.02)
    assert draws[True] == pytest.approx(1 - 2 / np.pi, abs=0.02)  # the mean of 1 - cos(u pi / 2)


def test_unknown_damage_is_refused():
    with pytest.raises(ConfigurationError, match="did you mean 'jpeg-broad'"):
        Corruptor(["jpeg-brod"], [], 0, 1.0, True)
    with pytest.raises(ConfigurationError, match="names none to draw from"):
        Corruptor([], [], 2, 1.0, True)


def test_whole_images_are_cut_to_multiples(tmp_path):
    write(tmp_path / "p/0.png", picture(70, 83))
    data = dataset("val", mode="fullimage", dataroot_GT=str(tmp_path / "p"), scale=2, force_multiple=16)
    first = sample(data)
    assert first["lq"].shape == (3, 32, 32)
    assert first["hq"].shape == (3, 64, 64)
    with pytest.raises(ConfigurationError, match="train on 'paired_images'"):
        dataset("train", mode="fullimage", dataroot_GT=str(tmp_path / "p"), scale=2)
    with pytest.raises(BadSample, match="force_multiple 64"):
        sample(dataset("val", mode="fullimage", dataroot_GT=str(tmp_path / "p"), scale=2, force_multiple=64))


def video(path: Path, frames: int = 10) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for number in range(frames):
        writer.write(np.full((16, 32, 3), 10 + 20 * number, np.uint8))
    writer.release()
    return str(path)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, range(10)),
        ({"frame_rate": 5}, range(0, 10, 2)),
        ({"frame_rate": 20, "end_at_seconds": 0.2}, [0, 0, 1, 1]),
        ({"start_at_seconds": 0.5, "end_at_seconds": 5000}, range(5, 10)),
        ({"start_at_seconds": 0.3, "end_at_seconds": 0.6}, range(3, 6)),
    ],
)
def test_frames_of_a_video(options, frames, tmp_path):
    data = dataset("val", mode="video_frames", video_file=video(tmp_path / "v.avi"), force_multiple=24, **options)
    brightness = [round((sample(data, index)["lq"][:, :16, :32].mean().item() * 255 - 10) / 20) for index in range(len(data))]
    assert brightness == list(frames)
    shuffled = [round((sample(data, i)["lq"][0, 4, 4].item() * 255 - 10) / 20) for i in reversed(range(len(data)))]
    assert shuffled == list(frames)[::-1]
    first = sample(data)
    assert first["lq"].shape == (3, 24, 48)
    assert first["lq"][:, 16:].max() == 0


def test_videos_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="there is no video"):
        dataset("val", mode="video_frames", video_file=str(tmp_path / "none.avi"))
    (tmp_path / "text.avi").write_text("no video")
    with pytest.raises(DataError, match="not a video that OpenCV can read"):
        dataset("val", mode="video_frames", video_file=str(tmp_path / "text.avi"))
    with pytest.raises(ConfigurationError, match="cannot be trained on"):
        dataset("train", mode="video_frames", video_file=video(tmp_path / "v.avi"))
    with pytest.raises(ConfigurationError, match="lower the start"):
        dataset("val", mode="video_frames", video_file=video(tmp_path / "v.avi"), start_at_seconds=3)
