"""A flow's steps run together: equal to step by step, also rebuilt from their outputs, in memory that steps do not add to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dlas.archs.srflow import SRFlow
from dlas.layers import flow_level
from dlas.layers.flow import ConditionalAffine, FlowStep, linear_log_density
from dlas.layers.flow_level import Condition, Level

CHANNELS, WIDTH = 8, 6


def level(steps: int = 3, lu: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Level, nn.ModuleList]:
    """A transition and steps, all of which do something, and a module that holds them."""
    torch.manual_seed(0)
    made = [FlowStep(CHANNELS, None, lu)]
    made += [FlowStep(CHANNELS, ConditionalAffine(CHANNELS, 7, WIDTH, 1e-4), lu) for _ in range(steps)]
    module = nn.ModuleList(made).to(dtype).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return Level(made), module


def inputs(factor: int, samples: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Condition]:
    fine, coarse = torch.randn(samples, 3, 8, 16, dtype=dtype), torch.randn(samples, 4, 8 // factor, 16 // factor, dtype=dtype)
    x = torch.randn(samples, CHANNELS, 8, 16, dtype=dtype)
    return x, Condition(fine, coarse) if factor > 1 else Condition(torch.cat((fine, coarse), dim=1))


def one_by_one(steps: Level, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
    """Each step alone, its subnets over the whole condition."""
    log_density = linear_log_density(steps.steps, x.shape[2] * x.shape[3])
    for step in steps.steps:
        x, more = step.encode(x, None if step.affine is None else step.affine.seeing(condition.whole()))
        log_density = log_density + more
    return x, log_density


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("at_once", [1, 2**27])
def test_together_is_what_one_by_one_is(factor, at_once, monkeypatch):
    monkeypatch.setattr(flow_level, "AT_ONCE", at_once)
    steps, _ = level()
    x, condition = inputs(factor)
    expected = one_by_one(steps, x, condition)
    torch.testing.assert_close(steps.encode(x, condition), expected)
    with torch.no_grad():
        torch.testing.assert_close(steps.decode(expected[0], condition), x)


def test_pictures_of_one_condition_share_it():
    steps, _ = level()
    x, condition = inputs(2, samples=1)
    several = torch.cat((x, 2 * x, -x))
    together = steps.decode(several, condition)
    torch.testing.assert_close(together, torch.cat([steps.decode(each[None], condition) for each in several]))
    torch.testing.assert_close(steps.encode(together, condition)[0], several)


def gradients(steps: Level, module: nn.Module, memory: flow_level.Memory, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    x, condition = inputs(2, dtype=dtype)
    leaves = [each.requires_grad_() for each in (x, condition.fine, condition.coarse) if each is not None]
    z, log_density = steps.encode(x, condition, memory)
    return list(torch.autograd.grad(z.square().sum() - log_density.sum(), [*leaves, *module.parameters()]))


@pytest.mark.parametrize("memory", ["recompute", "invert"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_rebuilt_activations_give_the_same_gradients(memory, dtype, tolerance):
    steps, module = level(16, dtype=dtype)
    for one, other in zip(gradients(steps, module, memory, dtype), gradients(steps, module, "keep", dtype), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())


def kept_bytes(count: int, memory: flow_level.Memory) -> int:
    """Held for the backward pass, without the weights themselves."""
    steps, module = level(count)
    x, condition = inputs(2)
    held: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = steps.encode(x.requires_grad_(), condition, memory)
    assert result[0].requires_grad
    return sum(held.values())


def test_memory_of_a_rebuilt_level_is_that_of_its_output_whatever_the_number_of_steps():
    x, condition = inputs(2)
    assert condition.coarse is not None
    expected = 8 * (x.numel() + condition.fine.numel() + condition.coarse.numel())
    assert kept_bytes(2, "invert") == kept_bytes(16, "invert") == expected
    assert kept_bytes(16, "keep") > 6 * kept_bytes(2, "keep") > 30 * expected


@pytest.mark.parametrize("memory", ["keep", "recompute", "invert"])
def test_the_first_batch_normalises_in_every_way_of_keeping(memory):
    steps, module = level()
    for name, weight in module.named_parameters():
        if "actnorm" in name:
            nn.init.zeros_(weight)
    expected = copy.deepcopy(module).train()
    x, condition = inputs(2)
    z, _ = one_by_one(Level([step for step in expected if isinstance(step, FlowStep)]), x, condition)
    module.train()
    torch.testing.assert_close(steps.encode(x, condition, memory)[0], z)
    assert not any(step.fitting for step in steps.steps)
    torch.testing.assert_close(dict(module.state_dict()), dict(expected.state_dict()))


def test_factors_and_full_matrices_load_into_each_other():
    (full, module), (_, factored) = level(), level(lu=True)
    x, condition = inputs(2)
    factored.load_state_dict(module.state_dict())
    names = dict(factored.named_parameters())
    assert "1.invconv.lower" in names and "1.invconv.weight" not in names
    by_factors = Level([step for step in factored if isinstance(step, FlowStep)])
    torch.testing.assert_close(by_factors.encode(x, condition), full.encode(x, condition), rtol=1e-12, atol=1e-11)
    _, again = level()
    again.load_state_dict(factored.state_dict())
    torch.testing.assert_close(dict(again.state_dict()), dict(module.state_dict()), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("lu", [False, True])
def test_what_is_kept_for_drawing_follows_the_weights(lu):
    steps, module = level(lu=lu)
    z, condition = inputs(2)

    def drawn() -> Tensor:
        with torch.no_grad():
            return steps.decode(z, condition)

    first = drawn()
    assert drawn().equal(first)
    fixed = ("sign", "permutation")
    other = {
        k: value if k.endswith(fixed) else value + 0.1 * torch.rand_like(value) for k, value in module.state_dict().items()
    }
    module.load_state_dict(other)
    loaded = drawn()
    torch.testing.assert_close(steps.encode(loaded, condition)[0], z)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    steps.encode(z, condition)[0].square().mean().backward()
    optimizer.step()
    stepped = drawn()
    assert not stepped.equal(loaded)
    torch.testing.assert_close(steps.encode(stepped, condition)[0], z)
    twin = copy.deepcopy(steps)
    with torch.no_grad():
        for step in twin.steps:
            step.actnorm.bias.add_(1)
    assert drawn().equal(stepped) and not twin.decode(z, condition).equal(stepped)


def test_a_network_that_rebuilds_learns_the_same():
    options, arguments = SRFlow.tiny()
    torch.manual_seed(0)
    plain = SRFlow(**options).double().eval()
    rebuilding = SRFlow(**options, rebuild=True).double().eval()
    rebuilding.load_state_dict(plain.state_dict())
    for network in (plain, rebuilding):
        network(*(each.double() for each in arguments))[1].mean().backward()
    for one, other in zip(rebuilding.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
