"""Grouped places on a GPU against the sum over kernels; without a GPU Triton interprets its programs, where it is installed."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from dlas.layers.switched.product import FEWEST_GROUPED, summed_conv2d, switched_conv2d
from test_switched_conv import case, results

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the module is imported

from dlas.layers.switched import grouped_triton

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", ["shared", "each", "none"])
@pytest.mark.parametrize(("kernel", "stride", "channels"), [(1, 1, (3, 5)), (3, 1, (20, 70)), (5, 2, (70, 3))])
def test_tiles_of_places_give_the_sum_written_out(kernel, stride, channels, bias, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(grouped_triton, "PLACES", 16)
    leaves = case(kernel, stride, channels=channels, bias=bias)
    single = [leaf.detach().float().to(device).requires_grad_() for leaf in leaves]
    found, expected = results(grouped_triton.triton_conv2d, single, stride), results(summed_conv2d, leaves, stride)
    for ours, double in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), double.float(), rtol=1e-4, atol=1e-4)


def test_every_place_is_in_one_tile_of_its_kernel():
    chosen = torch.zeros(1, 3, 1, 130)
    chosen[0, 2, 0, :65] = chosen[0, 0, 0, 65:] = 1  # none for kernel 1
    own = grouped_triton.tiles(chosen)
    assert own.starts.tolist() == [0, 65, 65, 130]
    assert list(zip(own.kernel.tolist(), own.first.tolist(), strict=True))[:4] == [(0, 0), (0, 64), (2, 65), (2, 129)]
    assert own.kernel[4:].tolist() == [3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_places_are_grouped_without_waiting_for_the_device():
    def grouped(x, weight, shares, bias, stride, padding):
        return switched_conv2d(x, weight, shares, bias, stride=stride, padding=padding, hard=True)

    leaves = [leaf.detach().float().cuda().requires_grad_() for leaf in case(breadth=FEWEST_GROUPED["cuda"], channels=(32, 48))]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        results(grouped, leaves, 1)  # programs are compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = results(grouped, leaves, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found[0].grad_fn.name() == "_TritonConv2dBackward"
        for ours, expected in zip(found, results(summed_conv2d, leaves, 1), strict=True):
            assert ours.dtype == expected.dtype
            torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
