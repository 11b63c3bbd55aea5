"""Injectors of tokens: dropping them, drawing them, and choosing among what was drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlas.context import Context
from dlas.diffusion.noise import without_condition
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State, read_inputs
from dlas.injectors.networks import evaluation_mode
from dlas.layers.token_sampling import TokenSampling
from dlas.registry import INJECTORS
from dlas.types import Fraction, NetworkName, PositiveFloat, PositiveInt, StateIn, StateIns, StateOut


@INJECTORS.register("drop_condition")
class DropConditionInjector(Injector):
    """Replaces a condition by what stands for none, for some samples, so that a network can be guided without a classifier.

    Args:
        in_: the condition, (B, ...).
        out: the same, with some samples of nothing but `value`.
        rate: share of the samples.
        value: what stands for none.

    Source: Ho and Salimans 2022 (arXiv:2207.12598).
    """

    def __init__(self, *, in_: StateIn, out: StateOut, rate: Fraction = 0.1, value: float = 0.0) -> None:
        self.input, self.out, self.rate, self.value = in_, out, rate, value

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        condition: Tensor = state[self.input]
        dropped = context.rand((), f"{self.out}/dropped", condition.device) < self.rate
        return {self.out: without_condition(condition, torch.full_like(condition, self.value), dropped)}


@INJECTORS.register("token_sample")
class TokenSampleInjector(Injector):
    """Draws the sequence that follows others from an autoregressive network, such as `token_transformer`.

    Args:
        generator: the network.
        in_: the sequences that are given: a state key, or a list of keys.
        out: what was drawn, (B, length), int64; with `candidates` (B, candidates, length).
        candidates: how many are drawn for each sample; not given: one.
        temperature: that logits are over; below 1 the probable becomes more so.
        top_k: draw among so many of the most probable tokens only; not given: among all.
        top_p: draw among the most probable tokens whose probabilities sum to this.
        guidance: how far to lean away from what the network expects without the given sequences, 1 being not at all: its logits
            are `guidance` times those with them plus (1 - `guidance`) times those without.
        unconditional: the token that fills sequences that stand for none.
    """

    detaches = True

    def __init__(
        self,
        *,
        generator: NetworkName,
        in_: StateIns,
        out: StateOut,
        candidates: PositiveInt | None = None,
        temperature: PositiveFloat = 1.0,
        top_k: PositiveInt | None = None,
        top_p: PositiveFloat = 1.0,
        guidance: float = 1.0,
        unconditional: int = 0,
    ) -> None:
        self.network, self.inputs, self.out, self.candidates = generator, in_, out, candidates
        self.sampling = TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.guidance, self.unconditional = guidance, unconditional

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network: Any = context.network(self.network)
        given: list[Tensor] = read_inputs(self.inputs, state)
        copies = self.candidates or 1

        def choose(logits: Tensor, place: int) -> Tensor:
            logits = logits.float()
            if self.guidance != 1:
                told, free = logits.chunk(2)
                logits = self.guidance * told + (1 - self.guidance) * free
            numbers = context.rand((copies,), f"{self.out}/{place}", logits.device).flatten()
            tokens = self.sampling.draw(logits, numbers)
            return tokens if self.guidance == 1 else tokens.repeat(2)

        if self.guidance != 1:
            given = [torch.cat((each, torch.full_like(each, self.unconditional))) for each in given]
        with torch.no_grad(), evaluation_mode(network):
            drawn: Tensor = network.continued(given, choose, copies)
        drawn = drawn if self.guidance == 1 else drawn.chunk(2)[0]
        return {self.out: drawn if self.candidates is None else drawn.unflatten(0, (-1, copies))}


@INJECTORS.register("rerank")
class RerankInjector(Injector):
    """Of several candidates the one that a network finds nearest to the condition.

    Args:
        generator: the network: its method `scores` takes conditions (B, ...) and candidates (B, n, ...), and gives (B, n).
        condition: key of the conditions: of texts.
        in_: the candidates.
        out: the best one of each sample, (B, ...).
        out_score: its score, (B,).
    """

    detaches = True

    def __init__(
        self, *, generator: NetworkName, condition: StateIn, in_: StateIn, out: StateOut, out_score: StateOut | None = None
    ) -> None:
        if out_score == out:
            raise ConfigurationError(f"rerank: 'out' and 'out_score' are both '{out}'; name two keys")
        self.network, self.condition, self.input = generator, condition, in_
        self.out, self.out_score = out, out_score

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network: Any = context.network(self.network)
        candidates: Tensor = state[self.input]
        with torch.no_grad(), evaluation_mode(network):
            scores: Tensor = network.scores(state[self.condition], candidates)
        best = scores.max(dim=1)
        found = {self.out: candidates[torch.arange(len(candidates), device=candidates.device), best.indices]}
        return found if self.out_score is None else {**found, self.out_score: best.values}
