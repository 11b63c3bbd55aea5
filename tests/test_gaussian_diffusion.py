"""DL-Art-School's diffusion injectors: their options do what they say, by the functions of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.config import check
from dlas.context import Context
from dlas.injectors import create_injector
from runs import configure

SCHEDULE = {"schedule_name": "linear", "num_diffusion_timesteps": 100}
ARGS = {"model_mean_type": "epsilon", "model_var_type": "learned_range", "loss_type": "mse"}
FIXED = {**ARGS, "model_var_type": "fixed_small"}


class Network(nn.Module):
    """Keeps what it was asked; twice the channels where it tells a variance."""

    def __init__(self, learned: bool = True, extra: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))
        self.learned, self.extra = learned, extra
        self.asked: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def forward(self, x: Tensor, timesteps: Tensor, conditioning_free: bool = False, **conditions: Any) -> Any:
        self.asked.append((x, timesteps, {"conditioning_free": conditioning_free, **conditions}))
        found = x * self.factor * (0.5 if conditioning_free else 1)
        found = torch.cat((found, 0.1 * found), dim=1) if self.learned else found
        return (found, found.mean()) if self.extra else found

    def smooth(self, x: Tensor, timesteps: Tensor, process: Any) -> Tensor:
        """A stand-in for a method that prepares data."""
        return x / 2


def ask(network: Network, x0: Tensor, positions: list[int], step: int = 0, **options: Any) -> dict[str, Any]:
    given = {"in": "hq", "out": "loss", "generator": "net", "beta_schedule": SCHEDULE, "diffusion_args": ARGS, **options}
    injector = create_injector({"type": "gaussian_diffusion", **given})
    state = {"hq": x0, "lq": x0[..., ::2], "codes": torch.zeros(len(x0), 7, dtype=torch.long)}
    return injector(state, Context({"net": network}, seed=5, positions=positions, step=step))


def data(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (3, 4, 4)), generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def test_squared_error_and_bound_are_two_entries() -> None:
    x0, positions = data(5), [0, 1, 2, 3, 4]  # a batch size at which DL-Art-School failed
    options = {"type": "diffusion", "in": "hq", "out": "loss", "generator": "net", "process": {"type": "vp", "steps": 100}}
    native = create_injector({**options, "variance": "learned_range", "out_bound": "vb"})
    found = ask(Network(), x0, positions, out_key_vb_loss="vb", out_key_x_start="seen")
    wanted = native({"hq": x0}, Context({"net": Network()}, seed=5, positions=positions))
    assert found["vb"].requires_grad
    assert found["seen"].shape == x0.shape
    assert torch.equal(found["vb"], wanted["vb"])
    assert torch.allclose(found["loss"] + found["vb"], wanted["loss"])


def test_arguments_are_keys_or_numbers_and_further_results_are_named() -> None:
    network = Network(extra=True)
    found = ask(network, data(2), [0, 1], model_input_keys={"low_res": "lq", "strength": 0.5}, extra_model_output_keys=["mean"])
    assert network.asked[0][2]["strength"] == 0.5
    assert network.asked[0][2]["low_res"].shape == (2, 3, 4, 2)
    assert found["mean"].dim() == 0
    with pytest.raises(ValueError, match="names 1 results beside the prediction, but the network gave 0"):
        ask(Network(), data(2), [0, 1], extra_model_output_keys=["mean"])


def test_timesteps_are_told_in_thousandths_where_asked() -> None:
    network = Network()
    ask(network, data(16), list(range(16)), diffusion_args={**ARGS, "rescale_timesteps": True})
    assert network.asked[0][1].max() > 800
    assert (network.asked[0][1] % 10 == 0).all()


def test_even_steps_draw_evenly_whatever_losses_say() -> None:
    options = {"sampler_type": "loss-second-moment", "diffusion_args": FIXED}
    schedule = {"schedule_name": "cosine", "num_diffusion_timesteps": 4}
    injectors = []
    for every in (0, 5):
        given = {"in": "hq", "out": "loss", "generator": "net", "beta_schedule": schedule, **options}
        injectors.append(create_injector({"type": "gaussian_diffusion", **given, "deterministic_timesteps_every": every}))
    network = Network(learned=False)
    counts = []
    for injector in injectors:
        for step in range(11):
            injector({"hq": data(16)}, Context({"net": network}, seed=5, positions=range(16 * step, 16 * step + 16), step=step))
        counts.append(torch.bincount(network.asked[-1][1].long(), minlength=4))
    assert counts[0].max() > 6  # the error of this network is largest at the last timestep
    assert max(counts[1]) - min(counts[1]) <= 2


def test_data_are_prepared_by_the_network() -> None:
    network, plain = Network(), Network()
    ask(network, data(2), [0, 1], preprocess_fn="smooth")
    ask(plain, data(2) / 2, [0, 1])
    assert torch.equal(network.asked[0][0], plain.asked[0][0])


def test_errors_of_some_channels_count_alone() -> None:
    options: dict[str, Any] = {"diffusion_args": {**FIXED, "model_mean_type": "start_x"}}
    x0 = torch.zeros(2, 4, 8)
    x0[:, 1] = 1
    network = Network(learned=False)
    network.factor.data.zero_()
    assert ask(network, x0, [0, 1], **options)["loss"].tolist() == [0.25, 0.25]
    only = {"channel_restriction_low": 1, "channel_restriction_high": 3}
    assert ask(network, x0, [0, 1], **options, **only)["loss"].tolist() == [0.5, 0.5]


def test_timesteps_grow_along_a_sequence_in_causal_mode() -> None:
    network = Network(learned=False)
    found = ask(network, data(4, 3, 16), [0, 1, 2, 3], causal_mode=True, causal_slope_range=[2, 2], diffusion_args=FIXED)
    times = network.asked[0][1]
    assert times.shape == (4, 16)
    steps = times.diff(dim=1)
    assert ((steps == 2) | torch.isin(times[:, 1:], torch.tensor([0, 1, 98, 99]))).all()
    assert (steps >= 0).all()
    assert found["loss"].shape == (4,)
    with pytest.raises(ValueError, match=r"for data \(B, C, L\)"):
        ask(Network(learned=False), data(2), [0, 1], causal_mode=True, diffusion_args=FIXED)


# ----------------------------------------------------------------------------------------------------------------- sampling


def draw(network: Network, positions: list[int], training: bool = False, **options: Any) -> Tensor:
    given = {"out": "made", "generator": "net", "beta_schedule": SCHEDULE, "diffusion_args": ARGS}
    given |= {"model_input_keys": {"low_res": "lq"}, "respaced_timestep_spacing": 5, "output_scale_factor": 2, **options}
    state = {"lq": torch.zeros(len(positions), 3, 2, 4), "mel": torch.zeros(len(positions), 80, 10)}
    context = Context({"net": network}, training=training, seed=5, positions=positions)
    made: Tensor = create_injector({"type": "gaussian_diffusion_inference", **given})(state, context)["made"]
    return made


def test_the_samples_have_the_shape_that_an_argument_tells() -> None:
    assert draw(Network(), [0, 1]).shape == (2, 3, 4, 8)
    sound = {"model_input_keys": {"spectrogram": "mel"}, "output_scale_factor": 256, "multiple_requirement": 1000}
    assert draw(Network(), [0, 1], **sound).shape == (2, 1, 3000)
    codes = {"model_input_keys": {"discrete_spectrogram": "mel"}}
    assert draw(Network(), [0, 1], **codes).shape == (2, 1, 12288)  # 10240 to the next multiple of 4096


@pytest.mark.parametrize("ddim", [False, True])
def test_the_network_is_told_the_timesteps_of_the_whole_chain(ddim: bool) -> None:
    network = Network()
    draw(network, [0], respaced_timestep_spacing="5", use_ddim=ddim)
    assert [float(asked[1][0]) for asked in network.asked] == [99, 74, 50, 25, 0]
    network = Network()
    draw(network, [0], respaced_timestep_spacing="ddim4", use_ddim=ddim)
    assert [float(asked[1][0]) for asked in network.asked] == [75, 50, 25, 0]


def test_a_sample_is_the_same_in_any_batch_and_in_range() -> None:
    whole = draw(Network(), [3, 4, 5])
    assert torch.equal(whole, torch.cat([draw(Network(), [3]), draw(Network(), [4, 5])]))
    assert torch.equal(draw(Network(), [3, 4, 5], undo_n1_to_1=True), (whole + 1) / 2)


def test_in_training_as_many_are_drawn_as_asked_for() -> None:
    assert draw(Network(), [3, 4, 5], training=True, output_batch_size=2).shape[0] == 2
    assert draw(Network(), [3, 4, 5], output_batch_size=2).shape[0] == 3


def test_chains_start_from_what_is_asked_for() -> None:
    options = {"use_ddim": True}
    assert draw(Network(), [3], noise_type="zero", **options).abs().max() == 0
    fixed = [draw(Network(), [place], noise_type="fixed", **options) for place in (3, 4)]
    assert torch.equal(*fixed)
    assert not torch.equal(draw(Network(), [3], **options), draw(Network(), [4], **options))


@pytest.mark.parametrize("kind", ["epsilon", "start_x", "previous_x"])
@pytest.mark.parametrize("variance", ["learned", "learned_range", "fixed_small", "fixed_large"])
def test_every_kind_of_model_is_sampled(kind: str, variance: str) -> None:
    arguments = {"model_mean_type": kind, "model_var_type": variance, "loss_type": "mse"}
    found = draw(Network(learned=variance.startswith("learned")), [0], diffusion_args=arguments)
    assert found.isfinite().all()


def test_conditioning_free_guidance_leans_away_from_the_network_without_its_condition() -> None:
    network = Network()
    draw(network, [0], use_ddim=True, diffusion_args={**ARGS, "conditioning_free": True, "conditioning_free_k": 2})
    assert [asked[2]["conditioning_free"] for asked in network.asked] == [False, True] * 5
    flat = {**ARGS, "conditioning_free": True, "conditioning_free_k": 2, "ramp_conditioning_free": False}
    found = draw(Network(), [0], use_ddim=True, diffusion_args=flat)
    strong = Network()
    strong.factor.data.fill_(3 * 0.5 - 2 * 0.25)
    assert torch.allclose(found, draw(strong, [0], use_ddim=True), atol=1e-5)


# -------------------------------------------------------------------------------------------------------------------- files

FILE = """
name: run
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4, length: 8}
networks:
  generator: {which_model_G: ToyDenoiser}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      diffusion:
        type: gaussian_diffusion
        in: hq
        generator: generator
        beta_schedule: {schedule_name: linear, num_diffusion_timesteps: 100}
        diffusion_args: {model_mean_type: epsilon, model_var_type: fixed_small, loss_type: mse}
        model_input_keys: {low: lq}
        out: loss
    losses: {diffusion: {type: direct, key: loss, weight: 1}}
train: {niter: 6}
logger: {tensorboard: false}
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("beta_schedule.schedule_name=cosin", "expected one of linear, cosine"),
        ("beta_schedule.steps=3", "unknown key"),
        ("diffusion_args.model_var_type=fixed", "expected one of learned, fixed_small"),
        ("diffusion_args={loss_type: mse}", "the key 'model_mean_type' is missing"),
        ("model_input_keys.low=lqq", "'lqq'"),
        ("channel_balancer_proportion=0.5", "errors of channels are not balanced"),
    ],
)
def test_the_checker_looks_into_nested_options(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    path.write_text(FILE)
    assert [problem for problem in check(path) if problem.severity == "error"] == []
    errors = [p for p in check(path, [f"steps.generator.injectors.diffusion.{override}"]) if p.severity == "error"]
    assert any(message in error.message for error in errors), errors


def test_names_that_dl_art_school_ignored_are_read_with_a_notice(tmp_path: Path) -> None:
    path = "steps.generator.injectors.diffusion"
    config = configure(tmp_path, FILE, f"{path}.deterministic_sampler_expected_batch_size=64")
    assert any("timesteps are spread evenly over a batch of any size" in str(each) for each in config.notices)
    sampling = (
        "{type: gaussian_diffusion_inference, generator: generator, out: made, use_ema_model: true, "
        "beta_schedule: {schedule_name: linear, num_diffusion_timesteps: 100}, model_input_keys: {low_res: lq}, "
        "diffusion_args: {model_mean_type: epsilon, model_var_type: fixed_small, loss_type: mse}}"
    )
    config = configure(tmp_path, FILE, f"steps.generator.injectors.sampling={sampling}")
    assert config.steps["generator"].injectors["sampling"].options["use_ema"] is True
    assert any("use_ema_model: read as 'use_ema'" in str(each) for each in config.notices)
