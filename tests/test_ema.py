"""The average of a network's weights: its values, its file, and putting it into the network and out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.engine.ema import ModelEma
from dlas.engine.ema_profiles import warmed_up
from dlas.errors import CheckpointError, ConfigurationError
from runs import batches, trainer


class Net(nn.Module):
    """Parameters, tied ones, float and integer buffers, one that is not saved, one that each forward pass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 3)
        self.out.weight = self.embedding.weight
        self.register_buffer("codebook", torch.zeros(2))
        self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.codebook = self.codebook + 1
        return self.out(self.norm(self.embedding(x)))


def fill(network: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(value)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]), name


def test_constant_stream_has_a_closed_form() -> None:
    network = Net()
    fill(network, 1.0)
    ema = ModelEma(network, rate=0.9)
    fill(network, 3.0)
    for step in range(1, 21):
        ema.update(step)
        expected = 3 + 0.9**step * (1 - 3)
        for name, value in ema.state_dict().items():
            if value.is_floating_point():  # parameters and buffers alike
                torch.testing.assert_close(value, torch.full_like(value, expected), msg=name)
    assert ema.state_dict()["norm.num_batches_tracked"].item() == 3  # a counter is copied


def test_stationary_weights_stay_exactly() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.999)
    for step in range(1, 50):
        ema.update(step)
    assert_same_bits(ema.state_dict(), snapshot(network))


def test_a_changing_stream_is_the_weighted_sum() -> None:
    network = nn.Linear(1, 1, bias=False)
    fill(network, 2.0)
    ema = ModelEma(network, rate=0.75)
    stream = [1.0, -4.0, 8.0, 3.0]
    for step, value in enumerate(stream, 1):
        fill(network, value)
        ema.update(step)
    n = len(stream)
    expected = 2.0 * 0.75**n + sum(0.25 * 0.75 ** (n - 1 - k) * value for k, value in enumerate(stream))
    assert ema.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_warmup_raises_the_rate_with_the_step() -> None:
    network = nn.Linear(1, 1, bias=False)
    fill(network, 0.0)
    ema = ModelEma(network, rate=warmed_up(0.5))
    fill(network, 1.0)
    left = 1.0
    for step in range(1, 13):
        ema.update(step)
        left *= min(0.5, (1 + step) / (10 + step))
        assert ema.state_dict()["weight"].item() == pytest.approx(1 - left, rel=1e-6)
    assert (1 + 8) / (10 + 8) == 0.5  # so that both sides of the minimum were seen


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        ModelEma(nn.Linear(1, 1), rate=rate)


def test_follows_buffers_that_the_network_replaces() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.0)
    network(torch.randn(4, 3))
    network(torch.randn(4, 3))
    ema.update(1)
    assert ema.state_dict()["codebook"].tolist() == [2.0, 2.0]
    assert_same_bits(ema.state_dict(), snapshot(network))


# ---- the file ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_file_has_the_network_s_names_and_loads_into_the_plain_network(dtype: torch.dtype) -> None:
    network = Net().to(dtype)
    ema = ModelEma(network, rate=0.5)
    fill(network, 1.0)
    ema.update(1)
    saved = ema.state_dict()
    assert saved.keys() == network.state_dict().keys()
    assert {value.dtype for value in saved.values()} == {torch.float32, torch.int64, torch.bool}
    plain = Net().to(dtype)
    plain.load_state_dict(saved, strict=True)
    torch.testing.assert_close(plain.out.weight, saved["embedding.weight"].to(dtype))


def test_bfloat16_networks_are_averaged_in_float32() -> None:
    network = nn.Linear(1, 1, bias=False).bfloat16()
    fill(network, 1.0)
    ema = ModelEma(network, rate=0.999)
    fill(network, 2.0)
    for step in range(1, 101):
        ema.update(step)
    # bfloat16 cannot hold 1.001, so that an average in the network's own type would stay at 1
    assert ema.state_dict()["weight"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_exactly(dtype: torch.dtype) -> None:
    network = Net().to(dtype)
    ema = ModelEma(network, rate=0.99)
    fill(network, 0.7)
    ema.update(1)
    resumed = ModelEma(copy.deepcopy(network), rate=0.99)
    resumed.load_state_dict(ema.state_dict())
    for step, value in ((2, 0.3), (3, -1.7)):
        for each in (ema, resumed):
            fill(each.network, value)
            each.update(step)
    assert_same_bits(resumed.state_dict(), ema.state_dict())


def test_tied_parameters_are_averaged_once() -> None:
    network = Net()
    fill(network, 0.0)
    ema = ModelEma(network, rate=0.5)
    fill(network, 1.0)
    ema.update(1)
    assert len(ema._averages) == len(list(network.parameters())) + 5  # and five saved buffers
    saved = ema.state_dict()
    assert torch.equal(saved["out.weight"], saved["embedding.weight"]) and saved["out.weight"].unique().tolist() == [0.5]


def test_saved_averages_do_not_change_afterwards() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.5)
    saved = ema.state_dict()
    before = copy.deepcopy(saved)
    fill(network, 9.0)
    ema.update(1)
    assert_same_bits(saved, before)


def test_a_file_of_another_network_is_refused() -> None:
    ema = ModelEma(nn.Linear(2, 2), rate=0.5)
    with pytest.raises(CheckpointError, match=r"1 entries are missing \(bias"):
        ema.load_state_dict(nn.Linear(2, 2, bias=False).state_dict())
    with pytest.raises(CheckpointError, match="have another shape"):
        ema.load_state_dict(nn.Linear(3, 2).state_dict())


def test_names_of_a_network_that_renames_its_entries_are_kept() -> None:
    def rename(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state["published.weight"] = state.pop("weight")

    network = nn.Linear(2, 2)
    network._register_state_dict_hook(rename)
    ema = ModelEma(network, rate=0.5)
    assert ema.state_dict().keys() == {"published.weight", "bias"}

    def change(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state["published.weight"] = state["published.weight"].t().contiguous()

    network._register_state_dict_hook(change)
    with pytest.raises(ValueError, match=r"'published\.weight' of the state dict is neither"):
        ModelEma(network, rate=0.5)


# ---- swapping ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_evaluates_the_average_and_restores_every_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Net().to(dtype)
    ema = ModelEma(network, rate=0.5)
    for step in range(1, 4):
        network(torch.randn(4, 3, dtype=dtype))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(step)
    own, average = snapshot(network), ema.state_dict()
    parameters = list(network.parameters())

    network.eval()
    with ema.swap_into(network):
        assert_same_bits(snapshot(network), {name: value.to(own[name].dtype) for name, value in average.items()})
        network(torch.randn(4, 3, dtype=dtype))  # replaces a buffer
    assert_same_bits(snapshot(network), own)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert_same_bits(ema.state_dict(), average)


def test_swapping_restores_after_an_exception() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.5)
    fill(network, 5.0)
    own = snapshot(network)

    def evaluate() -> None:
        assert not torch.equal(network.out.weight, own["out.weight"])
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), ema.swap_into(network):
        evaluate()
    assert_same_bits(snapshot(network), own)


def test_swapping_into_a_copy_and_not_into_another_network() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.5)
    twin = copy.deepcopy(network)
    fill(twin, 5.0)
    with ema.swap_into(twin):
        assert_same_bits(snapshot(twin), ema.state_dict())
    with pytest.raises(ValueError, match="other parameters or buffers"), ema.swap_into(nn.Linear(2, 2)):
        pass


def test_a_network_without_any_tensor() -> None:
    network = nn.Identity()
    ema = ModelEma(network, rate=0.5)
    ema.update(1)
    with ema.swap_into(network):
        assert ema.state_dict() == {}


def test_training_goes_on_after_swapping() -> None:
    network = Net()
    ema = ModelEma(network, rate=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with ema.swap_into(network), torch.inference_mode():
        network.eval()(torch.randn(4, 3))
    network.train()(torch.randn(4, 3)).square().mean().backward()
    before = network.out.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(network.out.weight, before)


def test_the_output_of_the_average_is_a_reference_in_training(tmp_path):
    """`generator_ema` gives what the network gives with the averaged weights, and leaves the network as it was."""
    injector = "steps.generator.injectors.ema={type: generator_ema, generator: generator, in: lq, out: steady, train: true}"
    loss = "steps.generator.losses.ldl={type: ldl, weight: 1, real: hq, fake: gen, reference: steady}"
    run = trainer(tmp_path, toys.PSNR, injector, loss, "networks.generator.dropout=0.5")
    first, second = batches(run, 2)
    run.iterate(first)
    network, before = run.networks["generator"], run.averages.main["generator"].state_dict()
    (part,) = run.iterate(second)
    with torch.no_grad():
        expected = torch.func.functional_call(network.eval(), before, (part.state["lq"],))
    torch.testing.assert_close(part.state["steady"], expected)
    assert not torch.equal(part.state["steady"], part.state["gen"])
    assert network.train().training
    with pytest.raises(ConfigurationError, match="the run keeps no average of 'generator'"):
        trainer(tmp_path, toys.PSNR, injector, "train.ema.enabled=false").iterate(batches(run, 1)[0])
