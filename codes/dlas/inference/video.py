"""Videos through ffmpeg: frames in by one pipe and out by another; sound and all else of the file goes over as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dlas.errors import DataError, printable


@dataclass(frozen=True)
class Facts:
    """What a video is.

    Args:
        width: of its frames as they are shown.
        height: likewise.
        rate: frames a second, as a fraction: "30000/1001".
        constant: whether frames come at that rate; if not, it is their mean rate, and frames are repeated or left out.
        frames: how many, where the file tells.
    """

    width: int
    height: int
    rate: str
    constant: bool
    frames: int | None


def probe(path: Path) -> Facts:
    """Looks at a file.

    Raises:
        DataError: it is no video, or there is no ffmpeg.
    """
    entries = "stream=width,height,r_frame_rate,avg_frame_rate,nb_frames:stream_side_data=rotation"
    command = [_tool("ffprobe"), "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        stream: dict[str, Any] = json.loads(done.stdout)["streams"][0]
        width, height = int(stream["width"]), int(stream["height"])
    except (ValueError, KeyError, IndexError) as error:
        reason = (done.stderr.strip().splitlines() or ["it has no pictures"])[-1]
        raise DataError(f"{printable(path)}: is not a video that ffmpeg can read: {printable(reason)}") from error
    turned = any(abs(int(data.get("rotation", 0))) % 180 == 90 for data in stream.get("side_data_list", ()))
    rate, constant = _rate(stream.get("r_frame_rate", "0/0"), stream.get("avg_frame_rate", "0/0"))
    count = str(stream.get("nb_frames", ""))
    frames = int(count) if count.isdecimal() else None
    return Facts(*((height, width) if turned else (width, height)), rate, constant, frames)


def _rate(base: str, mean: str) -> tuple[str, bool]:
    """The rate at which frames come, if they do: the file's own. Else their mean."""
    own, average = (0.0 if each.endswith("/0") else float(Fraction(each)) for each in (base, mean))
    constant = own > 0 and (not average or abs(own - average) < 0.03 * average)
    return (base, True) if constant else (mean, False)


def upscale_video(
    enlarge: Callable[[Tensor], Tensor],
    source: Path,
    target: Path,
    *,
    quality: int = 95,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> str:
    """Enlarges a video frame by frame. The rate stays; sound and subtitles are copied.

    Args:
        enlarge: (3, height, width) in [0, 1] to the larger frame; all have the same size.
        source: the video.
        target: the file to write, complete or not at all; its ending tells the container.
        quality: 1 to 100; 95 is nearly lossless.
        on_frame: called with the number of frames done, and of all where that is known.

    Returns:
        What was done, for instance `320x240 -> 1280x960, 120 frames`.

    Raises:
        DataError: it cannot be read or written; ffmpeg's words are given.
    """
    facts = probe(source)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    size = (0, 0)
    try:
        with tempfile.TemporaryFile() as log, _reader(source, facts, log) as frames:
            writer: subprocess.Popen[bytes] | None = None
            try:
                for frame in frames:
                    output = enlarge(frame)
                    if writer is None:
                        size = (output.shape[-1] // 2 * 2, output.shape[-2] // 2 * 2)  # players want even sides
                        writer = _writer(source, partial, size, facts, quality, log)
                    values = output[:, : size[1], : size[0]].clamp(0, 1).mul(255).round().byte()
                    assert writer.stdin is not None
                    writer.stdin.write(values.permute(1, 2, 0).contiguous().cpu().numpy().tobytes())
                    count += 1
                    if on_frame is not None:
                        on_frame(count, facts.frames)
                if writer is None:
                    raise DataError(f"{printable(source)}: no frame of it can be read{_last(log)}")
                assert writer.stdin is not None
                writer.stdin.close()
                if writer.wait() != 0:
                    raise DataError(f"{printable(target)}: ffmpeg cannot write it{_last(log)}")
            except BrokenPipeError as error:
                raise DataError(f"{printable(target)}: ffmpeg cannot write it{_last(log)}") from error
            finally:
                if writer is not None and writer.poll() is None:
                    writer.kill()
                    writer.wait()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return f"{facts.width}x{facts.height} -> {size[0]}x{size[1]}, {count} frames"


@contextmanager
def _reader(source: Path, facts: Facts, log: IO[bytes]) -> Iterator[Iterator[Tensor]]:
    command = [_tool("ffmpeg"), "-v", "error", "-nostdin", "-i", str(source), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough"] if facts.constant else ["-fps_mode", "cfr", "-r", facts.rate]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **_apart())
    try:
        yield _frames(process, facts, source, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _frames(process: subprocess.Popen[bytes], facts: Facts, source: Path, log: IO[bytes]) -> Iterator[Tensor]:
    assert process.stdout is not None
    size = facts.width * facts.height * 3
    while len(data := process.stdout.read(size)) == size:
        frame = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(facts.height, facts.width, 3)
        yield frame.permute(2, 0, 1).float() / 255
    if process.wait() != 0:
        raise DataError(f"{printable(source)}: ffmpeg stopped reading it{_last(log)}")


def _writer(
    source: Path, partial: Path, size: tuple[int, int], facts: Facts, quality: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [_tool("ffmpeg"), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"]
    command += ["-r", facts.rate, "-i", "-", "-i", str(source), "-map", "0:v:0", "-map", "1:a?"]
    if partial.suffix.lower() == ".webm":
        command += ["-c:v", "libvpx-vp9", "-b:v", "0", "-crf", str(round(4 + (100 - quality) * 0.5)), "-c:a", "libopus"]
    else:
        command += ["-c:v", "libx264", "-preset", "medium", "-crf", str(round(14 + (95 - quality) * 0.35)), "-c:a", "copy"]
    # RGB to YUV by the matrix that players take for large pictures, and told to them.
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", "-colorspace", "bt709"]
    command += ["-color_primaries", "bt709", "-color_trc", "bt709", "-map_metadata", "1", str(partial)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, **_apart())


def _apart() -> dict[str, Any]:
    """Ctrl-C reaches this program alone, which then ends ffmpeg."""
    return {} if os.name == "nt" else {"start_new_session": True}


def _last(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return f": {printable(lines[-1])}" if lines else ""


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingProgramError(name)
    return found


class MissingProgramError(DataError):
    """A program that is called is not there."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"videos need the program '{name}', which is not found on the PATH. Install it (apt-get install ffmpeg, "
            "brew install ffmpeg, or from its site), or give pictures"
        )
