"""Texts as numbers, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dlas.data.text.cleaning import TRAINING_SIGNS, Cleaner, clean
from dlas.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "[SPACE]"
SPECIAL = ("[STOP]", "[UNK]", BLANK)


class VoiceTokenizer:
    """Byte-pair encoding of cleaned texts, with a token for the blank.

    Args:
        path: a file of the package tokenizers, such as TorToiSe's ``tokenizer.json``.
        cleaner: of texts.
        training_signs: also replace what training replaced: brackets by round ones, a few dashes and apostrophes.

    Raises:
        DataError: the file is missing, or no tokenizer, or lacks a special token.
        MissingPackageError: tokenizers is not installed.
    """

    def __init__(self, path: str | Path, cleaner: Cleaner = "english", training_signs: bool = False) -> None:
        self.cleaner, self.training_signs = cleaner, training_signs
        self._tokenizer = _load(Path(path))

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return self._tokenizer.get_vocab_size()

    def clean(self, text: str) -> str:
        """The text as it is encoded."""
        cleaned = clean(text, self.cleaner)
        return cleaned.translate(TRAINING_SIGNS) if self.training_signs else cleaned

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; signs that the vocabulary lacks become ``[UNK]``."""
        return self._tokenizer.encode(self.clean(text).replace(" ", BLANK)).ids

    def decode(self, tokens: list[int]) -> str:
        """The cleaned text that tokens stand for, without special ones."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=False).replace(" ", "").replace(BLANK, " ")
        return text.replace("[STOP]", "").replace("[UNK]", "")


def _load(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackageError("tokenizers", "reading texts", "speech") from error
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}: give the path of a tokenizer.json, such as that of tortoise-tts")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions
        raise DataError(
            f"{path} is no tokenizer of the package tokenizers ({error}); expected the JSON that it saves"
        ) from error
    missing = [token for token in SPECIAL if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(f"the tokenizer {path} lacks {', '.join(missing)}, which the networks need: add them to its vocabulary")
    return tokenizer
