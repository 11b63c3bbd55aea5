"""Injectors that read text."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError, TrainingError
from dlas.host import sent
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import PositiveInt, StateIn, StateOut

_WORD = re.compile(r"\w+|[^\w\s]")


@INJECTORS.register("tokenize")
class TokenizeInjector(Injector):
    """Texts as numbers, without a vocabulary that would have to be learned or downloaded.

    0 fills up to `length`; what is longer is cut off.

    Args:
        in_: texts, a list of B.
        out: the numbers, (B, length), int64.
        kind: `words`: words and signs in lower case, each as a hash in [1, size); different words may share one. `bytes`:
            those of the text in UTF-8, plus 1.
        size: numbers that there are, the padding included (`words` only; `bytes` always has 257).
        length: numbers of a text.

    Raises:
        ConfigurationError: `size` is below 2.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        kind: Literal["words", "bytes"] = "words",
        size: PositiveInt = 4096,
        length: PositiveInt = 32,
    ) -> None:
        if size < 2:
            raise ConfigurationError(
                f"tokenize: size {size} leaves no number for words, since 0 is the padding; give 2 or more"
            )
        self.source = in_
        self.out = out
        self.kind = kind
        self.size = size
        self.length = length

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        texts = state[self.source]
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise TrainingError(
                f"tokenize reads texts, and '{self.source}' is {type(texts).__name__}; name a data set's caption"
            )
        numbers = word_numbers(texts, self.size) if self.kind == "words" else byte_numbers(texts)
        padded = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, own in zip(padded, numbers, strict=True):
            cut = own[: self.length]
            row[: len(cut)] = torch.tensor(cut, dtype=torch.int64)
        # Texts have no device; the batch they came with has.
        device = next((value.device for value in state.values() if isinstance(value, Tensor)), torch.device("cpu"))
        return {self.out: sent(padded, device)}


def word_numbers(texts: Sequence[str], size: int) -> list[list[int]]:
    """For each text the hashes of its words and signs, in [1, size)."""
    return [[1 + zlib.crc32(word.encode()) % (size - 1) for word in _WORD.findall(text.lower())] for text in texts]


def byte_numbers(texts: Sequence[str]) -> list[list[int]]:
    """For each text its bytes in UTF-8, in [1, 256]."""
    return [[1 + byte for byte in text.encode()] for text in texts]
