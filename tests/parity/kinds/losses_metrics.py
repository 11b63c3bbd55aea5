"""Adversarial losses, gradient penalties, image metrics and bicubic resizing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.context import Context
from dlas.layers.color import rgb_to_y, rgb_to_ycbcr
from dlas.layers.resize import imresize
from dlas.losses import create_loss
from dlas.losses.gan import discriminator_terms, generator_loss
from dlas.losses.penalties import (
    input_gradient,
    interpolate_gradient_penalty,
    path_length_penalty,
    r1_penalty,
    unit_gradient_penalty,
)
from dlas.metrics import psnr, ssim
from parity.harness import Fixture, compare, handles

LEFT_OUT = {"pixgan_fea": "pixgan"}
"""Kinds of the reference that have no name here: the one that is the same, as is shown below."""


def _number(actual: Tensor, expected: float, tolerance: str, what: str) -> None:
    compare(actual, torch.tensor(expected, dtype=actual.dtype), tolerance, what)


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    assert found, f"'{text}' is not of the form {pattern}"
    return found


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def _unknown(case: str) -> None:
    pytest.fail(f"no check is written for the entry '{case}'", pytrace=False)


# Adversarial losses of BasicSR


def _entries_with_gradients(fixture: Fixture) -> Iterable[str]:
    return sorted({*fixture.json["values"], *(name.rpartition(".")[0] for name in fixture.outputs)})


@handles("golden_gan_losses_basicsr*", cases=_entries_with_gradients)
def check_basicsr_gan(fixture: Fixture, case: str) -> None:
    shape, kind = case.split(".", 1)
    real, fake = fixture.tensors[f"in.real_{shape}"], fixture.tensors[f"in.fake_{shape}"]
    expected = dict(fixture.json["values"].get(case, {}))
    gradients = {name.rpartition(".")[2]: name for name in fixture.outputs if name.startswith(f"{case}.")}
    weight = float(_match(r"weight\s+(\d*\.?\d+(?:e-?\d+)?)", f"{list(expected)} {fixture.json['description']}")[1])
    if kind == "esrgan_relativistic(vanilla)":
        kind = "esrgan"
        half_real, half_fake = expected.pop("l_g_real"), expected.pop("l_g_fake")
        expected["g_loss"] = expected.pop("l_g_gan=(l_g_real+l_g_fake)/2")
        assert math.isclose((half_real + half_fake) / 2, expected["g_loss"], rel_tol=1e-6)
        expected["d_real"], expected["d_fake"] = expected.pop("l_d_real(x0.5)"), expected.pop("l_d_fake(x0.5)")
    real_leaf, fake_leaf = _leaf(real), _leaf(fake)
    for_generator = weight * generator_loss(kind, fake_leaf, real)
    real_term, fake_term = discriminator_terms(kind, real_leaf, fake)
    found = {"g_loss": for_generator, "d_real": real_term, "d_fake": fake_term}
    for name, value in expected.items():
        assert name.split("(")[0] in found, f"no check is written for the entry '{case}: {name}'"
        _number(found[name.split("(")[0]], value, "float64", name)
    of = {"dG_dfake": (for_generator, fake_leaf), "dD_dreal": (real_term, real_leaf)}
    for name, output in gradients.items():
        assert name in of, f"no check is written for the tensor 'out.{output}'"
        compare(input_gradient(*of[name]), fixture.tensors[f"out.{output}"], "gradient", name)


# Losses of DL-Art-School


def _numeric_entries(fixture: Fixture) -> Iterable[str]:
    """Entries with at least one number: the others say only what the reference raises."""
    for name, value in fixture.json["values"].items():
        if not isinstance(value, dict) or any(not isinstance(number, str) for number in value.values()):
            yield name
    yield from (f"out.{name}" for name in fixture.outputs)


@handles("golden_gan_losses_dlas*", cases=_numeric_entries)
def check_dlas_losses(fixture: Fixture, case: str) -> None:
    expected = fixture.json["values"].get(case)
    if isinstance(expected, dict):
        expected = {name: value for name, value in expected.items() if not isinstance(value, str)}
    for prefix, check in _DLAS_CHECKS.items():
        if re.match(prefix, case):
            return check(fixture, case, expected)
    return _unknown(case)


def _check_criterion(fixture: Fixture, case: str, expected: dict[str, float]) -> None:
    shape, _, kind = case.split(".")
    real, fake = fixture.tensors[f"in.real_{shape}"], fixture.tensors[f"in.fake_{shape}"]
    if kind == "max_spread":  # of one tensor alone: its distance from zero
        terms = [discriminator_terms(kind, tensor, torch.zeros_like(tensor))[0] for tensor in (real, fake)]
    else:
        terms = list(discriminator_terms(kind, real, fake))
    assert expected.keys() == {"real", "fake"}
    _number(terms[0], expected["real"], "float64", "real")
    _number(terms[1], expected["fake"], "float64", "fake")


def _check_logits(fixture: Fixture, case: str, expected: dict[str, float]) -> None:
    shape, kind = case.split(".")
    kind = LEFT_OUT.get(kind, kind)
    state = {"real": fixture.tensors[f"in.real_{shape}"], "fake": fixture.tensors[f"in.fake_{shape}"]}
    context = Context({"judge": nn.Identity()}, trained=["judge"])
    for name, value in expected.items():
        options = {"type": name, "gan_type": kind, "real": "real", "fake": "fake"}
        loss, _ = create_loss(options | ({"discriminator": "judge"} if name == "generator_gan" else {}))(state, context)
        _number(loss, value, "float64", name)


def _check_penalty_on_real(fixture: Fixture, case: str, expected: float) -> None:
    judge = _toy_discriminator(fixture, fixture.json["toy_discriminator"])
    images = _leaf(fixture.tensors["in.img_real"])
    weight = float(_match(r"weight=([\d.]+)", case)[1])
    _number(weight * unit_gradient_penalty(judge(images), images), expected, "output", case)


def _check_discriminator_with_penalty(fixture: Fixture, case: str, expected: float) -> None:
    judge = _toy_discriminator(fixture, fixture.json["toy_discriminator"])
    kind = _match(r"discriminator_gan (\w+) \+ gradient_penalty", case)[1]
    options = {"type": "discriminator_gan", "gan_type": kind, "real": "in.img_real", "fake": "in.img_fake"}
    loss, _ = create_loss(options | {"gradient_penalty": True})(fixture.tensors, Context({"judge": judge}, trained=["judge"]))
    _number(loss, expected, "output", case)


def _check_stylegan2_divergence(fixture: Fixture, case: str, expected: dict[str, float]) -> None:
    judge = _toy_discriminator(fixture, fixture.json["toy_discriminator"])
    context = Context({"judge": judge}, step=1)
    options = {"type": case, "discriminator": "judge", "real": "in.img_real", "fake": "in.img_fake"}
    for name, value in expected.items():
        side = _match(r"(gen|disc) (logistic|\(logistic false\))", name)
        options |= {"gen_loss": side[1] == "gen", "logistic": "false" not in side[2]}
        _number(create_loss(options)(fixture.tensors, context)[0], value, "output", name)


def _pix(fixture: Fixture, criterion: str) -> tuple[Tensor, Tensor]:
    fake = _leaf(fixture.tensors["in.pix_fake"])
    loss = create_loss({"type": "pix", "criterion": criterion, "real": "real", "fake": "fake"})
    return loss({"real": fixture.tensors["in.pix_real"], "fake": fake}, Context({})), fake


def _check_pix(fixture: Fixture, case: str, expected: float) -> None:
    _number(_pix(fixture, case.split(".")[1])[0], expected, "float64", case)


def _check_sr_pix(fixture: Fixture, case: str, expected: float | None) -> None:
    """`sr_pix` is left out: its weighting cancels, so that it is `pix` with `l2` in value and gradient, as shown here."""
    loss, fake = _pix(fixture, "l2")
    gradient = input_gradient(loss, fake)
    if case == "out.sr_pix.grad_fake":
        compare(gradient, fixture.tensors[case], "gradient", case)
    elif "max|plain mse grad|" in case:
        _number(gradient.abs().max(), expected, "gradient", case)
    elif "max|grad - grad of plain mse|" in case:
        assert expected < 1e-8
    else:
        _number(loss, expected, "float64", case)


def _check_direct(fixture: Fixture, case: str, expected: float) -> None:
    options = {"type": "direct", "key": "in.pix_fake", "inverted": ".inverted" in case}
    step = 0
    if "annealing" in case:
        found = _match(r"annealing_termination_step=(\d+) at step (\d+)", case)
        options["annealing_termination_step"], step = int(found[1]), int(found[2])
    _number(create_loss(options)(fixture.tensors, Context({}, step=step)), expected, "float64", case)


_DLAS_CHECKS: dict[str, Callable[[Fixture, str, object], None]] = {
    r"\w+\.criterion\.": _check_criterion,
    r"gradient_penalty\(": _check_penalty_on_real,
    r"discriminator_gan \w+ \+ gradient_penalty$": _check_discriminator_with_penalty,
    r"stylegan2_divergence$": _check_stylegan2_divergence,
    r"pix\.": _check_pix,
    r"(out\.)?sr_pix[.(:]": _check_sr_pix,
    r"direct(\.|$)": _check_direct,
    r"\w+\.\w+$": _check_logits,
}


def _toy_discriminator(fixture: Fixture, specification: dict) -> nn.Module:
    """Convolution, softplus, linear; sizes as the weights have them."""
    weights = fixture.build_weights(specification["weights"])
    first, second = weights["0.weight"], weights["3.weight"]
    network = nn.Sequential(
        nn.Conv2d(first.shape[1], first.shape[0], first.shape[2:], padding="same"),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(second.shape[1], second.shape[0]),
    )
    network.load_state_dict(weights)
    return network


# Penalties


@handles(
    "golden_penalties_basicsr*", cases=lambda fixture: [*fixture.json["values"], *(f"out.{name}" for name in fixture.outputs)]
)
def check_penalty(fixture: Fixture, case: str) -> None:
    tensors = fixture.tensors
    expected = fixture.json["values"].get(case)
    if case.startswith("g_path_regularize"):
        return _check_path_length(fixture, case, expected)
    judge = _toy_discriminator(fixture, fixture.json["discriminator"])
    real = _leaf(tensors["in.real"])
    if case == "out.grad_real":
        return compare(input_gradient(judge(real), real), tensors[case], "gradient", case)
    if case.startswith("r1 "):
        return _number(r1_penalty(judge(real), real), expected, "output", case)
    if "gradient_penalty_loss(" in case:
        weight = _match(r"weight=(None|in\.\w+)\)", case)[1]
        mask = None if weight == "None" else tensors[weight]
        found = interpolate_gradient_penalty(judge, real, tensors["in.fake"], tensors["in.alpha"], mask, norm="pixel")
        return _number(found, expected, "output", case)
    return _unknown(case)


def _check_path_length(fixture: Fixture, case: str, expected: dict[str, float]) -> None:
    weights = fixture.build_weights(fixture.json["generator"]["weights"])
    noise = fixture.tensors["in.pl_noise"]
    latents = _leaf(fixture.tensors["in.latents"])
    images = F.linear(latents, weights["weight"], weights["bias"]).tanh().sum(1).reshape(noise.shape)
    settings = _match(r"mean_path_length=([\d.]+), decay=([\d.]+)", case)
    penalty, lengths, mean = path_length_penalty(images, latents, noise, float(settings[1]), float(settings[2]))
    found = {"penalty": penalty, "mean_path_lengths": lengths.mean(), "new_path_mean": mean}
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        _number(found[name], value, "output", name)


# Metrics


@handles(
    "golden_metrics_basicsr*", cases=lambda fixture: [*fixture.json["values"], *(f"out.{name}" for name in fixture.outputs)]
)
def check_metrics(fixture: Fixture, case: str) -> None:
    first, second = (fixture.tensors[f"in.img_bgr_{which}"].permute(2, 0, 1).flip(0).float() / 255 for which in "ab")
    if case == "out.y_channel_a":
        return compare(rgb_to_y(first) * 255, fixture.tensors[case].permute(2, 0, 1), "output", case)
    if case == "out.rgb2ycbcr_full_a":
        return compare(rgb_to_ycbcr(first), fixture.tensors[case].permute(2, 0, 1), "output", case)
    crop, luma = 0, False
    if case == "identical":
        second = first
    elif case.startswith("gray2d."):
        crop = int(_match(r"^gray2d\.crop(\d+)$", case)[1])
        first, second = first[-1:], second[-1:]  # the first channel in BGR order
    else:
        settings = _match(r"^crop(\d+)\.(RGB|Y)$", case)
        crop, luma = int(settings[1]), settings[2] == "Y"
    decibels = psnr(first, second, crop, luma)
    # The variant for tensors adds 1e-8 to the squared error on the scale 0..1. The project has one PSNR only, without it.
    softened = -10 * torch.log10(10 ** (-decibels / 10) + 1e-8)
    similarity = ssim(first, second, crop, luma)
    found = {"psnr": decibels, "psnr_pt": softened, "ssim": similarity, "ssim_pt": similarity}
    for name, value in fixture.json["values"][case].items():
        assert name in found, f"no check is written for the entry '{case}: {name}'"
        _number(found[name], float(value), "float64", name)
    return None


# Resizing


@handles("golden_imresize_basicsr*", cases=lambda fixture: fixture.outputs)
def check_imresize(fixture: Fixture, case: str) -> None:
    expected = fixture.tensors[f"out.{case}"]
    name, operation = case.split(".", 1)
    settings = _match(r"^(down|up)(\d+(?:p\d+)?)(|_noantialias|_float|_uint8)$", operation)
    number, variant = float(settings[2].replace("p", ".")), settings[3]
    scale = 1 / number if settings[1] == "down" and number > 1 else number
    if f"in.{name}_hwc" in fixture.tensors:
        image = fixture.tensors[f"in.{name}_hwc"].permute(2, 0, 1).float() / 255
        expected = expected.permute(2, 0, 1)
    else:
        image = fixture.tensors[f"in.{name}"]
    found = imresize(image, scale, antialias=variant != "_noantialias")
    if variant == "_uint8":
        compare((found.clamp(0, 1) * 255).round().to(torch.uint8), expected, "exact", case)
    else:
        compare(found, expected, "output", case)
