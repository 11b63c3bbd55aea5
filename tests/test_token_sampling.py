"""Filters of sampling by hand-made distributions, and draws that depend on their own numbers alone."""

from __future__ import annotations

import pytest
import torch

from dlas.layers.token_sampling import TokenSampling, keep_likely, penalise_repetition

P = torch.tensor([[0.1, 0.5, 0.15, 0.25]])


def drawn(sampling: TokenSampling, count: int = 4000) -> torch.Tensor:
    """Shares of the four tokens among draws at evenly spread numbers."""
    logits = P.log().expand(count, -1)
    uniform = (torch.arange(count) + 0.5) / count
    tokens = sampling.draw(logits, uniform)
    return torch.bincount(tokens, minlength=4) / count


def test_draws_follow_the_distribution() -> None:
    torch.testing.assert_close(drawn(TokenSampling()), P[0], atol=1e-3, rtol=0)


def test_a_low_temperature_sharpens() -> None:
    torch.testing.assert_close(drawn(TokenSampling(temperature=0.5)), P[0].square() / P.square().sum(), atol=1e-3, rtol=0)


def test_temperature_zero_takes_the_most_likely() -> None:
    assert drawn(TokenSampling(temperature=0.0)).tolist() == [0, 1, 0, 0]


def test_top_k_and_top_p_leave_out_the_unlikely() -> None:
    torch.testing.assert_close(drawn(TokenSampling(top_k=2)), torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=1e-3, rtol=0)
    torch.testing.assert_close(drawn(TokenSampling(top_p=0.8)), torch.tensor([0, 5 / 9, 1 / 6, 5 / 18]), atol=1e-3, rtol=0)
    assert drawn(TokenSampling(top_p=0.01)).tolist() == [0, 1, 0, 0]


def test_repetition_makes_both_signs_of_logits_less_likely() -> None:
    seen = torch.tensor([[True, True, False]])
    assert penalise_repetition(torch.tensor([[3.0, -2.0, 3.0]]), seen, 2.0).tolist() == [[1.5, -4.0, 3.0]]


def test_what_is_drawn_does_not_depend_on_the_batch() -> None:
    logits, uniform = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 0.99, 6)
    sampling = TokenSampling(top_p=0.9)
    alone = [sampling.draw(logits[i : i + 1], uniform[i : i + 1]) for i in range(6)]
    assert sampling.draw(logits, uniform).tolist() == torch.cat(alone).tolist()


def test_the_largest_number_never_draws_what_was_left_out() -> None:
    almost_one = torch.nextafter(torch.ones(1), torch.zeros(1))
    for sampling in (TokenSampling(top_p=0.8), TokenSampling(top_k=2), TokenSampling()):
        token = sampling.draw(P.log(), almost_one)
        kept, tokens = keep_likely(P.log(), sampling.top_k, sampling.top_p)
        assert token.item() in tokens[kept.isfinite()].tolist()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"repetition_penalty": 0.0}, {"typical_mass": 2.0}]
)
def test_numbers_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TokenSampling(**wrong)
