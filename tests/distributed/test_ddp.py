"""How a step's gradients are exchanged under `strategy: ddp`; in a group of one process, where their mean is themselves."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import toys
from dlas.config import Config
from dlas.engine.distributed.ddp import DataParallel, DataParallelExchange
from dlas.errors import ConfigurationError, TrainingError
from runs import configure

DDP = ("distributed.strategy=ddp",)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def config(tmp_path) -> Config:
    return configure(tmp_path, toys.PSNR, *DDP)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 2))


def named(net: nn.Module) -> dict[str, nn.Parameter]:
    return {f"net.{name}": parameter for name, parameter in net.named_parameters()}


def exchange(config: Config, net: nn.Module, **options: bool) -> DataParallelExchange:
    for name, value in options.items():
        setattr(config.distributed, name, value)
    return of_step(DataParallel(config, torch.device("cpu")), "generator", net)


def of_step(strategy: DataParallel, step: str, net: nn.Module) -> DataParallelExchange:
    return strategy.exchange(step, named(net), torch.optim.SGD(net.parameters()), 0.0)


def backward(given: DataParallelExchange, losses: list, finish: bool = True, travels: bool = True) -> None:
    for number, loss in enumerate(losses, start=1):
        with given.micro_batch(last=travels and number == len(losses)):
            given.forward(loss).backward()
    if finish:
        given.finish()


X = torch.linspace(-1, 1, 12).reshape(4, 3)


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("travels", [True, False])
@pytest.mark.parametrize("unused", [True, False])
def test_gradients_are_those_of_all_micro_batches(config, unused, travels):
    net, bare = network(), network()
    given = exchange(config, net, find_unused_parameters=unused)
    for _ in range(3):
        for part in X.split(2):
            bare(part).square().sum().backward()
        backward(given, [lambda part=part: net(part).square().sum() for part in X.split(2)], travels=travels)
        torch.testing.assert_close(gradients(net), gradients(bare))
        for each in (net, bare):
            each.zero_grad(set_to_none=True)


def test_a_penalty_on_gradients_and_several_calls_of_a_method_are_followed(config):
    net, bare = network(), network()

    def loss(of: nn.Sequential) -> Tensor:
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(of[2](of[1](of[0](x))).sum(), x, create_graph=True)
        return of(X).mean() + gradient.square().sum() + of[:2](X).mean()

    loss(bare).backward()
    backward(exchange(config, net), [lambda: loss(net)])
    torch.testing.assert_close(gradients(net), gradients(bare))


def test_what_is_without_a_gradient_is_told_once_and_keeps_none(config, caplog):
    net = network()
    given = exchange(config, net)
    with caplog.at_level(logging.WARNING, logger="dlas"):
        for _ in range(2):
            backward(given, [lambda: net[0](X).mean()])
    assert net[2].weight.grad is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "net.2.weight, net.2.bias, net.3.weight, net.3.bias, in any process; each stays" in told[0]


def test_what_is_without_a_gradient_against_the_file_ends_the_run_with_names(config):
    net = network()
    match = r"reaches net\.3\.weight, net\.3\.bias in this process; set distributed\.find_unused_parameters: true"
    with pytest.raises(TrainingError, match=match):
        backward(exchange(config, net, find_unused_parameters=False), [lambda: net[2](net[1](net[0](X))).mean()])
    # It has a gradient, from a micro-batch after which nothing travels.
    net = network()
    given = exchange(config, net)
    losses = [lambda: net(X).mean(), lambda: net[2](net[1](net[0](X))).mean()]
    backward(given, losses)
    with pytest.raises(TrainingError, match=r"reaches net\.3\.weight, net\.3\.bias in this process"):
        backward(given, losses)


def test_a_graph_that_does_not_stay_the_same_ends_the_run(config):
    for first, then, named_too in (0, 4, ""), (4, 0, r" \(net\.2\.weight, net\.2\.bias"):
        net = network()
        given = exchange(config, net, static_graph=True)
        backward(given, [lambda net=net, count=first: net[: count + 1](X).mean()])
        net.zero_grad(set_to_none=True)
        with pytest.raises(TrainingError, match=f"do not reach the same parameters as at first{named_too}.*static_graph"):
            backward(given, [lambda net=net, count=then: net[: count + 1](X).mean()])


def test_checkpointing(config):
    net, bare = network(), network()
    bare(X).mean().backward()
    backward(exchange(config, net), [lambda: checkpoint(net, X, use_reentrant=False).mean()])
    torch.testing.assert_close(gradients(net), gradients(bare))
    net = network()
    x = X.clone().requires_grad_()

    def loss() -> Tensor:
        return net[3](checkpoint(net[:3], x, use_reentrant=True)).mean()

    with pytest.raises(TrainingError, match=r"several passes \(reentrant checkpointing\?\).*use_reentrant=False"):
        backward(exchange(config, net), [loss])
    net = network()
    backward(exchange(config, net, static_graph=True), [loss])
    torch.testing.assert_close(gradients(net), gradients(bare))


def test_other_parameters_may_learn_from_some_iteration_on(config):
    net, bare = network(), network()
    net[0].requires_grad_(False)
    given = exchange(config, net, find_unused_parameters=False)
    backward(given, [lambda: net(X).mean()])
    assert net[0].weight.grad is None
    net.zero_grad(set_to_none=True)
    net.requires_grad_(True)
    backward(given, [lambda: net(X).mean()])
    bare(X).mean().backward()
    torch.testing.assert_close(gradients(net), gradients(bare))


def test_where_nothing_learns_the_step_may_say_so(config):
    net = network().requires_grad_(False)
    given = exchange(config, net)
    with given.micro_batch(last=True):
        assert not given.forward(lambda: net(X).mean()).requires_grad


def test_steps_that_train_the_same_share_what_watches_it(config):
    net = network()
    strategy = DataParallel(config, torch.device("cpu"))
    one, other = (of_step(strategy, step, net) for step in ("one", "other"))
    backward(one, [lambda: net(X).mean()])
    net.zero_grad(set_to_none=True)
    backward(other, [lambda: net[0](X).mean()])
    assert net[2].weight.grad is None, "a gradient of another step counts"
    config.distributed.static_graph = True
    with pytest.raises(ConfigurationError, match=r"steps 'one' and 'third' both train net\.0\.weight"):
        of_step(strategy, "third", net)
