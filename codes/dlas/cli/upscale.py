"""`dlas upscale`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dlas.errors import UserError, printable

if TYPE_CHECKING:
    from dlas.inference.jobs import Job
    from dlas.inference.upscale import Upscaler


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_model_argument(parser)
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="pictures, videos, folders of pictures (with all below), patterns"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder, or the file for a single input")
    parser.add_argument("--outscale", type=_factor, metavar="X", help="enlargement of the result; by default the network's")
    parser.add_argument(
        "--tile", type=_tile, default="auto", metavar="N", help="side of tiles: auto (by memory), N, or 0 for none"
    )
    parser.add_argument("--exact", action="store_true", help="tiles equal to the whole picture to 1e-5, not only to the eye")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: fp16 on a GPU")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--ensemble", action="store_true", help="mean over 8 turned and mirrored pictures: 8 times the time")
    parser.add_argument("--alpha", choices=("network", "bicubic", "drop"), default="network", help="how alpha is enlarged")
    parser.add_argument(
        "--format", choices=("auto", "png", "jpg", "webp", "tif"), default="auto", help="auto: that of the input"
    )
    parser.add_argument("--quality", type=int, choices=range(1, 101), default=95, metavar="1-100", help="of JPEG and WebP")
    parser.add_argument("--suffix", default="", help="put behind each name")
    parser.add_argument("--overwrite", action="store_true", help="write again what exists; otherwise it is passed over")


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The network, and which of a run's."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint (.pth, .safetensors) of a known family, a .param/.bin pair of ncnn, a run's folder or checkpoint",
    )
    parser.add_argument("--network", metavar="NAME", help="which network of a run")


def run(arguments: argparse.Namespace) -> int:
    """Enlarges every file; those that fail are named, and the rest is done."""
    from dlas.engine.device import choose_device
    from dlas.inference.jobs import plan_jobs
    from dlas.inference.model import Model, find
    from dlas.inference.pictures import FORMATS
    from dlas.inference.upscale import Upscaler

    jobs = plan_jobs(arguments.input, Path(arguments.output).expanduser(), FORMATS.get(arguments.format), arguments.suffix)
    waiting = [job for job in jobs if arguments.overwrite or not job.target.exists()]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} exist and are passed over (--overwrite writes them again)")
    device = choose_device(arguments.device)
    model = Model(find(arguments.model, arguments.network))
    upscaler = Upscaler(
        model,
        device,
        precision=arguments.precision,
        tile=arguments.tile,
        exact=arguments.exact,
        ensemble=arguments.ensemble,
        outscale=arguments.outscale,
        alpha=arguments.alpha,
        on_tile=_show_tile if sys.stderr.isatty() else None,
    )
    print(f"{model.title} from {printable(model.source)}, {upscaler.precision.name} on {device}")
    failed = done = 0
    try:
        for number, job in enumerate(waiting, 1):
            start = time.monotonic()
            try:
                sizes = _one(upscaler, job, arguments)
                done += 1
                words = f"{sizes}, {time.monotonic() - start:.1f} s"
                print(f"[{number}/{len(waiting)}] {printable(job.source)} -> {printable(job.target)}  {words}", flush=True)
            except (UserError, OSError) as error:
                failed += 1
                print(f"[{number}/{len(waiting)}] failed: {_words(error, job)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        rest = len(waiting) - done - failed
        print(f"\nstopped: {done} written, all complete; the same command does the other {rest}", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} of {len(waiting)} failed, {done} were written", file=sys.stderr)
    return 1 if failed else 0


def _one(upscaler: Upscaler, job: Job, arguments: argparse.Namespace) -> str:
    from dlas.inference.jobs import VIDEOS
    from dlas.inference.pictures import Picture, read_picture, write_picture

    if job.source.suffix.lower() in VIDEOS:
        from dlas.inference.video import upscale_video

        show = _show_frame if sys.stderr.isatty() else None
        return upscale_video(
            lambda frame: upscaler(Picture(frame)).color, job.source, job.target, quality=arguments.quality, on_frame=show
        )
    picture = read_picture(job.source)
    result = upscaler(picture)
    write_picture(job.target, result, arguments.quality)
    return f"{picture.color.shape[2]}x{picture.color.shape[1]} -> {result.color.shape[2]}x{result.color.shape[1]}"


def _words(error: Exception, job: Job) -> str:
    text = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
    name = printable(job.source)
    return text if name in text else f"{name}: {text}"


def _show_tile(done: int, total: int) -> None:
    print(f"\r  tile {done} of {total}" if done < total else "\r\033[K", end="", file=sys.stderr, flush=True)


def _show_frame(done: int, total: int | None) -> None:
    of = f" of {total}" if total else ""
    print(f"\r  frame {done}{of}" if done != total else "\r\033[K", end="", file=sys.stderr, flush=True)


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value <= 64:
        raise argparse.ArgumentTypeError(f"expected a factor above 0 and at most 64, got {text}")
    return value


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or 0 < int(text) < 32:
        raise argparse.ArgumentTypeError(f"expected auto, 0 (whole pictures) or a side of at least 32, got '{text}'")
    return int(text)
