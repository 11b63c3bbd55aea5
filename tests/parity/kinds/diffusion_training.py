"""What diffusion models are trained with: schedules, respacing, losses, the bound, timesteps drawn by loss; DL-Art-School's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.causal import causal_timesteps
from dlas.diffusion.likelihood import Bits, bits_per_dimension, prior_bits
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.schedules import betas_of
from dlas.diffusion.times import create_times
from dlas.diffusion.training import Objective, Question
from dlas.diffusion.variance import Chain
from dlas.errors import ConfigurationError
from parity.harness import Fixture, compare, handles

EPS_OF_NOISE = 0.9
"""The file does not say of which eps its `pred_xstart_from_eps` is: of this times `in.noise`."""
PREDICTIONS = {"epsilon": "eps", "start_x": "x0", "previous_x": "previous_x"}


def vp(schedule: str, steps: int, rescale: bool = False) -> Timesteps:
    process = create_process({"type": "vp", "schedule": schedule, "steps": steps, "rescale_timesteps": rescale})
    assert isinstance(process, Timesteps)
    return process


# ------------------------------------------------------------------------------------------------------- schedules, respacing


def tables(chain: Chain, bars: Tensor) -> dict[str, Tensor]:
    """By the reference's names."""
    one, zero = bars.new_ones(1), bars.new_zeros(1)
    alpha, sigma = chain.level
    return {
        "betas": betas_of(bars),
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": torch.cat((one, bars[:-1])),
        "alphas_cumprod_next": torch.cat((bars[1:], zero)),
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2 * sigma.log(),
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": chain.level.ratio,
        "posterior_variance": chain.posterior.variance,
        "posterior_log_variance_clipped": chain.log_small,
        "posterior_mean_coef1": chain.posterior.x0_factor,
        "posterior_mean_coef2": chain.posterior.x_factor,
    }


@handles("golden_diffusion_schedules*", cases=lambda fixture: sorted(fixture.tensors))
def check_schedules(fixture: Fixture, case: str) -> None:
    name = re.fullmatch(r"(?:buffers\.(?P<s>\w+)\.(?P<n>\d+)\.)?(?P<what>\w+)(?:\.(?P<s2>\w+)\.(?P<n2>\d+))?", case)
    assert name, f"no check is written for the entry '{case}'"
    process = vp(name["s"] or name["s2"], int(name["n"] or name["n2"]))
    compare(tables(Chain(process), process.alpha_bars)[name["what"]], fixture.tensors[case], "float64", case)


def respacings(fixture: Fixture) -> Iterable[str]:
    yield from (str(index) for index in range(len(fixture.json["cases"])))
    yield from fixture.json.get("invalid", {})


@handles("golden_diffusion_respacing*", cases=respacings)
def check_respacing(fixture: Fixture, case: str) -> None:
    if not case.isdigit():
        told = re.fullmatch(r'\((\d+), ?"(.*)"\)', case)
        assert told, f"'{case}' does not tell a number of timesteps and sections"
        reason = "integer stride" if "stride" in fixture.json["invalid"][case] else "cannot"
        with pytest.raises(ConfigurationError, match=reason):
            spaced_timesteps(int(told[1]), told[2])
        return
    wanted = fixture.json["cases"][int(case)]
    found = spaced_timesteps(wanted["num_timesteps"], wanted["section_counts"])
    assert found == wanted["use_timesteps"]
    if "schedule" not in wanted:
        return
    process = Respaced(vp(wanted["schedule"], wanted["num_timesteps"]), found)
    assert process.conditioning(torch.arange(process.steps)).tolist() == found
    if f"betas.{case}" in fixture.tensors:
        compare(betas_of(process.alpha_bars), fixture.tensors[f"betas.{case}"], "float64", case)


# --------------------------------------------------------------------------------------------------------------------- losses


def training_cases(fixture: Fixture) -> Iterable[str]:
    yield from fixture.json["values"]
    yield from (f"out.{name}" for name in fixture.outputs)


def split(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    return output[:, :channels], output[:, channels:]


@handles("golden_diffusion_training*", cases=training_cases)
def check_training(fixture: Fixture, case: str) -> None:
    x0, noise, times = (fixture.tensors[f"in.{name}"] for name in ("x_start", "noise", "t"))
    output, values = split(fixture.tensors["in.model_output"], x0)
    if case.startswith("out."):
        schedule, what = case.removeprefix("out.").split(".", 1)
        process = vp(schedule, fixture.json["T"])
        question = Objective(process).ask(x0, noise, times)
        if what.startswith("pmv."):
            found = reverse_step(process, question, output, values, what.removeprefix("pmv."))
        else:
            found = forward(process, question, noise, what)
        compare(found.expand_as(fixture.tensors[case]), fixture.tensors[case], "output", case)
        return
    schedule, mean, variance, loss = case.split(".")
    objective: Any = Objective(vp(schedule, fixture.json["T"]), PREDICTIONS[mean], variance, loss)
    learned = values if objective.learns_variance else None
    terms = objective.terms(objective.ask(x0, noise, times), output, learned)
    found = {"loss": terms.loss, "mse": terms.error}
    if terms.bound is not None:
        found["vb"] = terms.bound.flatten(1).mean(1)
    for name, numbers in fixture.json["values"][case].items():
        compare(found[name], torch.tensor(numbers), "output", f"{case} {name}")


def forward(process: Timesteps, question: Question, noise: Tensor, what: str) -> Tensor:
    x0, x, _, times = question
    link = Chain(process).at(times, x)
    computed: dict[str, Callable[[], Tensor]] = {
        "q_sample": lambda: x,
        "q_mean": lambda: link.level.alpha * x0,
        "q_var": lambda: link.level.sigma.square(),
        "q_logvar": lambda: 2 * link.level.sigma.log(),
        "post_mean": lambda: link.posterior.mean(x0, x),
        "post_var": lambda: link.posterior.variance,
        "post_logvar": lambda: link.log_small,
        "pred_xstart_from_eps": lambda: Objective(process).x0_of(EPS_OF_NOISE * noise, x, times),
        "prior_bpd": lambda: prior_bits(Chain(process), x0),
    }
    return computed[what]()


def reverse_step(process: Timesteps, question: Question, output: Tensor, values: Tensor, what: str) -> Tensor:
    parts = what.split(".")
    mean, field = parts[0], {"mean": "mean", "log_variance": "log_variance", "pred_xstart": "x0"}[parts[-1]]
    variance = next((part for part in parts if part.startswith(("fixed", "learned"))), "fixed_small")
    transform = (lambda x: x.clamp(-1, 1)) if "clip1" in parts else None
    objective: Any = Objective(process, PREDICTIONS[mean], variance)
    learned = values if objective.learns_variance else None
    return getattr(objective.estimate(output, learned, question.x, question.times, transform), field)


# ------------------------------------------------------------------------------------------------------------ bits, timesteps


def told(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, f"'{text}' does not tell {pattern}"
    return [float(number) for number in found.groups()]


def bound_of_loop(fixture: Fixture, run: str) -> Bits:
    schedule, variance, sections, rescale = run.split(".")
    steps = fixture.json["diffusion_steps"]
    process = Respaced(vp(schedule, steps, rescale == "rescale1"), spaced_timesteps(steps, sections))
    objective: Any = Objective(process, variance=variance)

    number = r"([\d.]+)"
    model = rf"x\*\({number}\+{number}\*cos\({number}\*t\)\); v = sin\(x\+{number}\*t\)"
    base, size, rate, shift = told(model, fixture.json["model"])
    (scale,) = told(rf"clamp\({number}\*in\.x_T,-1,1\)", fixture.json["description"])

    def toy(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, *(1,) * (x.dim() - 1))
        eps = x * (base + size * torch.cos(rate * t))
        return torch.cat((eps, torch.sin(x + shift * t)), 1) if objective.learns_variance else eps

    network = NetworkDenoiser(toy, process, learned_variance=objective.learns_variance)

    def step(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, values, _ = network.predict(x, times)
        return objective.estimate(output, values, x, times, lambda seen: seen.clamp(-1, 1))

    x0 = (scale * fixture.tensors["in.x_T"]).clamp(-1, 1)
    return bits_per_dimension(objective.chain, step, x0, lambda k: fixture.tensors[f"in.noise.{k}"])


BITS = {"total_bpd": "total", "prior_bpd": "prior", "vb": "steps", "xstart_mse": "x0_error", "mse": "eps_error"}
BY_LOSS = "loss_second_moment_sampler"


def loop_cases(fixture: Fixture) -> Iterable[str]:
    """All but what samplers give."""
    yield from (f"out.{name}" for name in fixture.outputs if ".bpd." in name)
    yield from (name for name in fixture.json if name == BY_LOSS)


@handles("golden_diffusion_loops*", cases=loop_cases)
def check_loops(fixture: Fixture, case: str) -> None:
    if case == BY_LOSS:
        check_times_by_loss(fixture.json[case])
        return
    run, term = case.removeprefix("out.").split(".bpd.")
    compare(getattr(bound_of_loop(fixture, run), BITS[term]), fixture.tensors[case], "output", case)


def check_times_by_loss(wanted: Mapping[str, Any]) -> None:
    steps = wanted["num_timesteps"]
    options = {"history": wanted["history_per_term"], "uniform_prob": wanted["uniform_prob"]}
    times: Any = create_times({"type": "loss_second_moment", **options})
    process = Timesteps(torch.linspace(0.9, 0.1, steps, dtype=torch.float64), 1.0, 1.0)
    times.draw(process, torch.rand(1), 0)
    for losses in next(value for name, value in wanted.items() if name.startswith("loss_updates")):
        times.observe(torch.arange(steps), torch.tensor(losses, dtype=torch.float64))
    probabilities = torch.tensor(wanted["sampling_probabilities"], dtype=torch.float64)
    compare(times.probabilities(), probabilities, "float64", "probabilities")
    compare(times.probabilities(), torch.tensor(wanted["weights"], dtype=torch.float64), "float64", "weights")
    middles = probabilities.cumsum(0) - probabilities / 2
    drawn = times.draw(process, middles, 0)
    assert drawn.times.tolist() == list(range(steps))
    importance = torch.tensor(wanted["importance_weights_1_over_T_p"], dtype=torch.float64)
    compare(drawn.weights, importance, "float64", "importance weights")


# -------------------------------------------------------------------------------------------------------------- DL-Art-School


def dlas_cases(fixture: Fixture) -> Iterable[str]:
    """All but what samplers give."""
    yield from fixture.json["values"]
    yield from (f"out.{name}" for name in fixture.outputs if name.startswith(("causal_", "tl.")))


@handles("golden_dlas_diffusion*", cases=dlas_cases)
def check_dlas(fixture: Fixture, case: str) -> None:
    if case.startswith("out.causal_"):
        check_causal_timesteps(fixture, case)
        return
    x0, noise, times = (fixture.tensors[f"in.{name}"] for name in ("x0", "noise", "t3"))
    process = vp(fixture.json["schedule"], fixture.json["T"])
    output, values = split(fixture.tensors["in.model_output"], x0)
    loss = re.search(r"\b((rescaled_)?(mse|kl))\b", case)
    assert loss, f"'{case}' does not tell a loss"
    objective: Any = Objective(process, variance="learned_range", loss=loss[1])
    keep = None
    if slope := re.search(r"slope([\d.]*\d)", case):
        times, keep = causal_timesteps(times, x0.shape[-1], process.steps, float(slope[1]), torch.zeros(()))
        keep = keep.unsqueeze(1) if "mse" in loss[1] else None  # the reference's bound counts every place
    terms = objective.terms(objective.ask(x0, noise, times), output, values, keep)
    if case.startswith("out."):
        found = terms.x0 if case.endswith("x_start_predicted") else terms.bound
        compare(found, fixture.tensors[case], "output", case)
        return
    for name, numbers in fixture.json["values"][case].items():
        found = terms.loss if name == "loss" else terms.error
        compare(found, torch.tensor(numbers), "output", f"{case} {name}")


def check_causal_timesteps(fixture: Fixture, case: str) -> None:
    """`causal_t` has -1 and T at places that do not count, which `causal_fixed` moves inside and `causal_mask` tells."""
    told = re.search(r"causal_(\w+)\.S(\d+)\.slope([\d.]*\d)", case)
    assert told, f"'{case}' does not tell a length and a slope"
    wanted = fixture.tensors[case]
    steps = causal_steps(fixture)
    found, keep = causal_timesteps(fixture.tensors["in.t"], int(told[2]), steps, float(told[3]))
    if told[1] == "mask":
        compare(~keep, wanted, "exact", case)
    elif told[1] == "fixed":
        compare(found, wanted, "exact", case)
    else:
        outside = torch.where(found == 0, -1, steps)
        compare(torch.where(keep, found, outside), wanted, "exact", case)


def causal_steps(fixture: Fixture) -> int:
    """The number of timesteps that the file does not tell: places after the last timestep have it."""
    return max(int(fixture.tensors[f"out.{name}"].max()) for name in fixture.outputs if name.startswith("causal_t."))
