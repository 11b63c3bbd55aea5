"""Texts as numbers of letters, as Tacotron's line of models reads them."""

from __future__ import annotations

from dlas.data.text.cleaning import Cleaner, clean

LETTERS = "_-!'(),.:;? ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The number of a sign is its place here; the first one pads. Phonemes, which follow in Tacotron's table, are not read."""

_NUMBERS = {sign: number for number, sign in enumerate(LETTERS)}


class LetterTokenizer:
    """Signs of cleaned texts; those that the table lacks are left out.

    Args:
        cleaner: of texts.
    """

    def __init__(self, cleaner: Cleaner = "english") -> None:
        self.cleaner = cleaner

    def encode(self, text: str) -> list[int]:
        """Numbers of a text."""
        return [_NUMBERS[sign] for sign in clean(text, self.cleaner) if sign in _NUMBERS and sign != "_"]
