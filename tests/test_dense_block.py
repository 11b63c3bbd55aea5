"""Dense blocks that keep little, against the plain formulation, and convolutions of enlargements that are never made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs.rrdb import RRDBNet
from dlas.layers.dense_block import dense_block, lean_dense_block, training_plainly
from dlas.layers.doubled_conv import convolve_doubled
from dlas.layers.rrdb import RRDB, ResidualDenseBlock

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def block_and_input(layout=torch.contiguous_format, dtype=torch.float32, size=(2, 6, 7, 5)):
    torch.manual_seed(0)
    block = ResidualDenseBlock(size[1], 4, lean=True)
    for parameter in block.parameters():  # biases too, and results of either sign
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(size).to(dtype).contiguous(memory_format=layout).requires_grad_()
    return block.to(dtype=dtype, memory_format=layout), x


def parameters_of(block: ResidualDenseBlock) -> tuple[list[Tensor], list[Tensor]]:
    layers = [block.conv1, block.conv2, block.conv3, block.conv4, block.conv5]
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


@pytest.mark.parametrize("size", [(2, 6, 7, 5), (1, 8, 4, 9)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_result_and_gradients_are_those_of_the_plain_block(layout, dtype, size):
    block, x = block_and_input(layout, dtype, size)
    weights, biases = parameters_of(block)
    results = [each(x, weights, biases, 0.2, 0.2) for each in (lean_dense_block, dense_block)]
    assert torch.equal(*results)
    gradient = torch.randn_like(results[0])
    lean, plain = (torch.autograd.grad(result, [x, *weights, *biases], gradient) for result in results)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for ours, theirs in zip(lean, plain, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("wanted", [("x",), ("weights",), ("conv3.bias",), ("x", "conv5.weight")])
def test_only_gradients_that_are_needed_are_computed(wanted):
    block, x = block_and_input(dtype=torch.float64)
    x.requires_grad_("x" in wanted)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name in wanted or ("weights" in wanted and name.endswith("weight")))
    inputs = [x, *block.parameters()]
    weights, biases = parameters_of(block)
    given = []
    for each in (lean_dense_block, dense_block):
        each(x, weights, biases, 0.2, 0.2).square().sum().backward()
        given.append([tensor.grad for tensor in inputs])
        for tensor in inputs:
            tensor.grad = None
    for tensor, ours, theirs in zip(inputs, *given, strict=True):
        assert (ours is None) == (theirs is None) == (not tensor.requires_grad)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients():
    block, x = block_and_input(dtype=torch.float64, size=(1, 2, 3, 4))
    weights, biases = parameters_of(block)
    second = []
    for each in (lean_dense_block, dense_block):
        # The input is itself a function of something, as within a network.
        result = each(x * x, weights, biases, 0.2, 0.2)
        (first,) = torch.autograd.grad(result.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), [x, *weights], allow_unused=True))
    for ours, theirs in zip(*second, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_weights_are_cast_and_get_their_own_gradients():
    block, x = block_and_input()
    weights, biases = parameters_of(block)
    given = []
    for each in (lean_dense_block, dense_block):
        with torch.autocast("cpu", torch.bfloat16):
            result = each(x.bfloat16(), weights, biases, 0.2, 0.2)
        assert result.dtype == torch.bfloat16
        given.append([result, *torch.autograd.grad(result.float().square().sum(), [x, *weights, *biases])])
    for ours, theirs in zip(*given, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= 3e-2 * theirs.abs().max()


def held_channels(block: nn.Module, x: Tensor) -> float:
    """Channels of the input's size that are kept for the backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        result = block(x)
    result.sum()
    return sum(held.values()) / (x[:, :1].nbytes)


def test_input_and_results_alone_are_kept():
    block, x = block_and_input(size=(1, 64, 6, 6))
    assert held_channels(block, x) == 64 + 4 * 4
    block.lean = False
    assert held_channels(block, x) > 4 * (64 + 4 * 4)


def test_hooks_and_other_layers_are_called():
    block, x = block_and_input()
    assert training_plainly(block.conv1, block.conv5)
    seen = []
    handle = block.conv3.register_forward_hook(lambda *_: seen.append(1))
    with_hook = block(x)
    handle.remove()
    assert seen == [1]
    assert torch.equal(with_hook, block(x))
    block.conv2 = nn.Sequential(block.conv2, nn.Identity())
    assert not training_plainly(block.conv1, block.conv2)
    assert torch.equal(with_hook, block(x))
    with torch.no_grad():
        assert not training_plainly(block.conv1)


def test_with_recomputation_the_gradients_are_the_same():
    torch.manual_seed(0)
    net, x = RRDBNet(nf=8, nb=2, gc=4, lean=True).train(), torch.rand(1, 3, 6, 5)
    given = []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        given.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolution_of_the_enlarged(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    ours = convolve_doubled(x, weight, bias)
    torch.testing.assert_close(ours, plain)
    gradient = torch.randn_like(plain)
    for found, expected in zip(*(torch.autograd.grad(y, [x, weight, bias], gradient) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolution_of_the_enlarged_in_bfloat16_is_as_exact_as_enlarging_first(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 32, 8, 6).contiguous(memory_format=layout).requires_grad_()
    conv = nn.Conv2d(32, 32, 3, padding=1)
    given = [x, conv.weight, conv.bias]

    def plain(x, weight, bias):
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)

    def results(convolve, tensors, **autocast):
        with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
            y = convolve(*tensors)
        return [y.double(), *(each.double() for each in torch.autograd.grad(y.float().square().mean(), tensors))]

    exact = results(plain, [each.detach().double().requires_grad_() for each in given], enabled=False)
    for ours, usual, truth in zip(results(convolve_doubled, given), results(plain, given), exact, strict=True):
        assert (ours - truth).norm() < 1.2 * (usual - truth).norm()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_network_in_training_gives_what_it_gives_without_gradients(scale):
    torch.manual_seed(0)
    net, x = RRDBNet(nf=8, nb=1, gc=4, scale=scale, lean=True), torch.rand(1, 3, 6, 4)
    trained = net(x)
    with torch.no_grad():
        torch.testing.assert_close(trained, net(x), rtol=1e-5, atol=1e-6)


def test_blocks_can_be_compiled():
    torch._dynamo.reset()
    torch.manual_seed(0)
    block, x = RRDB(6, 4, lean=True), torch.randn(1, 6, 5, 4, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))
    (ours,), (theirs,) = (torch.autograd.grad(each(x).square().sum(), x) for each in (compiled, block))
    torch.testing.assert_close(ours, theirs)
