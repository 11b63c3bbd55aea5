"""Switched convolutions: one kernel a place, against plain convolutions, and the rules of their gate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dlas.layers.switched import (
    Gate,
    NoisyRouter,
    SwitchedConv2d,
    SwitchNorm,
    balance_loss,
    route_top1,
    switch_balance,
    switched_conv2d,
)
from dlas.layers.switched import grouped as grouped_module
from dlas.layers.switched.gate import drop_switches
from dlas.layers.switched.product import summed_conv2d


def case(kernel=3, stride=1, breadth=4, size=(9, 7), channels=(3, 5), bias="shared", dtype=torch.float64):
    """Input, weight, logits at the size of the output, bias; all with gradients."""
    generator = torch.Generator().manual_seed(0)
    places = [(edge - 1) // stride + 1 for edge in size]
    shapes = [(2, channels[0], *size), (channels[1], channels[0], breadth, kernel, kernel), (2, breadth, *places)]
    if bias != "none":
        shapes.append((channels[1],) if bias == "shared" else (breadth, channels[1]))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def results(function, leaves, stride):
    x, weight, logits, *bias = leaves
    y = function(x, weight, route_top1(torch.softmax(logits, dim=1)), *(bias or [None]), stride, weight.shape[-1] // 2)
    gradients = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), leaves)
    return y, *gradients


@pytest.mark.parametrize("bias", ["shared", "each", "none"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 2), (7, 1), (3, 4)])
def test_places_grouped_by_kernel_give_the_sum_written_out(kernel, stride, bias, monkeypatch):
    monkeypatch.setattr(grouped_module, "PLACES_AT_ONCE", 6)  # groups are cut too, and filled up
    monkeypatch.setattr(grouped_module, "PLACES_ALIKE", 3)
    leaves = case(kernel, stride, bias=bias)
    for ours, expected in zip(
        results(grouped_module.grouped_conv2d, leaves, stride), results(summed_conv2d, leaves, stride), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("onednn", [True, False])
def test_places_are_grouped_in_single_precision_as_in_double(onednn):
    leaves = case()
    single = [leaf.detach().float().requires_grad_() for leaf in leaves]
    with torch.backends.mkldnn.flags(enabled=onednn):
        found = results(grouped_module.grouped_conv2d, single, 1)
    for ours, expected in zip(found, results(summed_conv2d, leaves, 1), strict=True):
        torch.testing.assert_close(ours, expected.float())


def test_an_unused_kernel_has_no_gradient_and_one_kernel_is_a_convolution():
    x, weight, logits, bias = case()
    logits = torch.zeros_like(logits)
    logits[:, 2] = 1
    shares = route_top1(torch.softmax(logits, dim=1))
    y = switched_conv2d(x, weight, shares, bias, padding=1, hard=True)
    torch.testing.assert_close(y, F.conv2d(x, weight[:, :, 2], bias, padding=1))
    (gradient,) = torch.autograd.grad(y.sum(), weight)
    assert gradient[:, :, 2].any()
    assert not gradient[:, :, [0, 1, 3]].any()


@pytest.mark.parametrize("hard", [False, True])
def test_equal_kernels_are_a_plain_convolution_whatever_is_chosen(hard):
    layer = SwitchedConv2d(3, 5, 3, 4, stride=2, hard=hard)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:, :, :1].expand_as(layer.weight))
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight[:, :, 0], layer.bias, stride=2, padding=1))


def test_grouped_places_have_the_gradient_of_finite_differences():
    x, weight, logits, bias = case(size=(4, 3), channels=(2, 2), breadth=3)
    chosen = route_top1(torch.softmax(logits, dim=1)).detach()
    assert torch.autograd.gradcheck(
        lambda *leaves: switched_conv2d(leaves[0], leaves[1], chosen, leaves[2], padding=1, hard=True), (x, weight, bias)
    )


def test_under_autocast_products_are_in_its_type():
    layer = SwitchedConv2d(3, 5, 3, 4)
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_the_route_passes_the_gradient_to_the_winner_divided_by_its_share():
    shares = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1).requires_grad_()
    chosen = route_top1(shares)
    assert chosen.flatten().tolist() == [0, 1, 0]
    chosen.backward(torch.tensor([3.0, 2.0, 1.0]).view(1, 3, 1, 1))
    assert shares.grad.flatten().tolist() == [0, 4, 0]


def test_the_norm_acts_when_its_memory_is_full_and_rests_in_evaluation():
    norm = SwitchNorm(2, window=2, form="rescaled")
    shares = torch.tensor([0.8, 0.2]).view(1, 2, 1, 1)
    assert torch.equal(norm(shares), shares)
    torch.testing.assert_close(norm(shares).flatten(), torch.tensor([0.5, 0.5]))
    before = norm.accumulator.clone()
    norm.eval()(shares.flip(1))
    assert torch.equal(norm.accumulator, before)


def test_dropout_of_switches():
    torch.manual_seed(0)
    logits = torch.randn(500, 3, 1, 1) + 10
    zeroed, excluded = drop_switches(logits, 0.6, "zero"), drop_switches(logits, 0.6, "exclude")
    for dropped in (zeroed == 0, excluded.isinf()):
        assert not dropped.all(dim=1).any()
        assert dropped.float().mean().item() == pytest.approx(0.6 - 0.6**3, abs=0.04)  # all three out counts as none
    gate = Gate(3, hard=False, dropout=0.6)
    torch.testing.assert_close(gate.eval()(logits), torch.softmax(logits, dim=1))


def test_a_high_temperature_mixes_and_a_low_one_chooses():
    gate = Gate(2, hard=False)
    logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    shares = {}
    for temperature in (0.01, 100):
        gate.temperature = temperature
        shares[temperature] = gate(logits)[0, 0].item()
    assert shares == {0.01: pytest.approx(1), 100: pytest.approx(0.5, abs=0.01)}


def test_selectors_from_outside_and_of_other_sizes():
    layer = SwitchedConv2d(3, 3, 3, 2, selector="outside")
    x = torch.randn(1, 3, 4, 4)
    logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    big, small = (torch.stack([each, -each])[None] for each in (logits, logits[::2, ::2]))
    assert torch.equal(layer(x, small), layer(x, big))
    with pytest.raises(ValueError, match=r"call it with \(x, logits\)"):
        layer(x)


@pytest.mark.parametrize("options", [{"bias": "no"}, {"selector": "no"}, {"norm": "no"}, {"dropout": 1}, {"temperature": 0}])
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="got"):
        SwitchedConv2d(1, 1, 3, 2, **options)
    with pytest.raises(ValueError, match="odd"):
        SwitchedConv2d(1, 1, 2, 2)


def test_balance_is_least_where_all_switches_are_used_alike():
    even = torch.eye(4).view(1, 4, 4, 1)
    assert switch_balance(even, even) == pytest.approx(1)
    one = torch.zeros_like(even)
    one[:, 1] = 1
    assert switch_balance(one, one) == pytest.approx(4)


def test_the_load_of_the_noisy_router_is_the_probability_of_being_best():
    torch.manual_seed(0)
    router = NoisyRouter(2)
    torch.nn.init.ones_(router.wg)
    logits = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1).expand(-1, -1, 200, 200)
    routed = router(logits)
    torch.testing.assert_close(routed.load.mean(dim=(0, 2, 3)), routed.chosen.mean(dim=(0, 2, 3)), rtol=0, atol=0.01)
    balance_loss(routed, 1.0, 1.0).backward()
    assert router.wnoise.grad.any()
