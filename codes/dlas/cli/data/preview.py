"""`dlas data preview`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load
from dlas.errors import ConfigurationError

SUMMARY = "write a sheet of the first training samples: low-quality beside high-quality images, and what was done to them"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SHEET", help="PNG file to write; not overwritten")
    parser.add_argument("--count", type=_positive, default=16, metavar="N", help="number of samples (16)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the sheet."""
    output: Path = arguments.output
    if output.suffix.lower() != ".png":
        raise ConfigurationError(f"{output}: a sheet is a PNG file; give a name that ends in .png")
    if output.exists():
        raise ConfigurationError(f"{output}: exists and is not overwritten; give another name or remove it")
    config = load(arguments.opt, arguments.set, "train")
    from dlas.engine.preview import draw_samples, render

    preview = draw_samples(config, arguments.count)
    sheet = render(preview)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        sheet.save(temporary, format="PNG")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    for note in preview.notes:
        print(note)
    print(f"{len(preview.captions)} samples in {output}")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value
