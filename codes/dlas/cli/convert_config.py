"""`dlas convert-config`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.config import check
from dlas.errors import ConfigurationError
from dlas.interop.option_files import convert


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML option file of BasicSR or traiNNer-redux")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="file to write; it must not exist yet")


def run(arguments: argparse.Namespace) -> int:
    """Writes the converted file once it has passed the check, and names what could not be carried."""
    source, out = arguments.file, arguments.out
    if out.exists():
        raise ConfigurationError(f"{out} exists already and is not overwritten; remove it or choose another name")
    if not out.parent.is_dir():
        raise ConfigurationError(f"there is no folder {out.parent} to write {out.name} to")
    converted = convert(source)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(converted.text, encoding="utf-8")
        problems = check(partial)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            listing = "\n".join(str(problem).replace(str(partial), str(out)) for problem in errors)
            raise ConfigurationError(f"{source} does not give a file that is right, so {out} was not written:\n{listing}")
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    for each in converted.uncarried:
        print(f"not carried: {each}")
    for problem in problems:
        print(str(problem).replace(str(partial), str(out)))
    count = len(converted.uncarried)
    print(f"{out}: written; {count or 'no'} key{'s' * (count != 1)} not carried, {len(converted.unneeded)} not needed")
    return 0
