"""Videos come out larger, with their rate, length and sound; nothing half-written is left."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dlas.archs import create_network
from dlas.cli.main import main
from dlas.errors import DataError
from dlas.inference import video
from dlas.inference.video import probe, upscale_video

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="the program ffmpeg is not installed"
)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames of 48x36 pixels at 30000/1001 a second, with a tone."""
    path = tmp_path / "clip.mp4"
    pictures = ["-f", "lavfi", "-i", "testsrc=size=48x36:rate=30000/1001"]
    tone = ["-f", "lavfi", "-i", "sine=frequency=440"]
    command = ["ffmpeg", "-v", "error", *pictures, *tone, "-frames:v", "10", "-shortest", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    return path


def streams(path: Path) -> dict[str, dict[str, str]]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["streams"]
    return {stream["codec_type"]: stream for stream in found}


def sound(path: Path) -> bytes:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:a", "-c", "copy", "-f", "adts", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@needs_ffmpeg
def test_a_video_from_the_command_line(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network({"which_model": "SRVGGNetCompact", "num_feat": 8, "num_conv": 1, "scale": 2})
    torch.save(network.state_dict(), tmp_path / "w.pth")
    assert main(["upscale", str(tmp_path / "w.pth"), str(clip), "-o", str(tmp_path / "out.mp4")]) == 0
    given, written = streams(clip), streams(tmp_path / "out.mp4")
    assert (written["video"]["width"], written["video"]["height"]) == (96, 72)
    for key in ("avg_frame_rate", "nb_read_frames"):
        assert written["video"][key] == given["video"][key]
    assert sound(tmp_path / "out.mp4") == sound(clip) != b""


@needs_ffmpeg
def test_frames_are_what_the_network_makes_of_them(clip: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def enlarge(frame: torch.Tensor) -> torch.Tensor:
        seen.append(frame)
        return frame.repeat_interleave(2, 1).repeat_interleave(2, 2)

    words = upscale_video(enlarge, clip, tmp_path / "o/out.mkv", quality=100)
    assert words == "48x36 -> 96x72, 10 frames"
    again: list[torch.Tensor] = []
    upscale_video(lambda frame: again.append(frame) or frame, tmp_path / "o/out.mkv", tmp_path / "x.mp4")
    expected = [frame.repeat_interleave(2, 1).repeat_interleave(2, 2) for frame in seen]
    assert len(again) == 10
    assert max(float((a - b).abs().mean()) for a, b in zip(again, expected, strict=True)) < 0.03


@needs_ffmpeg
@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_nothing_is_left_of_what_was_stopped(clip: Path, tmp_path: Path, error: type[BaseException]) -> None:
    frames = 0

    def stop(frame: torch.Tensor) -> torch.Tensor:
        nonlocal frames
        frames += 1
        if frames == 5:
            raise error
        return frame

    with pytest.raises(error):
        upscale_video(stop, clip, tmp_path / "o/out.mp4")
    assert list((tmp_path / "o").iterdir()) == []


@needs_ffmpeg
def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.mp4: is not a video that ffmpeg can read"):
        probe(tmp_path / "a.mp4")


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"videos need the program 'ffprobe', which is not found.*apt-get install ffmpeg"):
        probe(tmp_path / "a.mp4")
