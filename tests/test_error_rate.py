"""Error rates and the use of codebooks."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch

from dlas.metrics.codes import codebook_use
from dlas.metrics.error_rate import Errors, character_errors, differences, word_errors, words


def fewest(right: str, found: str) -> int:
    """By the definition, without a table."""

    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + (right[i - 1] != found[j - 1]))

    return between(len(right), len(found))


def test_differences_are_the_fewest():
    texts = ["".join(letters) for length in range(5) for letters in itertools.product("ab", repeat=length)]
    texts += ["kitten", "sitting", "saturday", "sunday", "intention", "execution"]
    for right in texts:
        for found in texts:
            errors = differences(right, found)
            assert errors.substituted + errors.deleted + errors.inserted == fewest(right, found), (right, found)
            assert len(right) - errors.deleted + errors.inserted == len(found)
            assert errors.length == len(right)


def test_differences_of_words_and_characters():
    assert words("The CAT's  \u201cmat\u201d, \u00e9t\u00e9_2!") == ["the", "cat's", "mat", "\u00e9t\u00e9", "2"]
    assert word_errors("The cat sat on the mat.", "the hat sat the mat now") == Errors(1, 1, 1, 6)
    assert word_errors("The cat sat on the mat.", "the hat sat the mat now").rate == 0.5
    assert character_errors("a bc", "A, bd").rate == 0.25
    assert word_errors("one two", "").rate == 1.0
    assert word_errors("", "one").rate == float("inf") and word_errors("...", "").rate == 0.0
    assert word_errors("a b", "a") + word_errors("c d e", "c d x") == Errors(1, 1, 0, 5)


def test_the_use_of_a_codebook():
    assert codebook_use([torch.arange(8), torch.arange(8)], 16) == pytest.approx((0.5, 8.0, 0.0))
    assert codebook_use([torch.zeros(10, dtype=torch.long)], 4) == pytest.approx((0.25, 1.0, 1.0))
    # Shares of 3/4 and 1/4; between the two sequences nothing is repeated.
    use = codebook_use([torch.tensor([0, 0]), torch.tensor([0, 1])], 2)
    assert use == pytest.approx((1.0, (4 / 3) ** 0.75 * 4**0.25, 0.5))
    with pytest.raises(ValueError, match="codes from 0 to 4; a codebook of 4 has codes from 0 to 3"):
        codebook_use([torch.tensor([0, 4])], 4)
    with pytest.raises(ValueError, match="no codes"):
        codebook_use([], 4)
