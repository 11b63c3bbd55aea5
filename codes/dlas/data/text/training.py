"""Learning a vocabulary of texts: byte-pair encoding with what TorToiSe's networks need in it."""

from __future__ import annotations

from collections.abc import Iterable

from dlas.data.text.cleaning import TRAINING_SIGNS, Cleaner, clean
from dlas.data.text.tokenizer import SPECIAL
from dlas.errors import DataError, MissingPackageError


def train_tokenizer(texts: Iterable[str], size: int, cleaner: Cleaner) -> str:
    """A vocabulary for texts, as the JSON that `VoiceTokenizer` reads.

    Pieces never reach over a blank, which is a token of its own.

    Args:
        texts: as they are written.
        size: tokens, the special ones and single signs included.
        cleaner: of the texts, now and whenever the vocabulary is used.

    Raises:
        DataError: there are no texts, more signs in them than tokens, or too few pieces.
        MissingPackageError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError as error:
        raise MissingPackageError("tokenizers", "learning a vocabulary", "speech") from error
    cleaned = [found for text in texts if (found := clean(text, cleaner).translate(TRAINING_SIGNS).strip())]
    if not cleaned:
        raise DataError("there are no texts to learn a vocabulary from; expected files with a text on each line")
    signs = set("".join(cleaned)) - {" "}
    if len(signs) + len(SPECIAL) > size:
        raise DataError(
            f"the texts have {len(signs)} different signs, which with {len(SPECIAL)} special tokens are more than {size}: "
            "raise --size (and number_text_tokens of the networks), or remove texts in other scripts"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        cleaned, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    )
    if tokenizer.get_vocab_size() < size:
        raise DataError(
            f"the texts hold {tokenizer.get_vocab_size()} pieces that are worth a token, and {size} are asked for: "
            "give more texts, or lower --size"
        )
    return str(tokenizer.to_str(pretty=True))
