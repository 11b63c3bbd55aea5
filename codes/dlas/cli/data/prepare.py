"""`dlas data prepare`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.cli.numbers import count, not_negative, positive
from dlas.config import load
from dlas.errors import ConfigurationError

if TYPE_CHECKING:
    from dlas.data.preparation import NamedKept, Plan, Report

SUMMARY = "cut pictures into tiles, make low-quality partners, lists and databases, and fill caches, ahead of training"
_OF_RESULTS = ("tile_size", "step", "thresh_size", "min_detail", "layout", "lmdb", "overwrite")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="pictures; subfolders are searched")
    parser.add_argument("-opt", type=Path, metavar="FILE", help="fill the mapped caches of this YAML file's data sets, no more")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override an entry of the YAML file")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for the results: HR, LR_x4, chunks, ...")
    made = parser.add_argument_group("what is made of a picture")
    made.add_argument("--tile-size", type=positive, metavar="N", help="cut into squares of N pixels; else pictures stay whole")
    made.add_argument("--step", type=positive, metavar="N", help="pixels from one tile to the next (N of --tile-size)")
    made.add_argument(
        "--thresh-size",
        type=count,
        default=0,
        metavar="N",
        help="lay a last tile along the edge where more than N pixels would be left over (0)",
    )
    made.add_argument(
        "--min-detail",
        type=not_negative,
        default=0.0,
        metavar="D",
        help="leave out tiles whose neighbouring pixels differ by less than D of 255 on average (0)",
    )
    made.add_argument(
        "--scale",
        type=positive,
        default=1,
        metavar="N",
        help="crop to multiples of N and write bicubic partners, N times smaller",
    )
    made.add_argument(
        "--layout", choices=("files", "chunks"), default="files", help="chunks: DL-Art-School's folders of tiles, one a picture"
    )
    whole = parser.add_argument_group("what is made of all of them")
    whole.add_argument(
        "--meta-info", type=Path, metavar="LIST", help="write the list of the pictures, or tiles, into this file"
    )
    whole.add_argument("--lmdb", action="store_true", help="write databases beside the folders (needs the package lmdb)")
    whole.add_argument("--cache", action="store_true", help="fill the mapped cache for the results, or without -o the sources")
    whole.add_argument("--cache-dir", metavar="DIR", help="where the cache is, as in the YAML file")
    whole.add_argument("--cache-gb", type=not_negative, default=32.0, metavar="GB", help="size of the cache (32)")
    how = parser.add_argument_group("how")
    how.add_argument("--workers", type=count, metavar="N", help="processes; by default one for each CPU, 0: in this one")
    how.add_argument(
        "--verify", action="store_true", help="compare all that is there with its checksums; make again what is spoiled"
    )
    how.add_argument("--overwrite", action="store_true", help="make anew what an earlier call made in OUT")
    how.add_argument("--strict", action="store_true", help="exit status 1 if a picture is damaged or too small")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report. Returns 1 if no picture can be used, with `--strict` if there is one that cannot."""
    try:
        return _prepare(arguments)
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130


def _prepare(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from dlas.data.preparation import Plan, Report

    names = ("tile_size", "step", "thresh_size", "min_detail", "scale", "layout")
    plan = Plan(**{name: getattr(arguments, name) for name in names})
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    start, report = time.monotonic(), Report()
    if arguments.opt is not None:
        from dlas.engine.kept_images import kept_images

        _warm(kept_images(load(arguments.opt, arguments.set)), workers, arguments, report)
    else:
        if arguments.output is not None:
            _make(arguments, plan, workers, report)
        if arguments.cache and (report.made or arguments.output is None):
            _warm([_kept(arguments, plan)], workers, arguments, report)
    print(report.text(plan, time.monotonic() - start, workers))
    return 1 if report.faults and (arguments.strict or not report.is_of_use()) else 0


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.opt is None) == (not arguments.folders):
        raise ConfigurationError("give folders of pictures, or a YAML file with -opt: one of the two")
    if arguments.output is None:
        needless = [name for name in (*_OF_RESULTS, "meta_info") if getattr(arguments, name) not in (None, 0, False, "files")]
        if needless:
            raise ConfigurationError(f"--{needless[0].replace('_', '-')} is about results; say with --output where they go")
        if arguments.opt is None and not arguments.cache:
            raise ConfigurationError("nothing to do: give --output for tiles and partners, or --cache to fill the cache")
    elif arguments.opt is not None:
        raise ConfigurationError("-opt fills the caches of a YAML file's data sets and takes no --output")
    if arguments.opt is not None and (arguments.cache_dir is not None or arguments.scale > 1):
        raise ConfigurationError("with -opt the YAML file says where the cache is and at which scale; use --set to change it")
    if arguments.layout == "chunks" and (arguments.lmdb or arguments.cache):
        raise ConfigurationError(
            "data sets of chunk folders read neither databases nor the mapped cache; remove --lmdb, --cache"
        )


def _make(arguments: argparse.Namespace, plan: Plan, workers: int, report: Report) -> None:
    from dlas.data.images import lmdb_folder
    from dlas.data.images.files import write_whole
    from dlas.data.preparation import Preparation, claim, list_of, make_database, pictures_of
    from dlas.observe.console import progress_bar
    from dlas.observe.lock import locked

    out: Path = arguments.output
    if arguments.lmdb:
        lmdb_folder.package()
    pictures = pictures_of(arguments.folders, out)
    with locked(out / ".prepare" / "lock", f"preparing {out}", "give another --output"):
        claim(out, plan, arguments.folders, overwrite=arguments.overwrite)
        with progress_bar(len(pictures), 0) as bar:
            for outcome in Preparation(pictures, out, plan, arguments.verify).run(workers):
                report.add(outcome)
                bar.update()
        folders = [plan.hq_folder] if plan.scale == 1 else [plan.hq_folder, plan.lq_folder]
        for folder in folders if arguments.lmdb else ():
            if make_database(out, report.made, folder):
                report.files.append(str(out / f"{folder}.lmdb"))
        if arguments.meta_info is not None:
            text = list_of(report.made, plan.hq_folder).encode()
            _check_list(arguments.meta_info, text, arguments)
            write_whole(arguments.meta_info, text)
            report.files.append(str(arguments.meta_info))


def _check_list(path: Path, text: bytes, arguments: argparse.Namespace) -> None:
    ours = path.absolute().is_relative_to(arguments.output.absolute())
    if path.exists() and not ours and not arguments.overwrite and path.read_bytes() != text:
        raise ConfigurationError(f"{path}: exists with other content and is not overwritten; give another name, or --overwrite")


def _kept(arguments: argparse.Namespace, plan: Plan) -> NamedKept:
    """What a data set of the results, or of the sources, keeps."""
    from dlas.data.base import create_dataset
    from dlas.data.preparation import NamedKept

    out: Path | None = arguments.output
    roots: dict[str, Any] = {"dataroot_gt": [str(folder) for folder in arguments.folders]}
    if out is not None:
        roots = {"dataroot_gt": str(out / plan.hq_folder)}
        if plan.scale > 1:
            roots["dataroot_lq"] = str(out / plan.lq_folder)
    cache = {"cache": "mapped", "cache_dir": arguments.cache_dir, "cache_gb": arguments.cache_gb}
    options = {"mode": "paired_images", "scale": plan.scale, **roots, **cache}
    kept = create_dataset(options, phase="val", name="prepared").kept_images()
    assert kept is not None
    return NamedKept("prepared", kept)


def _warm(sets: list[NamedKept], workers: int, arguments: argparse.Namespace, report: Report) -> None:
    from dlas.data.preparation import warm
    from dlas.observe.console import progress_bar

    with progress_bar(sum(len(each.kept.samples) for each in sets), 0) as bar:
        for warmed in warm(sets, workers, whole=arguments.verify, say=print, advance=bar.update):
            report.add_cache(warmed)
