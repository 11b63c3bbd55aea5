"""`dlas reference`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlas.explain.reference import REFERENCE_FOLDER, generated_files


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "-o", dest="root", type=Path, default=Path(), metavar="FOLDER", help="root of the repository; this folder by default"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 2 if a file is not what it should be")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files that differ and removes pages of kinds that are no more, or tells which those are."""
    files = generated_files()
    pages = set((arguments.root / REFERENCE_FOLDER).glob("*.md"))
    stale = sorted(path for path in pages if path.relative_to(arguments.root) not in files)
    changed = [path for path, text in files.items() if not _is(arguments.root / path, text)]
    if arguments.check:
        for path in [*changed, *stale]:
            print(f"{path}: not up to date; run `dlas reference`", file=sys.stderr)
        return 2 if changed or stale else 0
    for path in changed:
        target = arguments.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(files[path], encoding="utf-8")
        print(f"wrote {target}")
    for path in stale:
        path.unlink()
        print(f"removed {path}")
    print(f"{len(files)} files, {len(changed)} changed")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text
