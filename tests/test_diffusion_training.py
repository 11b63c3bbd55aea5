"""Losses of diffusion models: what reaches the network, what is weighted, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dlas.diffusion import create_process
from dlas.diffusion.causal import causal_timesteps
from dlas.diffusion.training import Objective
from dlas.diffusion.weightings import create_weighting
from dlas.errors import ConfigurationError

VP = create_process({"type": "vp", "schedule": "cosine", "steps": 30})


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, noise, output, values = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(4))
    return x0.clamp(-1, 1), noise, torch.tensor([0, 10, 29]), output.requires_grad_(), values.requires_grad_()


def test_hybrid_bound_trains_the_variance_alone() -> None:
    x0, noise, times, output, values = example()
    objective = Objective(VP, "eps", "learned_range", "rescaled_mse")
    terms = objective.terms(objective.ask(x0, noise, times), output, values)
    terms.loss.sum().backward()
    expected = 2 * (output.detach() - noise) / noise[0].numel()
    assert output.grad is not None and torch.allclose(output.grad, expected)
    assert values.grad is not None and (values.grad.flatten(1).norm(dim=1) > 0).all()
    assert not Objective(VP).terms(objective.ask(x0, noise, times), output).bound


def test_bound_alone_trains_the_prediction_too() -> None:
    x0, noise, times, output, values = example()
    objective = Objective(VP, "v", "learned_range", "kl")
    objective.terms(objective.ask(x0, noise, times), output, values).loss.sum().backward()
    assert output.grad is not None and (output.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity", "edm", "previous_x"])
def test_perfect_answer_has_no_error(prediction: Any) -> None:
    x0, noise, times, _, _ = example()
    objective = Objective(VP, prediction, "fixed_small", "rescaled_kl")
    question = objective.ask(x0, noise, times)
    terms = objective.terms(question, question.target)
    assert terms.error.max() < 1e-10
    assert torch.allclose(terms.x0, x0, atol=1e-3)
    assert terms.bound is not None and terms.bound[1:].abs().max() < 1e-3


@pytest.mark.parametrize("settings", [{"type": "edm"}, {"type": "flow"}], ids=str)
def test_continuous_processes_have_weighted_errors(settings: dict[str, Any]) -> None:
    x0, noise, _, output, _ = example()
    process = create_process(settings)
    times = process.time_of(torch.tensor([0.2, 0.5, 0.8]))
    weighting = create_weighting({"type": "min_snr"})
    objective = Objective(process, "x0", weighting=weighting)
    terms = objective.terms(objective.ask(x0, noise, times), output)
    errors = (output - x0).square().flatten(1).mean(1)
    assert torch.allclose(terms.error, errors)
    assert torch.allclose(terms.loss, errors * process.level(times).snr.clamp(max=5).float())


def test_half_precision_is_compared_in_float32() -> None:
    x0, noise, times, output, values = example()
    objective = Objective(VP, "eps", "learned_range")
    question = objective.ask(x0.bfloat16(), noise, times)
    terms = objective.terms(question, output.bfloat16(), values.bfloat16())
    assert {each.dtype for each in (*question[:3], terms.loss, terms.error, terms.bound, terms.x0)} == {torch.float32}


def test_places_that_do_not_count() -> None:
    x0, noise, times, output, values = example()
    x0, noise, output, values = (each.flatten(2) for each in (x0, noise, output, values))
    objective = Objective(VP, "eps", "learned_range")
    along, keep = causal_timesteps(times, 16, 30, 1.0)
    question = objective.ask(x0, noise, along)
    level = VP.level(along)
    assert torch.allclose(question.x, level.alpha.float()[:, None] * x0 + level.sigma.float()[:, None] * noise)
    found = objective.terms(question, output, values, keep.unsqueeze(1))
    other = torch.where(keep.unsqueeze(1), output, 7.0)
    assert torch.equal(objective.terms(question, other, values, keep.unsqueeze(1)).loss, found.loss)
    assert not torch.equal(objective.terms(question, other, values).loss, found.loss)


def test_causal_timesteps_grow_by_the_slope() -> None:
    times = torch.arange(1000)
    found, keep = causal_timesteps(times, 8, 1000, 3.0)
    inside = keep[:, 1:] & keep[:, :-1]
    assert (found.diff(dim=1)[inside] == 3).all()
    assert keep.all(1).sum() > 900
    assert found.min() == 0 and found.max() == 999
    straight, whole = causal_timesteps(times, 1, 1000, 3.0)
    assert torch.equal(straight[:, 0], times) and whole.all()
    moved, _ = causal_timesteps(times, 8, 1000, 3.0, jitter=torch.tensor(-1.0))
    assert (found - moved).max() == 1 or (found - moved).max() == 2


def test_compiles_without_breaks() -> None:
    x0, noise, times, output, values = example()
    objective = Objective(VP, "v", "learned_range", "rescaled_mse", create_weighting({"type": "min_snr"}))

    def step(x0: Tensor, noise: Tensor, times: Tensor, output: Tensor, values: Tensor) -> Tensor:
        return objective.terms(objective.ask(x0, noise, times), output, values).loss

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x0, noise, times, output, values), step(x0, noise, times, output, values))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": {"type": "flow"}, "loss": "kl"}, "Flow has no timesteps"),
        ({"process": {"type": "edm"}, "variance": "learned"}, "has no timesteps"),
        ({"process": {"type": "flow"}, "prediction": "previous_x"}, "has no timesteps"),
        ({"process": {"type": "vp", "zero_terminal_snr": True}}, "predict v or x0"),
        ({"process": {"type": "vp"}, "prediction": "previous_x", "weighting": {"type": "edm"}}, "leave the weighting out"),
    ],
)
def test_what_does_not_go_together_is_told(options: dict[str, Any], message: str) -> None:
    parts = dict(options)
    parts["process"] = create_process(parts["process"])
    if "weighting" in parts:
        parts["weighting"] = create_weighting(parts["weighting"])
    with pytest.raises(ConfigurationError, match=message):
        Objective(**parts)
