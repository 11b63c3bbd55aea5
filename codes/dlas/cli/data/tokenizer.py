"""`dlas data tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.errors import DataError, printable

SUMMARY = "learn a vocabulary of texts, for speech in another language"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXTFILE", help="UTF-8, a text on each line")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="tokenizer.json; is not overwritten")
    parser.add_argument("--size", type=int, default=255, metavar="N", help="tokens (255, TorToiSe's)")
    parser.add_argument(
        "--cleaner",
        choices=("basic", "english", "transliteration"),
        default="basic",
        help="what is done to texts first: lower case (basic), that without accents (transliteration), or also numbers and "
        "abbreviations as English words (english); say the same as text_cleaner of the data set",
    )


def run(arguments: argparse.Namespace) -> int:
    """Learns, and says of how much."""
    from dlas.data.text.training import train_tokenizer

    output: Path = arguments.output
    if output.exists():
        raise DataError(f"{printable(output)} is there already; remove it, or give another --output")
    lines = [line for path in arguments.texts for line in _lines(path)]
    vocabulary = train_tokenizer(lines, arguments.size, arguments.cleaner)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(vocabulary, encoding="utf-8")
    print(f"{arguments.size} tokens of {len(lines)} lines; {printable(output)}")
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}; expected a text on each line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
