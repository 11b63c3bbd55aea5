"""3x3 convolutions of nearest-neighbour enlargements: equal to enlarging first, also in their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dlas.layers.enlarged_conv import add_convolved, differences, weights_of
from dlas.layers.pointwise import pointwise


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_is_the_convolution_of_the_enlarged(factor, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(2, 4, 2 * factor, 5 * factor, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = start + F.conv2d(F.interpolate(x, scale_factor=float(factor), mode="nearest"), weight, padding=1)
    made = add_convolved(1.0 * start, differences(x), weights_of(weight))
    torch.testing.assert_close(made, expected)
    given = (start, x, weight)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), given) for each in (made, expected)))


def test_in_float32_it_is_as_exact_as_enlarging_first():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 24, 24), torch.randn(8, 64, 3, 3)
    enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest")
    exact = F.conv2d(enlarged.double(), weight.double(), padding=1)
    made = add_convolved(torch.zeros(exact.shape), differences(x), weights_of(weight))
    error, usual = (made - exact).abs().max(), (F.conv2d(enlarged, weight, padding=1) - exact).abs().max()
    assert error < 4 * usual
    assert error / exact.std() < 2e-6


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 64, 24, 24), (2, 6, 1, 1)])
def test_a_pointwise_convolution_is_a_product_of_each_pixel(shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(7, shape[1]), torch.randn(7)
    expected = torch.einsum("bchw,mc->bmhw", x, weight) + bias[:, None, None]
    torch.testing.assert_close(pointwise(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
