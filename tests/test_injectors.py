"""Injectors: every registered one by a table, then what each family promises."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spoken
from dlas.archs import create_network
from dlas.archs.token_transformer import TokenTransformer
from dlas.context import Context
from dlas.engine.ema import ModelEma
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors import create_injector
from dlas.registry import INJECTORS, python_name, yaml_name

BATCH = 4


class Doubler(nn.Module):
    """A network with dropout, so that its mode shows, and a second method."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.5)
        self.frozen_norm = nn.BatchNorm2d(3).eval()
        self.modes: list[bool] = []

    def forward(self, image: Tensor, extra: Tensor | None = None, *, offset: float = 0.0) -> Tensor:
        self.modes.append(self.training)
        out = self.weight * image + offset
        return out if extra is None else out + extra

    def pair(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight * image, image, image


class NeedsSixteen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image)


class NoisePredictor(nn.Module):
    def forward(self, x: Tensor, times: Tensor, low_res: Tensor | None = None) -> Tensor:
        return x * torch.tanh(times).reshape(-1, 1, 1, 1)


class NearestMean(nn.Module):
    def scores(self, condition: Tensor, candidates: Tensor) -> Tensor:
        return -(candidates.flatten(2).mean(2) - condition.flatten(1).mean(1, keepdim=True)).abs()


TACOTRON = ("mel_target", "mel_output", "mel_output_postnet", "gate_target", "gate_output")
SWITCHED = {"layers": ["conv_last"], "breadth": 2, "norm": None, "dropout": 0.0}


class Widened(nn.Module):
    """A flow of one step: pictures are twice their latents, plus the condition."""

    quant = 255.0
    multiple = 1

    def encode(
        self, picture: Tensor, low_res: Tensor, noise: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        x = picture if noise is None else picture + (noise - 0.5) / self.quant
        z = (x - F.interpolate(low_res, scale_factor=2)) / 2
        log_density = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1) - math.log(2) * z[0].numel()
        if noise is not None:
            log_density = log_density - math.log(self.quant) * picture.shape[-2] * picture.shape[-1]
        return (z,), -log_density / (math.log(2) * picture.shape[-2] * picture.shape[-1]), log_density

    forward = encode

    def decode(self, latents: list[Tensor], low_res: Tensor) -> Tensor:
        return 2 * latents[0] + F.interpolate(low_res, scale_factor=2)

    def latent_sizes(self, low_res: Tensor) -> list[tuple[int, ...]]:
        return [(low_res.shape[1], 2 * low_res.shape[2], 2 * low_res.shape[3])]


def context(positions: range | list[int] = range(BATCH), **changes: Any) -> Context:
    networks = {"net": Doubler(), "disc": NeedsSixteen(), "denoiser": NoisePredictor(), "flow": Widened()}
    networks["clip"] = NearestMean()
    networks["switching"] = create_network({"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "switched": SWITCHED})
    networks["prior"] = create_network({"which_model": "token_transformer", **TokenTransformer.tiny()[0]})
    networks |= spoken.networks()
    averages = {"net": ModelEma(networks["net"], rate=0.9)}
    return Context(networks=networks, positions=list(positions), averages=averages, **{"seed": 7, "step": 3, **changes})


def images(channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, channels, height, width, generator=generator)


def image_state() -> dict[str, Any]:
    return {"x": images(), "y": images() + 1, "number": 0.5}


DECOMPOSED = {"x": images(), "shape": [16, BATCH, 3, 16], "order": [1, 2, 0, 3]}
DECOMPOSED["x"] = DECOMPOSED["x"].permute(2, 0, 1, 3).flatten(0, 1)

GAUSSIAN = {
    "generator": "denoiser",
    "beta_schedule": {"schedule_name": "linear", "num_diffusion_timesteps": 50},
    "diffusion_args": {"model_mean_type": "epsilon", "model_var_type": "fixed_small", "loss_type": "mse"},
}

FLOW_STATE = {"large": images().clamp(0, 1), "small": images(height=8, width=8).clamp(0, 1)}
SERIES = {"series": torch.stack([images(), images() + 0.1, images() - 0.2], dim=1), "x": images()}

# One row for each injector: its options and the state that it reads.
TABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "generator": ({"generator": "net", "in": ["x", "None"], "out": "o"}, image_state()),
    "generator_ema": ({"generator": "net", "in": ["x", "None"], "out": "o"}, image_state()),
    "discriminator": ({"discriminator": "disc", "in": "x", "out": "o"}, image_state()),
    "slice": ({"in": "x", "out": "o", "dim": -1, "start": 1, "end": -1, "step": 2}, image_state()),
    "channel_clip": ({"in": "x", "out": "o", "channel_low": 1, "channel_high": 3}, image_state()),
    "squeeze": ({"in": "x", "out": "o", "dim": 1}, {"x": images(1)}),
    "indices_extractor": ({"in": "x", "out": ["a", "b"], "dim": 1}, image_state()),
    "image_patch": ({"in": "x", "out": "o", "patch_size": 12}, image_state()),
    "margin_removal": ({"in": "x", "out": "o", "margin": 3, "random_shift_max": 2}, image_state()),
    "random_crop": ({"in": "x", "out": "o", "dim_in": 16, "dim_out": 8}, image_state()),
    "arithmetic": ({"in": ["x", "y", 2], "out": "o", "operation": "add"}, image_state()),
    "normalize": ({"in": "x", "out": "o", "shift": 0.5, "scale": 2.0}, image_state()),
    "denormalize": ({"in": "x", "out": "o", "shift": 0.5, "scale": 2.0}, image_state()),
    "clamp": ({"in": "x", "out": "o", "min": 0.0, "max": 1.0}, image_state()),
    "grey": ({"in": "x", "out": "o"}, image_state()),
    "sr_diffs": ({"mode": "produce_diff", "lq": "x", "hq": "y", "out": "o", "diff": "d"}, image_state()),
    "noise": ({"in": "x", "out": "o", "shape": [5, 2]}, image_state()),
    "add_noise": ({"in": "x", "out": "o", "scale": "number"}, image_state()),
    "stylegan2_noise": ({"in": "x", "out": "o", "latent_dim": 8}, image_state()),
    "mix_and_label": ({"in": ["x", "y"], "out": "o", "out_labels": "l"}, image_state()),
    "interpolate": ({"in": "x", "out": "o", "size": 8, "mode": "bilinear"}, image_state()),
    "resize": ({"in": "x", "out": "o", "scale": 0.5}, image_state()),
    "direct": ({"in": "x", "out": "o"}, image_state()),
    "detach": ({"in": "x", "out": "o"}, image_state()),
    "log": ({"in": ["x", "y"]}, image_state()),
    "all_gather": ({"in": "x", "out": "o"}, image_state()),
    "to_device": ({"in": "x", "out": "o", "device": "cpu"}, image_state()),
    "constant": ({"like": "x", "out": "o", "constant_type": "ones"}, image_state()),
    "concatenate": ({"in": ["x", "y"], "out": "o", "dim": 1}, image_state()),
    "pad": ({"in": "x", "out": "o", "multiple": 5}, image_state()),
    "batch_rotate": ({"in": "x", "out": "o"}, image_state()),
    "decompose_dimension": ({"in": "x", "out": "o", "dim": 2}, image_state()),
    "recompose_dimension": ({"in": "x", "out": "o", "reverse_shape": "shape", "reverse_permute": "order"}, DECOMPOSED),
    "for_each": ({"in": "x", "out": "o", "subtype": "add_noise", "scale": 0.1}, image_state()),
    "degrade": ({"in": "x", "out": "o", "scale": 2, "degradation": {"type": "bsrgan"}}, image_state()),
    "diffusion": (
        {"in": "x", "out": "o", "generator": "denoiser", "process": {"type": "flow"}, "prediction": "velocity"},
        image_state(),
    ),
    "bits_per_dimension": (
        {"in": "x", "out": "o", "out_x0_error": "s", "generator": "denoiser", "process": {"type": "vp"}, "timesteps": 3},
        image_state(),
    ),
    "tokenize": ({"in": "caption", "out": "o", "length": 4}, {"caption": ["a cat", "a dog", "", "a cat"]}),
    "drop_condition": ({"in": "x", "out": "o", "rate": 0.5}, image_state()),
    "token_sample": (
        {"generator": "prior", "in": "words", "out": "o", "candidates": 2, "guidance": 1.5},
        {"words": torch.tensor([[6, 2, 0], [3, 1, 4], [1, 2, 3], [0, 0, 0]])},
    ),
    "rerank": ({"generator": "clip", "condition": "x", "in": "y", "out": "o", "out_score": "s"}, image_state()),
    "diffusion_sample": (
        {"like": "x", "out": "o", "out_strip": "s", "generator": "denoiser", "process": {"type": "flow"}, "steps": 2},
        image_state(),
    ),
    "consistency": (
        {"in": "x", "out": "o", "out_x0": "s", "generator": "denoiser", "process": {"type": "edm"}, "scales_steps": 9},
        image_state(),
    ),
    "gaussian_diffusion": ({"in": "x", "out": "o", "out_key_x_start": "s", **GAUSSIAN}, image_state()),
    "gaussian_diffusion_inference": (
        {"out": "o", "model_input_keys": {"low_res": "x"}, "respaced_timestep_spacing": 2, **GAUSSIAN},
        image_state(),
    ),
    "feature_distance": ({"one": "x", "two": "y", "out": "o"}, image_state()),
    "classification_error": (
        {"logits": "x", "labels": "k", "out": "o"},
        {"x": torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), "k": torch.tensor([1, 2])},
    ),
    "flow_nll": ({"generator": "flow", "hq": "large", "lq": "small", "out": "o", "unit": "dimension"}, FLOW_STATE),
    "flow_gaussian_nll": ({"generator": "flow", "hq": "large", "lq": "small", "out": "o"}, FLOW_STATE),
    "flow_sample": ({"generator": "flow", "lq": "small", "out": "o", "heat": [0, 0.9]}, FLOW_STATE),
    "diversity": ({"in": "series", "out": "o", "measure": "local_gain", "target": "x"}, SERIES),
    "nv_tacotron2_error": (
        {**{f"{name}_key": name for name in TACOTRON}, "out": "o"},
        {name: torch.rand(BATCH, 6) if name.startswith("gate") else torch.randn(BATCH, 4, 6) for name in TACOTRON},
    ),
    "switched_generator": ({"generator": "switching", "in": "x", "out": "o", "switches": "s"}, image_state()),
    "switch_maps": ({"in": "s", "out": "o"}, {"s": {"last": {"chosen": torch.eye(3)[:, :, None, None].expand(-1, -1, 4, 6)}}}),
    "scheduled_scalar": ({"out": "o", "scheduler": {"type": "fixed", "weight": 0.5}}, {}),
    **spoken.INJECTORS,
}


def run(options: dict[str, Any], state: dict[str, Any], where: Context | None = None) -> Any:
    """The only or the `o` entry that an injector writes."""
    written = create_injector(options)(state, where or context())
    return written.get("o", written)


def test_every_injector_is_in_the_table() -> None:
    assert set(TABLE) == {name for name, entry in INJECTORS.entries().items() if entry.source.startswith("dlas.")}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_writes_exactly_the_keys_that_its_signature_declares(name: str) -> None:
    options, state = TABLE[name]
    before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    gates = {"after": 1, "before": 9, "every": 1, "train": True, "eval": False, "no_grad": False, "no_accum": False}
    written = create_injector({"type": name, **options, **gates})(state, context())

    declared: set[str] = set()
    entry = INJECTORS.find(name)
    for parameter in entry.parameters:
        if "StateOut" in parameter.annotation and (value := options.get(yaml_name(parameter.name))) is not None:
            declared |= {value} if isinstance(value, str) else set(value)
    named = {yaml_name(parameter.name): options.get(yaml_name(parameter.name)) for parameter in entry.parameters}
    declared |= {template.format(**named) for template in INJECTORS.get(name).derived_outputs}
    assert set(written) == declared

    assert state.keys() == before.keys()
    assert all(torch.equal(state[k], before[k]) if isinstance(before[k], Tensor) else state[k] == before[k] for k in before)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_option_is_described(name: str) -> None:
    entry = INJECTORS.find(name)
    lines = [line.strip() for line in entry.doc.splitlines()]
    described = {parameter.name for parameter in entry.parameters if any(ln.startswith(f"{parameter.name}: ") for ln in lines)}
    assert described == {parameter.name for parameter in entry.parameters}


def test_create_injector_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigurationError, match="needs 'type'"):
        create_injector({"in": "x"})
    with pytest.raises(ConfigurationError, match="did you mean 'interpolate'"):
        create_injector({"type": "interpolte"})
    with pytest.raises(ConfigurationError, match="did you mean 'multiple'"):
        create_injector({"type": "pad", "in": "x", "out": "o", "multipel": 2})


# ---- randomness -------------------------------------------------------------------------------------------------------------

RANDOM: list[dict[str, Any]] = [
    {"type": "noise", "in": "x", "out": "o", "shape": [6]},
    {"type": "add_noise", "in": "x", "out": "o", "scale": 0.3},
    {"type": "add_noise", "in": "x", "out": "o", "mode": "uniform"},
    {"type": "margin_removal", "in": "x", "out": "o", "margin": 4, "random_shift_max": 4},
    {"type": "random_crop", "in": "x", "out": "o", "dim_in": 16, "dim_out": 8},
    {"type": "mix_and_label", "in": ["x", "y"], "out": "o", "out_labels": "l"},
    {"type": "for_each", "in": "x", "out": "o", "subtype": "add_noise", "scale": 1.0},
]


@pytest.mark.parametrize("options", RANDOM, ids=lambda options: f"{options['type']}-{options.get('mode', '')}")
def test_random_numbers_belong_to_samples_and_not_to_micro_batches(options: dict[str, Any]) -> None:
    injector, state = create_injector(options), image_state()
    positions = [11, 3, 40, 8]
    whole = injector(state, context(positions))["o"]
    halves = [
        injector({k: v[part] if isinstance(v, Tensor) else v for k, v in state.items()}, context(positions[part]))["o"]
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, injector(state, context([11, 3, 40, 9]))["o"])
    other_name = create_injector({**options, "out": "p"})(state, context(positions))["p"]
    assert not torch.equal(whole, other_name)


def test_for_each_gives_every_part_noise_of_its_own() -> None:
    out = run({"type": "for_each", "in": "x", "out": "o", "subtype": "add_noise"}, {"x": torch.zeros(BATCH, 3, 8)})
    assert not torch.equal(out[:, 0], out[:, 1])


def test_noise_has_the_moments_it_should_and_the_type_of_its_input() -> None:
    x = torch.full((2, 100_000), 5.0, dtype=torch.bfloat16)
    normal = run({"type": "noise", "in": "x", "out": "o", "shape": [100_000]}, {"x": x}, context(range(2)))
    assert normal.dtype == torch.float32
    assert normal.mean().abs() < 0.01 and abs(normal.std() - 1) < 0.01
    zero = torch.zeros(2, 100_000)
    uniform = run({"type": "add_noise", "in": "x", "out": "o", "mode": "uniform", "scale": 2}, {"x": zero}, context(range(2)))
    assert uniform.min() >= 0 and uniform.max() < 2 and abs(uniform.mean() - 1) < 0.01
    assert run({"type": "add_noise", "in": "x", "out": "o"}, {"x": x}, context(range(2))).dtype == torch.bfloat16


def test_add_noise_scales_by_sample() -> None:
    state = {"x": torch.zeros(BATCH, 3, 4), "sigma": torch.tensor([0.0, 1.0, 2.0, 4.0])}
    unit = run({"type": "add_noise", "in": "x", "out": "o"}, state)
    scaled = run({"type": "add_noise", "in": "x", "out": "o", "scale": "sigma"}, state)
    assert torch.equal(scaled, unit * state["sigma"].view(-1, 1, 1))


def test_noise_over_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="8 entries in its first dimension, but the micro-batch has 4 samples"):
        run({"type": "add_noise", "in": "x", "out": "o"}, {"x": torch.zeros(8, 3)})


def test_stylegan2_noise_mixes_as_often_as_asked() -> None:
    injector = create_injector({"type": "stylegan2_noise", "in": "x", "out": "o", "mix_probability": 0.25, "latent_dim": 2})
    first = context([0])
    latents = [injector({"x": torch.zeros(1, 1)}, replace(first, step=step))["o"] for step in range(1000)]
    counts = [len(each) for each in latents]
    assert set(counts) == {1, 2}
    assert not any(torch.equal(*each) for each in latents if len(each) == 2)
    assert abs(sum(count == 2 for count in counts) / 1000 - 0.25) < 0.05


def test_mix_and_label_labels_what_it_took() -> None:
    state = {"a": torch.zeros(64, 2), "b": torch.ones(64, 2), "c": torch.full((64, 2), 2.0)}
    injector = create_injector({"type": "mix_and_label", "in": ["a", "b", "c"], "out": "o", "out_labels": "l"})
    written = injector(state, context(range(64)))
    assert torch.equal(written["o"], written["l"].float()[:, None].expand(64, 2))
    assert written["l"].unique().tolist() == [0, 1, 2]


# ---- networks ---------------------------------------------------------------------------------------------------------------


def test_generator_without_gradient_runs_in_evaluation_mode_and_restores_it() -> None:
    where = context()
    net = where.network("net")
    modes = {name: module.training for name, module in net.named_modules()}
    out = run({"type": "generator", "generator": "net", "in": "x", "out": "o", "grad": False}, image_state(), where)
    assert not out.requires_grad and net.modes == [False]
    assert {name: module.training for name, module in net.named_modules()} == modes and net.training

    out = run({"type": "generator", "generator": "net", "in": "x", "out": "o"}, image_state(), where)
    assert out.requires_grad and net.modes == [False, True]


def test_generator_mode_is_restored_after_an_error() -> None:
    where = context()
    with pytest.raises(TrainingError):
        run({"type": "generator", "generator": "disc", "in": "y", "out": "o", "grad": False}, {"y": images(width=9)}, where)
    assert where.network("disc").training


def test_generator_takes_literals_keywords_methods_and_lists_of_outputs() -> None:
    state = image_state()
    out = run({"type": "generator", "generator": "net", "in": ["x", "y"], "args": {"offset": 3.0}, "out": "o"}, state)
    assert torch.equal(out, 2 * state["x"] + 3 + state["y"])
    written = run({"type": "generator", "generator": "net", "in": "x", "method": "pair", "out": ["a", "b"]}, state)
    assert list(written) == ["a", "b"] and torch.equal(written["a"], 2 * state["x"])


def test_generator_can_leave_mixed_precision() -> None:
    state = {"x": images().bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run({"type": "generator", "generator": "disc", "in": "x", "out": "o"}, state)
        full = run({"type": "generator", "generator": "disc", "in": "x", "out": "o", "fp16": False}, state)
    assert mixed.dtype == torch.bfloat16 and full.dtype == torch.float32


def test_a_shape_error_names_the_network_its_inputs_and_their_shapes() -> None:
    with pytest.raises(TrainingError, match=r"network 'disc'.*x: float32 \(4, 3, 16, 9\).*mat1 and mat2.*writes o") as caught:
        run({"type": "discriminator", "discriminator": "disc", "in": "x", "out": "o"}, {"x": images(width=9)})
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(TrainingError, match="expects 2 results, but the network returned one Tensor"):
        run({"type": "generator", "generator": "net", "in": "x", "out": ["a", "b"]}, image_state())


def test_running_out_of_memory_is_not_disguised() -> None:
    class Hungry(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        run({"type": "generator", "generator": "n", "in": "x", "out": "o"}, image_state(), Context(networks={"n": Hungry()}))


# ---- parts of tensors -------------------------------------------------------------------------------------------------------


def test_image_patch_cuts_the_four_corners() -> None:
    x = images(height=16, width=20)
    written = create_injector({"type": "image_patch", "in": "x", "out": "p", "patch_size": 12})({"x": x}, context())
    assert torch.equal(written["p"], x[..., :12, :12])
    assert torch.equal(written["p_top_left"], x[..., :12, :12])
    assert torch.equal(written["p_top_right"], x[..., :12, 8:])
    assert torch.equal(written["p_bottom_left"], x[..., 4:, :12])
    assert torch.equal(written["p_bottom_right"], x[..., 4:, 8:])


def test_image_patch_leaves_the_image_alone_in_evaluation() -> None:
    x = images()
    options = {"type": "image_patch", "in": "x", "out": "p", "patch_size": 40, "resize": 4}
    written = create_injector(options)({"x": x}, context(training=False))
    assert len(written) == 5 and all(value is x for value in written.values())
    with pytest.raises(ValueError, match="smaller than patch_size 40"):
        create_injector(options)({"x": x}, context())


def test_image_patch_resizes_its_patches() -> None:
    x = torch.ones(1, 1, 8, 8)
    written = create_injector({"type": "image_patch", "in": "x", "out": "p", "patch_size": 6, "resize": 3})(
        {"x": x}, context([0])
    )
    assert all(torch.allclose(value, torch.ones(1, 1, 3, 3)) for value in written.values())


def test_margin_removal_is_central_without_shift_and_within_reach_with_it() -> None:
    x = images()
    plain = run({"type": "margin_removal", "in": "x", "out": "o", "margin": 3}, {"x": x})
    assert torch.equal(plain, x[..., 3:13, 3:13])
    shifted = {"type": "margin_removal", "in": "x", "out": "o", "margin": 3, "random_shift_max": 2}
    assert torch.equal(run(shifted, {"x": x}, context(training=False)), plain)

    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(200, 2, 16, 16)
    starts = run(shifted, {"x": rows}, context(range(200)))[:, 0, 0, 0]
    assert sorted(starts.unique().tolist()) == [1, 2, 3, 4, 5]
    with pytest.raises(ConfigurationError, match="at most the margin, 1"):
        create_injector({**shifted, "margin": 1})


def test_margin_removal_takes_the_same_window_from_all_channels() -> None:
    grid = torch.arange(256.0).view(1, 1, 16, 16).repeat(8, 2, 1, 1)
    out = run(
        {"type": "margin_removal", "in": "x", "out": "o", "margin": 5, "random_shift_max": 5}, {"x": grid}, context(range(8))
    )
    for window in out:
        top, left = divmod(int(window[0, 0, 0]), 16)
        assert torch.equal(window, grid[0, :, top : top + 6, left : left + 6])


def test_random_crop_without_room_is_the_image() -> None:
    x = images()
    assert torch.equal(run({"type": "random_crop", "in": "x", "out": "o", "dim_in": 16, "dim_out": 16}, {"x": x}), x)


def test_random_crop_covers_areas_from_the_ratio_to_the_whole() -> None:
    columns = torch.arange(64.0).expand(300, 1, 64, 64).contiguous()
    out = run({"type": "random_crop", "in": "x", "out": "o", "dim_in": 64, "dim_out": 16}, {"x": columns}, context(range(300)))
    span = out[:, 0, 0, -1] - out[:, 0, 0, 0]  # 15/16 of the side, whose square is uniform in [1/4, 1] of the image
    area = (span * 16 / 15 / 64) ** 2
    assert area.min() > 0.22 and area.max() < 1.05 and abs(area.mean() - 0.625) < 0.03


def test_indices_extractor_slice_and_squeeze() -> None:
    x = images()
    written = run({"type": "indices_extractor", "in": "x", "out": ["a", "b"], "dim": 2}, {"x": x})
    assert torch.equal(written["b"], x[:, :, 1])
    assert torch.equal(run({"type": "slice", "in": "x", "out": "o", "dim": 2, "start": -3}, {"x": x}), x[:, :, -3:])
    with pytest.raises(ValueError, match="dimension 1 is not of size 1"):
        run({"type": "squeeze", "in": "x", "out": "o", "dim": 1}, {"x": x})


# ---- values and shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "expected"), [("add", 9.0), ("subtract", 3.0), ("multiply", 12.0), ("divide", 3.0)])
def test_arithmetic_goes_from_left_to_right(operation: str, expected: float) -> None:
    state = {"a": torch.tensor([6.0]), "b": torch.tensor([2.0])}
    out = run({"type": "arithmetic", "in": ["a", "b", 1], "out": "o", "operation": operation}, state)
    assert out.item() == expected


def test_denormalize_undoes_normalize() -> None:
    options = {"in": "x", "out": "o", "shift": 0.25, "scale": 4.0}
    there = run({"type": "normalize", **options}, {"x": torch.tensor([4.25])})
    assert there.item() == 1.0
    assert run({"type": "denormalize", **options}, {"x": there}).item() == 4.25


def test_sr_diffs_takes_apart_and_recombines() -> None:
    state = image_state()
    options = {"type": "sr_diffs", "mode": "produce_diff", "lq": "x", "hq": "y", "out": "o", "diff": "d"}
    written = create_injector({**options, "include_combined": True})(state, context())
    assert torch.equal(written["o"], torch.cat([state["x"], state["y"] - state["x"], state["y"]], 1))
    back = run({"type": "sr_diffs", "mode": "recombine", "lq": "x", "hq": "d", "out": "o"}, {**state, "d": written["d"]})
    torch.testing.assert_close(back, state["y"])
    with pytest.raises(ConfigurationError, match="needs 'diff'"):
        create_injector({key: value for key, value in options.items() if key != "diff"})


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 8), (8, 8)])
def test_pad_adds_nothing_to_what_is_aligned(length: int, padded: int) -> None:
    out = run({"type": "pad", "in": "x", "out": "o", "multiple": 4}, {"x": torch.ones(2, length)})
    assert out.shape == (2, padded) and out.sum() == 2 * length


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_recompose_undoes_decompose(dim: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    written = create_injector({"type": "decompose_dimension", "in": "x", "out": "o", "dim": dim})({"x": x}, context())
    batch = written["o"]
    assert batch.shape == (2 * x.shape[dim], *[size for d, size in enumerate(x.shape) if d not in (0, dim)])
    assert torch.equal(batch[1], x[1].select(dim - 1, 0)) and torch.equal(batch[2], x[0].select(dim - 1, 1))
    back = {"type": "recompose_dimension", "in": "o", "out": "r", "reverse_shape": "o_reverse_shape"}
    options = {**back, "reverse_permute": "o_reverse_permute"}
    assert torch.equal(create_injector(options)(written, context())["r"], x)

    cut = create_injector({"type": "decompose_dimension", "in": "x", "out": "o", "dim": dim, "cutoff_dim": 3})(
        {"x": x}, context()
    )
    assert torch.equal(cut["o"], batch[:3])


def test_for_each_passes_options_on_and_can_give_a_list() -> None:
    x = images()
    options = {"type": "for_each", "in": "x", "out": "o", "subtype": "slice", "dim": 1, "end": 2}
    assert torch.equal(run(options, {"x": x}), x[:, :, :2])
    parts = run({**options, "aslist": True}, {"x": x})
    assert len(parts) == 3 and torch.equal(parts[2], x[:, 2, :2])
    with pytest.raises(ConfigurationError, match="injector 'slice' has no option 'ende'; did you mean 'end'"):
        create_injector({**options, "ende": 2})


def test_constants_rotation_grey_and_clamp() -> None:
    x = torch.arange(3.0).view(3, 1)
    assert run({"type": "constant", "like": "x", "out": "o"}, {"x": x}).tolist() == [[0], [0], [0]]
    assert run({"type": "constant", "like": "x", "out": "o", "constant_type": "value", "value": 7}, {"x": x})[0].item() == 7
    with pytest.raises(ConfigurationError, match="takes no 'value'"):
        create_injector({"type": "constant", "like": "x", "out": "o", "value": 7.0})
    assert run({"type": "batch_rotate", "in": "x", "out": "o"}, {"x": x}).flatten().tolist() == [2, 0, 1]
    assert run({"type": "clamp", "in": "x", "out": "o", "max": 1.0}, {"x": x}).flatten().tolist() == [0, 1, 1]
    grey = run({"type": "grey", "in": "x", "out": "o"}, {"x": torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)})
    assert grey.flatten().tolist() == [3, 3, 3]


def test_detach_stops_gradients_and_direct_does_not() -> None:
    x = torch.ones(1, requires_grad=True)
    assert not run({"type": "detach", "in": "x", "out": "o"}, {"x": x}).requires_grad
    assert run({"type": "direct", "in": "x", "out": "o"}, {"x": x}) is x


def test_resizing_needs_one_of_factor_and_size() -> None:
    x = images()
    assert run({"type": "interpolate", "in": "x", "out": "o", "scale_factor": 2, "mode": "area"}, {"x": x}).shape[-2:] == (
        32,
        32,
    )
    assert run({"type": "resize", "in": "x", "out": "o", "size": [8, 4]}, {"x": x.bfloat16()}).shape[-2:] == (8, 4)
    for name, both in (("interpolate", {"scale_factor": 2, "size": 8}), ("resize", {"scale": 2, "size": 8})):
        for options in (both, {}):
            with pytest.raises(ConfigurationError, match="give either"):
                create_injector({"type": name, "in": "x", "out": "o", **options})
    constant = run({"type": "resize", "in": "x", "out": "o", "scale": 0.25}, {"x": torch.full((1, 1, 16, 16), 0.3)})
    torch.testing.assert_close(constant, torch.full((1, 1, 4, 4), 0.3))


# ---- scheduled scalars ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "values"),
    [
        ({"type": "fixed", "weight": 3}, {0: 3, 99: 3}),
        (
            {"type": "linear_decay", "initial_weight": 1.0, "lower_bound": 0.2, "steps": 8, "start_step": 10},
            {0: 1.0, 10: 1.0, 14: 0.6, 18: 0.2, 50: 0.2},
        ),
        (
            {"type": "sinusoidal", "upper_weight": 3.0, "lower_weight": 1.0, "period": 8, "start_step": 4},
            {0: 3.0, 4: 3.0, 6: 2.0, 8: 1.0, 12: 3.0, 5: 2 + math.cos(math.pi / 4)},
        ),
    ],
)
def test_scheduled_scalar_closed_forms(scheduler: dict[str, Any], values: dict[int, float]) -> None:
    injector = create_injector({"type": "scheduled_scalar", "out": "w", "scheduler": scheduler})
    for step, value in values.items():
        written = injector({}, context(step=step))["w"]
        assert isinstance(written, float | int) and written == pytest.approx(value, abs=1e-12)


def test_scheduled_scalar_is_strict() -> None:
    for scheduler, message in (
        ({"type": "fixd", "weight": 1}, "none of fixed, linear_decay, sinusoidal"),
        ({"type": "fixed", "wieght": 1}, "did you mean 'weight'"),
        ({"type": "linear_decay", "initial_weight": 1.0}, "needs lower_bound, steps"),
        ({"type": "sinusoidal", "upper_weight": 1, "lower_weight": 0, "period": 0}, "period above 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            create_injector({"type": "scheduled_scalar", "out": "w", "scheduler": scheduler})


def test_signatures_read_from_source_are_those_of_the_classes() -> None:
    for name, entry in INJECTORS.entries().items():
        given = [p for p in inspect.signature(INJECTORS.get(name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert [parameter.name for parameter in given] == [parameter.name for parameter in entry.parameters]
        assert all(python_name(yaml_name(parameter.name), entry) == parameter.name for parameter in entry.parameters)
