"""Videos in place of folders: frames are known by number, and are the same however they are come upon."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.images.files import list_images, read_image
from dlas.errors import DataError


def film(path: Path, seed: int, count: int = 12, height: int = 32, width: int = 48) -> Path:
    generator = np.random.default_rng(seed)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for _ in range(count):
        writer.write(cv2.resize(generator.integers(0, 256, (4, 6, 3), dtype=np.uint8), (width, height)))
    writer.release()
    return path


def read_through(path: Path) -> list[np.ndarray]:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1][:, :, ::-1])
    return frames


def variable_rate(path: Path) -> Path:
    """Two of seven frames are left out, and most are known only by their difference from others."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=3", "-vf", "select='gt(mod(n,7),1)'", "-vsync", "vfr"]
    encoder = ["-c:v", "libx264", "-g", "30", "-bf", "2"]
    if subprocess.run(["ffmpeg", "-v", "error", *source, *encoder, str(path)], check=False).returncode:
        pytest.skip("ffmpeg cannot encode H.264")
    return path


@pytest.mark.parametrize("make", [lambda folder: film(folder / "a.avi", 1), lambda folder: variable_rate(folder / "b.mkv")])
def test_frames_in_any_order_are_those_of_reading_through(make, tmp_path):
    path = make(tmp_path)
    expected, listed = read_through(path), list_images(path)
    assert [file.name for file in listed] == [f"{number:06d}.png" for number in range(len(expected))]
    for number in np.random.default_rng(0).permutation(len(expected)):
        np.testing.assert_array_equal(read_image(listed[number]), expected[number])


def test_a_training_set_of_videos(tmp_path):
    films = [str(film(tmp_path / f"{name}.avi", seed)) for seed, name in enumerate("ab")]
    (tmp_path / "all.txt").write_text("".join(f"{number:06d}.png\n" for number in range(12)))
    (tmp_path / "few.txt").write_text("000007.png\n000003.png\n")
    options = {
        "mode": "paired_images", "dataroot_gt": films, "scale": 4, "target_size": 16,
        "meta_info": [str(tmp_path / "all.txt"), str(tmp_path / "few.txt")],
    }  # fmt: skip
    plain = create_dataset(options, phase="train", name="x")
    cached = create_dataset({**options, "cache": "mapped", "cache_dir": str(tmp_path / "c")}, phase="train", name="x")
    cached.prepare()
    assert [plain.source(index) for index in (0, 12, 13)] == [
        f"{films[0]}/000000.png", f"{films[1]}/000007.png", f"{films[1]}/000003.png",
    ]  # fmt: skip
    for _ in range(2):  # the second time from the cache
        for index in (13, 4, 0):
            first, second = plain[Request(index, index, 0)], cached[Request(index, index, 0)]
            assert first["hq"].shape == (3, 16, 16)
            assert first["lq"].shape == (3, 4, 4)
            torch.testing.assert_close(first["hq"], second["hq"], rtol=0, atol=0)


def test_partners_from_another_video(tmp_path):
    large, small = film(tmp_path / "large.avi", 1), film(tmp_path / "small.avi", 2, height=16, width=24)
    options = {"mode": "paired_images", "dataroot_gt": str(large), "dataroot_lq": str(small), "scale": 2}
    sample = create_dataset(options, phase="val", name="x")[Request(5, 5, 0)]
    np.testing.assert_array_equal((sample["lq"] * 255).round().byte().permute(1, 2, 0).numpy(), read_through(small)[5])
    assert sample["name"] == "000005"


def test_what_is_no_video_is_said(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=r"x\.mp4: no frame of this video can be decoded by OpenCV; convert it"):
        list_images(tmp_path / "x.mp4")
    path = film(tmp_path / "a.avi", 1)
    with pytest.raises(BadSample, match="the video is damaged or has no such frame"):
        read_image(path / "000012.png")
