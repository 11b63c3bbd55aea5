"""Texts as numbers, and the small text encoder."""

from __future__ import annotations

import pytest
import torch

from dlas.archs import create_network
from dlas.context import Context
from dlas.errors import ConfigurationError, TrainingError
from dlas.registry import INJECTORS


def tokens(texts, **options):
    injector = INJECTORS.create("tokenize", {"in": "caption", "out": "tokens", **options})
    return injector({"caption": texts, "hq": torch.zeros(len(texts))}, Context({}))["tokens"]


def test_words_are_the_same_numbers_whatever_their_case_and_place():
    found = tokens(["A red ball, red", "ball", ""], size=1000, length=6)
    assert found.dtype == torch.int64
    assert found.shape == (3, 6)
    assert found[0, 1] == found[0, 4]  # a comma is a sign of its own
    assert found[0, 2] == found[1, 0]
    assert (found[1, 1:] == 0).all()
    assert (found[2] == 0).all()
    assert tokens(["RED"], size=1000)[0, 0] == found[0, 1]
    assert len({int(found[0, place]) for place in range(4)}) == 4


def test_bytes_are_those_of_utf8_and_long_texts_are_cut_off():
    assert tokens(["aé"], kind="bytes", length=5).tolist() == [[98, 0xC3 + 1, 0xA9 + 1, 0, 0]]
    assert tokens(["abc"], kind="bytes", length=2).tolist() == [[98, 99]]


def test_a_hash_is_inside_the_table():
    found = tokens([" ".join(map(str, range(500)))], size=3, length=500)
    assert set(found.unique().tolist()) == {1, 2}


def test_what_is_no_text_is_refused():
    with pytest.raises(TrainingError, match="'caption' is Tensor"):
        tokens(torch.zeros(2))
    with pytest.raises(ConfigurationError, match="size 1"):
        tokens(["a"], size=1)


@pytest.mark.parametrize("depth", [0, 2])
def test_an_empty_text_is_zeros_and_padding_changes_nothing(depth):
    torch.manual_seed(0)
    network = create_network({"which_model": "text_embedding", "vocabulary_size": 50, "length": 8, "width": 16, "depth": depth})
    found = network(torch.tensor([[5, 6, 0, 0], [0, 0, 0, 0]]))
    assert (found[1] == 0).all()
    assert (found[0, 2:] == 0).all()
    torch.testing.assert_close(found[0, :2], network(torch.tensor([[5, 6]]))[0])
    assert torch.isfinite(torch.autograd.grad(found.square().sum(), network.words.weight)[0]).all()


def test_with_depth_words_know_each_other():
    torch.manual_seed(0)
    for depth, same in ((0, True), (1, False)):
        network = create_network({"which_model": "text_embedding", "vocabulary_size": 50, "width": 16, "depth": depth})
        one, other = network(torch.tensor([[5, 6], [5, 7]]))[:, 0]
        assert torch.allclose(one, other) is same


def test_texts_longer_than_the_table_of_places_are_refused():
    network = create_network({"which_model": "text_embedding", "length": 4})
    with pytest.raises(ValueError, match="raise 'length'"):
        network(torch.ones(1, 5, dtype=torch.int64))
