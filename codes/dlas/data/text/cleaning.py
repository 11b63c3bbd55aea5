"""Texts as they are spoken: letters without accents, numbers and abbreviations as words.

The rules are those of the English cleaner that TorToiSe's tokenizer was trained behind (Keith Ito's for Tacotron).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from dlas.errors import MissingPackageError

if TYPE_CHECKING:
    from inflect import engine

Cleaner: TypeAlias = Literal["english", "basic", "transliteration"]
"""english: all of it; basic: lower case and single blanks; transliteration: also without accents."""

ABBREVIATIONS = {
    "mrs": "misess",
    "mr": "mister",
    "dr": "doctor",
    "st": "saint",
    "co": "company",
    "jr": "junior",
    "maj": "major",
    "gen": "general",
    "drs": "doctors",
    "rev": "reverend",
    "lt": "lieutenant",
    "hon": "honorable",
    "sgt": "sergeant",
    "capt": "captain",
    "esq": "esquire",
    "ltd": "limited",
    "col": "colonel",
    "ft": "fort",
}
"""With a full stop behind. The odd spelling is the one that the published networks know."""

TRAINING_SIGNS = str.maketrans({"{": "(", "[": "(", "}": ")", "]": ")", "`": "'", "\u02bc": "'", "\u2014": "-"})
"""What training replaced in cleaned texts, and inference does not."""


def clean(text: str, cleaner: Cleaner = "english") -> str:
    """A text as the tokenizer reads it.

    Args:
        text: anything.
        cleaner: which rules.

    Raises:
        MissingPackageError: Unidecode or inflect is not installed.
    """
    if cleaner == "basic":
        return _single_blanks(text.lower())
    text = _without_accents(text).lower()
    if cleaner == "transliteration":
        return _single_blanks(text)
    text = _numbers_as_words(text)
    for short, long in ABBREVIATIONS.items():
        text = re.sub(rf"\b{short}\.", long, text)
    return _single_blanks(text).replace('"', "")


def _single_blanks(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _without_accents(text: str) -> str:
    try:
        from unidecode import unidecode
    except ImportError as error:
        raise MissingPackageError("Unidecode", "cleaning a text", "speech") from error
    return unidecode(text)


@lru_cache(maxsize=1)
def _speller() -> engine:
    try:
        import inflect
    except ImportError as error:
        raise MissingPackageError("inflect", "saying numbers", "speech") from error
    return inflect.engine()


def _numbers_as_words(text: str) -> str:
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"([0-9][0-9,]+[0-9])", lambda found: found[1].replace(",", "")),
        (r"\$([0-9.,]*[0-9]+)", lambda found: _dollars(found[1])),
        (r"([0-9]+\.[0-9]+)", lambda found: found[1].replace(".", " point ")),
        (r"[0-9]+(?:st|nd|rd|th)", lambda found: str(_speller().number_to_words(found[0]))),
        (r"[0-9]+", lambda found: _integer(int(found[0]))),
    ]
    for pattern, spoken in rules:
        text = re.sub(pattern, spoken, text)
    return text


def _dollars(amount: str) -> str:
    parts = amount.split(".")
    if len(parts) > 2:
        return f"{amount} dollars"
    dollars, cents = (int(part) if part else 0 for part in (*parts, "")[:2])
    named = [f"{count} {unit if count == 1 else unit + 's'}" for count, unit in ((dollars, "dollar"), (cents, "cent")) if count]
    return ", ".join(named) or "zero dollars"


def _integer(number: int) -> str:
    """Numbers between 1000 and 3000 are read as years."""
    spell = _speller().number_to_words
    if 1000 < number < 3000:
        if number == 2000:
            return "two thousand"
        if 2000 < number < 2010:
            return f"two thousand {spell(str(number % 100))}"
        if number % 100 == 0:
            return f"{spell(str(number // 100))} hundred"
        return str(spell(str(number), andword="", zero="oh", group=2)).replace(", ", " ")
    return str(spell(str(number), andword=""))
