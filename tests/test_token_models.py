"""Autoregressive models of tokens, drawing from them, and choosing among what was drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.archs.code_unet import CodeUNet
from dlas.archs.token_clip import TokenCLIP
from dlas.archs.token_transformer import TokenTransformer
from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors import create_injector
from dlas.layers.gpt2 import GPT2
from dlas.losses import create_loss

NOWHERE = Context(networks={}, positions=[0, 1])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def prior(**options: Any) -> Any:
    """A network whose logits are far from equal."""
    network: Any = create_network({"which_model": "token_transformer", **TokenTransformer.tiny()[0], **options}).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.5)
    return network


# ----------------------------------------------------------------------------------------------------------------- transformer


def test_a_place_sees_those_before_it_alone() -> None:
    network, x = GPT2(8, 2, 2).eval(), torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 3] = 10 * torch.randn(8)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.5)
    before, after = network(x), network(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert ((before - after)[:, 3:].abs().sum(-1) > 1e-3).all()


@pytest.mark.parametrize("sizes", [[1] * 6, [4, 1, 1], [2, 3, 1], [6]])
def test_places_that_come_in_parts_are_the_same(sizes: list[int]) -> None:
    network, x = GPT2(8, 2, 2).eval(), torch.randn(2, 6, 8)
    past = network.cache(2, 6, x)
    found = torch.cat([network(part, past) for part in x.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(found, network(x))


def test_copies_go_on_from_what_their_row_has_seen() -> None:
    network, x = GPT2(8, 2, 2).eval(), torch.randn(2, 3, 8)
    past, following = network.cache(2, 4, x), torch.randn(4, 1, 8)
    network(x, past)
    past.expand(2)
    whole = torch.cat((x[[0, 0, 1, 1]], following), dim=1)
    torch.testing.assert_close(network(following, past), network(whole)[:, -1:])
    with pytest.raises(ValueError, match="a cache of 4 positions got position 5"):
        network(following, past)


def test_gradients_are_the_same_when_blocks_are_computed_again() -> None:
    network, inputs = prior(dropout=0.0).train(), TokenTransformer.tiny()[1]
    found = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        sum(each.square().sum() for each in network(*inputs)).backward()
        found.append([weight.grad.clone() for weight in network.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def test_heads_divide_the_channels() -> None:
    with pytest.raises(ConfigurationError, match="8 channels cannot be divided among 3 heads"):
        prior(num_heads=3)


# -------------------------------------------------------------------------------------------------------- sequences in a row


def test_a_token_is_predicted_from_all_before_it() -> None:
    network, (words, codes) = prior(), TokenTransformer.tiny()[1]
    of_words, of_codes = network(words, codes)
    assert (of_words.shape, of_codes.shape) == ((2, 3, 7), (2, 4, 5))
    torch.testing.assert_close(of_words[0, 0], of_words[1, 0])  # the first word knows nothing
    other = codes.clone()
    other[:, 1, 0] = (other[:, 1, 0] + 1) % 5  # the third code
    words_2, codes_2 = network(words, other)
    assert torch.equal(of_words, words_2)
    assert torch.equal(of_codes[:, :3], codes_2[:, :3])
    assert not torch.allclose(of_codes[:, 3], codes_2[:, 3])
    assert not torch.allclose(of_codes, network((words + 1) % 7, codes)[1])


def test_tokens_drawn_one_by_one_have_the_logits_of_the_whole() -> None:
    network, (words, _) = prior(), TokenTransformer.tiny()[1]
    seen: list[Tensor] = []

    def choose(logits: Tensor, place: int) -> Tensor:
        assert place == len(seen)
        seen.append(logits)
        return (logits.argmax(1) + torch.arange(len(logits)) % 2) % 5  # copies take different ways

    tokens = network.continued([words], choose, copies=2)
    assert tokens.shape == (4, 4)
    assert not torch.equal(tokens[0], tokens[1])
    torch.testing.assert_close(torch.stack(seen, dim=1), network(words.repeat_interleave(2, dim=0), tokens)[1])


def test_sequences_that_do_not_fit() -> None:
    network, (words, codes) = prior(), TokenTransformer.tiny()[1]
    with pytest.raises(ValueError, match="2 kinds of tokens, and got 1 sequences"):
        network(words)
    with pytest.raises(ValueError, match="4 tokens of kind 0, counted from 0, where 'lengths' allows 3"):
        network(words.repeat(1, 2)[:, :4], codes)
    for given in ([], [words, codes]):
        with pytest.raises(ValueError, match="give at least 1, and not all"):
            network.continued(given, lambda logits, place: logits.argmax(1))
    with pytest.raises(ConfigurationError, match="a vocabulary and a length, got"):
        prior(lengths=[3])


# ---------------------------------------------------------------------------------------------------------------------- drawing


class Prior(nn.Module):
    """Expects the first word as each code; without words, code 0."""

    def continued(self, given: list[Tensor], choose: Any, copies: int) -> Tensor:
        assert not self.training
        words = given[0][:, 0].repeat_interleave(copies, dim=0)
        logits = 3.0 * F.one_hot(words, 5)
        return torch.stack([choose(logits, place) for place in range(4)], dim=1)


def drawn(words: Tensor, positions: list[int], **options: Any) -> Tensor:
    injector = create_injector({"type": "token_sample", "generator": "prior", "in": "words", "out": "codes", **options})
    network = Prior()
    result: Tensor = injector({"words": words}, Context(networks={"prior": network}, positions=positions))["codes"]
    assert network.training
    return result


def test_draws_depend_on_the_sample_and_not_on_its_batch() -> None:
    words = torch.arange(5)[:, None]
    together = drawn(words, [0, 1, 2, 3, 4], candidates=3)
    assert together.shape == (5, 3, 4)
    apart = torch.cat([drawn(words[:2], [0, 1], candidates=3), drawn(words[2:], [2, 3, 4], candidates=3)])
    assert torch.equal(together, apart)
    assert drawn(words, [0, 1, 2, 3, 4]).shape == (5, 4)


def test_guidance_leans_towards_the_words() -> None:
    words = torch.full((400, 1), 2)
    shares = [(drawn(words, list(range(400)), guidance=scale) == 2).float().mean().item() for scale in (1.0, 2.0)]
    # logits 3 against four zeros; guided: 6 against three zeros and -3
    expected = [(3.0 * F.one_hot(torch.tensor(2), 5)).softmax(0)[2].item()]
    expected.append(torch.tensor([-3.0, 0, 6, 0, 0]).softmax(0)[2].item())
    assert shares == pytest.approx(expected, abs=0.03)


# --------------------------------------------------------------------------------------------------------------------- choosing


class Nearest(nn.Module):
    def scores(self, text: Tensor, candidates: Tensor) -> Tensor:
        return -(candidates.float().mean(-1) - text).abs()


def test_the_best_candidate_is_chosen() -> None:
    candidates = torch.tensor([[[1, 1], [4, 4], [2, 2]], [[9, 9], [0, 0], [5, 5]]])
    options = {"type": "rerank", "generator": "clip", "condition": "text", "in": "drawn", "out": "best", "out_score": "score"}
    state = {"text": torch.tensor([[3.9], [6.0]]), "drawn": candidates}
    found = create_injector(options)(state, Context(networks={"clip": Nearest()}, positions=[0, 1]))
    assert found["best"].tolist() == [[4, 4], [5, 5]]
    assert found["score"].tolist() == pytest.approx([-0.1, -1.0])
    with pytest.raises(ConfigurationError, match="are both 'best'"):
        create_injector({**options, "out_score": "best"})


def test_scores_are_cosines_of_what_forward_gives() -> None:
    network: Any = create_network({"which_model": "token_clip", **TokenCLIP.tiny()[0]}).eval()
    words, codes = TokenCLIP.tiny()[1]
    of_words, of_codes, scale = network(words, codes)
    assert scale.item() == pytest.approx(1 / 0.07)
    for vectors in (of_words, of_codes):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    candidates = torch.stack((codes, codes.flip(0)), dim=1).flatten(2)
    expected = of_words @ of_codes.t()
    torch.testing.assert_close(network.scores(words, candidates), torch.stack((expected[0], expected[1].flip(0))))


def test_padding_is_not_seen() -> None:
    network: Any = create_network({"which_model": "token_clip", **TokenCLIP.tiny()[0]}).eval()
    short, padded, empty = torch.tensor([[6, 2]]), torch.tensor([[6, 2, 0]]), torch.tensor([[0, 0, 0]])
    torch.testing.assert_close(network.text(short), network.text(padded))
    assert network.text(empty).isfinite().all()
    with pytest.raises(ValueError, match="sequences of 4 tokens for a length of 3"):
        network.text(torch.ones(1, 4, dtype=torch.int64))


# ----------------------------------------------------------------------------------------------------------------------- losses


def test_tokens_that_are_ignored_do_not_count() -> None:
    logits, tokens = torch.randn(2, 4, 5), torch.tensor([[[1, 0], [2, 0]], [[3, 4], [0, 0]]])
    state = {"logits": logits, "tokens": tokens}
    loss, figures = create_loss({"type": "token_cross_entropy", "logits": "logits", "tokens": "tokens"})(state, NOWHERE)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    assert figures["accuracy"] == (logits.argmax(-1) == tokens.flatten(1)).float().mean()
    ignoring = create_loss({"type": "token_cross_entropy", "logits": "logits", "tokens": "tokens", "ignore": 0})
    expected = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=0)
    torch.testing.assert_close(ignoring(state, NOWHERE)[0], expected)
    with pytest.raises(ValueError, match=r"must be \(B, T, vocabulary\) for tokens"):
        ignoring({**state, "tokens": tokens[:, :1]}, NOWHERE)


def test_pairs_are_told_apart_from_both_sides() -> None:
    first, second = (F.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    state = {"a": first, "b": second, "scale": torch.tensor(5.0), "words": torch.tensor([[1], [2], [1], [3], [3], [3]])}
    options = {"type": "contrastive", "first": "a", "second": "b", "scale": "scale"}
    logits, own = 5 * first @ second.t(), torch.arange(6)
    loss, figures = create_loss(options)(state, NOWHERE)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2)
    assert figures["accuracy"] == (logits.argmax(1) == own).float().mean()
    # where words are the same, probability belongs to all of their pairs in equal parts
    alike = create_loss({**options, "same": "words"})
    rows = [logits.log_softmax(1), logits.t().log_softmax(1)]
    groups = [[0, 2], [1], [0, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5]]
    expected = -torch.stack([row[i, group].mean() for row in rows for i, group in enumerate(groups)]).mean()
    torch.testing.assert_close(alike(state, NOWHERE)[0], expected)


# --------------------------------------------------------------------------------------------------------------------- pictures


def test_codes_are_shown_where_they_stand() -> None:
    network: Any = create_network({"which_model": "code_unet", **CodeUNet.tiny()[0], "attention_resolutions": []}).eval()
    nn.init.normal_(network.out[-1].weight)
    x, times, codes = CodeUNet.tiny()[1]
    found = network(x, times, codes)
    assert torch.equal(found, network(x, times, codes.flatten(1)))
    other = codes.clone()
    other[:, 0, 0] = 3
    change = (network(x, times, other) - found).abs().sum((0, 1))
    assert change[:4, :4].mean() > 2 * change[4:, 4:].mean()
    with pytest.raises(ValueError, match="3 codes are no square picture"):
        network(x, times, codes.flatten(1)[:, :3])


def test_conditions_are_dropped_by_sample() -> None:
    words = torch.ones(2000, 3, dtype=torch.int64)
    context = Context(networks={}, positions=list(range(2000)))
    options = {"type": "drop_condition", "in": "words", "out": "told", "rate": 0.25, "value": 7}
    told = create_injector(options)({"words": words}, context)["told"]
    assert told.dtype == torch.int64
    dropped = (told == 7).all(1)
    assert torch.equal(dropped, (told == 7).any(1))
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
