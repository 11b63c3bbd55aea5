"""Long texts in pieces that can be said at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dlas.data.text.cleaning import ABBREVIATIONS
from dlas.errors import DataError

SHORT = 20
"""Letters below which a sentence is said together with the next: networks that know sentences say single words badly."""

_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])\s*")
_ABBREVIATED = re.compile(rf"(?:^|[\s(\"'“‘])(?:{'|'.join(ABBREVIATIONS)}|[a-z])\.$", re.IGNORECASE)
_PAUSES = (re.compile(r"(?<=[;:])\s+"), re.compile(r"(?<=,)\s+|\s+(?=[-–—]\s)"), re.compile(r"\s+"))


def split_text(text: str, fits: Callable[[str], bool], shortest: int = SHORT) -> list[str]:
    """Cuts a text at ends of sentences and paragraphs, and sentences that do not fit at colons, commas, or blanks.

    Args:
        text: anything.
        fits: whether a piece can be said at once.
        shortest: letters below which a piece is joined with the next one, if that fits.

    Returns:
        Pieces in order, with single blanks; together they are the text.

    Raises:
        DataError: there is nothing to say, or not even a single letter fits.
    """
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _sentences(" ".join(paragraph.split())):
            for piece in _fitting(sentence, fits, _PAUSES):
                if pieces and len(pieces[-1]) < shortest and fits(joined := f"{pieces[-1]} {piece}"):
                    pieces[-1] = joined
                else:
                    pieces.append(piece)
    if not any(letter.isalnum() for letter in text):
        raise DataError(f"there is nothing to say in the text {text[:40]!r}: it has neither letters nor digits")
    return pieces


def _sentences(paragraph: str) -> list[str]:
    found, begin = [], 0
    for end in _END.finditer(paragraph):
        sentence = paragraph[begin : end.end()].strip()
        if not _ABBREVIATED.search(sentence):
            found.append(sentence)
            begin = end.end()
    found.append(paragraph[begin:].strip())
    return [sentence for sentence in found if sentence]


def _fitting(text: str, fits: Callable[[str], bool], pauses: Sequence[re.Pattern[str]]) -> list[str]:
    """Cuts at the first of the kinds of pauses, as rarely as can be; what does not fit then at the next; at last anywhere."""
    if fits(text):
        return [text]
    if not pauses:
        if len(text) < 2:
            raise DataError(f"not even {text!r} alone fits the network: raise longest_text")
        half = len(text) // 2
        return _fitting(text[:half], fits, ()) + _fitting(text[half:], fits, ())
    found: list[str] = []
    for part in pauses[0].split(text):
        if found and fits(joined := f"{found[-1]} {part}"):
            found[-1] = joined
        else:
            found += _fitting(part, fits, pauses[1:])
    return found
