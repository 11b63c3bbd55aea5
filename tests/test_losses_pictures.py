"""Losses between two pictures: equal to other libraries' numbers and to closed forms, smooth, in float32 and for any batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.layers.resize import imresize
from dlas.layers.ssim import multiscale_similarity
from dlas.losses import create_loss
from dlas.losses.artifacts import artifact_map
from dlas.losses.contextual import contextual_distance
from oracles.inputs import pair, picture

ORACLES = json.loads((Path(__file__).parent / "oracles/values.json").read_text())

# Every loss over two pictures that needs no weights, with options under which 48x48 pixels are enough.
LOSSES = {
    "ssim": {},
    "ms_ssim": {"scales": 3},
    "fft": {},
    "focal_frequency": {},
    "ldl": {},
    "gradient": {},
    "luma": {},
    "color": {},
    "average": {},
    "blurred_color": {"sigma": 2.0},
}


def compute(kind: str, real: Tensor, fake: Tensor, **options) -> Tensor:
    return create_loss({"type": kind, "real": "hq", "fake": "gen"} | options)({"hq": real, "gen": fake}, Context({}))


# ----------------------------------------------------------------------------------------------------- other libraries' numbers


def test_ssim_and_ms_ssim_are_those_of_other_libraries():
    real, fake = pair()
    expected = ORACLES["similarity"]
    assert compute("ssim", real, fake).item() == pytest.approx(1 - sum(expected["ssim"]) / 2, abs=1e-5)
    assert expected["ssim"] == pytest.approx(expected["ssim_piq"], abs=1e-5)
    assert compute("ms_ssim", real, fake).item() == pytest.approx(1 - sum(expected["ms_ssim"]) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("alpha_2", {"alpha": 2.0}),
        ("patches", {"patch_factor": 4}),
        ("average", {"ave_spectrum": True}),
        ("log", {"log_matrix": True}),
        ("batch", {"batch_matrix": True}),
    ],
)
def test_focal_frequency_is_that_of_its_authors(name, options):
    value = compute("focal_frequency", *pair(48, 64), **options)
    assert value.item() == pytest.approx(ORACLES["focal_frequency"][name], rel=1e-4)


def test_total_variation_and_sobel_are_those_of_kornia():
    real, fake = pair()
    count, channels, height, width = fake.shape
    tv = create_loss({"type": "tv", "fake": "gen"})
    rows, columns = fake.diff(dim=2).abs(), fake.diff(dim=3).abs()
    assert (rows.sum() + columns.sum()).item() == pytest.approx(np.sum(ORACLES["similarity"]["tv"]), rel=1e-5)
    expected = rows.sum() / (count * channels * (height - 1) * width) + columns.sum() / (
        count * channels * height * (width - 1)
    )
    torch.testing.assert_close(tv({"gen": fake}, Context({})), expected)
    value = compute("gradient", real[..., :90, :120], fake[..., :90, :120])
    assert value.item() == pytest.approx(ORACLES["similarity"]["sobel"], rel=1e-4)


def test_ldl_is_that_of_basicsr():
    real, fake = pair(40, 56)
    reference = 0.7 * fake + 0.3 * real
    reference[:, :, :20] = fake[:, :, :20] * 1.5 - 0.5 * real[:, :, :20]
    options = {"type": "ldl", "real": "hq", "fake": "gen", "reference": "ema"}
    state = {"hq": real, "gen": fake.requires_grad_(), "ema": reference}
    for learn in (False, True):
        value = create_loss(options | {"weights_learn": learn})(state, Context({}))
        assert value.item() == pytest.approx(ORACLES["basicsr"]["ldl"], rel=1e-4)
    weights = artifact_map(real, fake.detach(), reference)
    assert (weights[:, :, :20] > 0).float().mean() < 0.01  # there the reference is further from the truth
    assert (weights[:, :, 20:] > 0).float().mean() > 0.99


# ----------------------------------------------------------------------------------------------------------------- closed forms


def test_fft_of_one_frequency():
    places = torch.arange(16) * (2 * math.pi * 3 / 16)
    wave = (0.5 * torch.cos(places)).expand(1, 1, 8, 16)
    zero = torch.zeros_like(wave)
    # A cosine of amplitude a has two entries a H W / 2 in its spectrum, both real.
    assert compute("fft", zero, wave).item() == pytest.approx(2 * 0.5 * 128 / 2 / (2 * 128), rel=1e-5)
    assert compute("fft", zero, wave, norm="ortho", criterion="l2").item() == pytest.approx(wave.square().sum().item() / 256)


def test_color_losses_of_flat_pictures():
    grey, red = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.5)
    red[:, 0] += 0.1
    assert compute("luma", grey, red).item() == pytest.approx(0.1 * 65.481 / 255, rel=1e-4)
    assert compute("color", grey, red).item() == pytest.approx(0.1 * (37.797 + 112.0) / 2 / 255, rel=1e-4)
    for kind in ("average", "blurred_color"):
        assert compute(kind, grey, red).item() == pytest.approx(0.1 / 3, rel=1e-4)
        assert compute(kind, grey, red, criterion="l2").item() == pytest.approx(0.01 / 3, rel=1e-4)
    assert compute("color", grey, grey + 0.1).item() == pytest.approx(0, abs=1e-6)
    stripes = torch.tensor([-0.1, 0.1]).repeat(16).expand(1, 3, 32, 32)
    assert compute("average", grey, grey + stripes, scale=2).item() == pytest.approx(0, abs=1e-6)
    assert compute("blurred_color", grey, grey + stripes).item() < 0.002
    assert compute("luma", grey, grey + stripes).item() > 0.05


def test_gradient_of_a_ramp():
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)
    flat = torch.zeros(1, 1, 12, 12)
    inner = 10 / 12 + 2 / 12 * 0.5  # half as steep in the two columns at the border, which is continued by its edge
    assert compute("gradient", flat, ramp).item() == pytest.approx(inner / 2)
    assert compute("gradient", flat, ramp, magnitude=True).item() == pytest.approx(inner - 1e-3, rel=1e-4)
    turned = ramp.mT
    assert compute("gradient", turned, ramp, magnitude=True).item() == pytest.approx(
        (ramp_lengths(ramp) - ramp_lengths(turned)).abs().mean().item(), rel=1e-4
    )


def ramp_lengths(image: Tensor) -> Tensor:
    padded = F.pad(image, [1, 1, 1, 1], mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (across.square() + down.square() + 1e-6).sqrt()


def test_downscaled_compares_with_the_input():
    _, fake = pair(48, 64)
    small = imresize(fake, 0.25)
    loss = create_loss({"type": "downscaled", "real": "lq", "fake": "gen"})
    assert loss({"lq": small, "gen": fake}, Context({})).item() == pytest.approx(0, abs=1e-6)
    assert loss({"lq": small + 0.1, "gen": fake}, Context({})).item() == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ValueError, match="one factor must fit both sides"):
        loss({"lq": small[..., :-1], "gen": fake}, Context({}))


def test_contextual_by_its_definition():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, 4, generator=draw), torch.randn(2, 5, 3, 4, generator=draw)
    expected = []
    for one, other in zip(x.flatten(2), y.flatten(2), strict=True):
        centre = other.mean(1, keepdim=True)
        one, other = one - centre, other - centre
        d = torch.stack([1 - F.cosine_similarity(one[:, i, None], other, dim=0) for i in range(12)])
        w = torch.exp((1 - d / (d.min(1, keepdim=True).values + 1e-5)) / 0.5)
        cx = w / w.sum(1, keepdim=True)
        expected.append(-torch.log(cx.max(0).values.mean()))
    torch.testing.assert_close(contextual_distance(x, y, 0.5), torch.stack(expected).mean())
    assert contextual_distance(x, x, 0.1) < contextual_distance(x, y, 0.1)
    shuffled = x.flatten(2)[..., torch.randperm(12, generator=draw)].view_as(x)
    torch.testing.assert_close(contextual_distance(shuffled, y, 0.5), contextual_distance(x, y, 0.5))


def test_ms_ssim_with_an_odd_side_lets_the_last_pixel_stand_for_itself():
    real, fake = pair(177, 183)
    # The authors halve by the mean of 2x2 pixels of a picture that is continued by its mirror image, edge repeated.
    even = [F.pad(each, [0, 1, 0, 1], mode="replicate") for each in (real, fake)]
    for own, continued in zip((real, fake), even, strict=True):
        torch.testing.assert_close(F.avg_pool2d(own, 2, ceil_mode=True), F.avg_pool2d(continued, 2))
    assert multiscale_similarity(fake, real, 1.0).shape == (2, 3)


def test_fewer_scales_have_exponents_that_sum_to_one():
    real, fake = pair(48, 64)
    assert compute("ms_ssim", real, fake, scales=1).item() == pytest.approx(compute("ssim", real, fake).item(), abs=1e-5)
    with pytest.raises(ValueError, match="at least 161x161 pixels, not 48x64"):
        compute("ms_ssim", real, fake)


# ------------------------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize(("kind", "options"), LOSSES.items())
def test_equal_pictures_cost_nothing_and_give_finite_gradients(kind, options):
    real = picture(1, 48, 48)
    fake = real.clone().requires_grad_()
    value = compute(kind, real, fake, **options)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert fake.grad.isfinite().all()
    worse = pair(48, 48)[1]
    assert compute(kind, real, worse, **options) > 1e-5


@pytest.mark.parametrize(("kind", "options"), LOSSES.items())
def test_computed_in_float32_under_autocast_and_from_half(kind, options):
    real, fake = (each.bfloat16().float() for each in pair(48, 48))
    expected = compute(kind, real, fake, **options)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute(kind, real, fake.bfloat16(), **options)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "options"), LOSSES.items())
def test_the_mean_over_a_batch_is_the_mean_over_its_parts(kind, options):
    real, fake = pair(48, 48)
    whole = compute(kind, real, fake, **options)
    parts = [compute(kind, real[i : i + 1], fake[i : i + 1], **options) for i in range(2)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ssim", {}),
        ("fft", {"criterion": "l2"}),
        ("gradient", {"magnitude": True, "criterion": "l2"}),
        ("color", {"criterion": "l2", "scale": 2}),
        ("blurred_color", {"criterion": "l2", "sigma": 1.0}),
        ("ldl", {"weights_learn": True}),
        ("ms_ssim", {"scales": 1}),
    ],
)
def test_gradients_are_those_of_finite_differences(kind, options):
    """In float32: the slope along the gradient itself is its length."""
    real, fake = pair(32, 32)
    fake = fake.requires_grad_()
    value = compute(kind, real, fake, **options)
    (gradient,) = torch.autograd.grad(value, fake)
    direction = gradient / gradient.norm()
    step = 2e-2
    with torch.no_grad():
        ahead, behind = (compute(kind, real, fake + sign * step * direction, **options) for sign in (1, -1))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(gradient.norm().item(), rel=2e-2)


@pytest.mark.parametrize("kind", [*LOSSES, "tv"])
def test_shapes_that_do_not_fit_are_explained(kind):
    options = {"type": kind, "real": "hq", "fake": "gen"} if kind != "tv" else {"type": kind, "fake": "gen"}
    loss = create_loss(options)
    state = {"hq": torch.rand(1, 3, 48, 48), "gen": torch.rand(1, 3, 48, 32)}
    with pytest.raises(ValueError, match="'gen'"):
        loss(state if kind != "tv" else {"gen": torch.rand(3, 8)}, Context({}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "gradient", "criterion": "l3"}, "gradient: no criterion is called 'l3'"),
        ({"type": "ldl", "window": 4}, "window must be odd"),
        ({"type": "ms_ssim", "scales": 6}, "scales must be 1 to 5"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ConfigurationError, match=message):
        create_loss({"real": "hq", "fake": "gen"} | options)


def test_a_patch_factor_must_divide_the_picture():
    with pytest.raises(ConfigurationError, match="does not divide 48x64"):
        compute("focal_frequency", *pair(48, 64), patch_factor=5)
