"""SRFlow: densities against autograd's Jacobian, inverses, heat, initialisation from data, and what its options refuse."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from dlas.archs import create_network
from dlas.archs.srflow import SRFlow
from dlas.errors import ConfigurationError
from dlas.layers.flow import ActNorm

FLOW = {"stackRRDB": {"blocks": [0, 1]}, "CondAffineSeparatedAndCond": {"hidden_channels": 4}, "additionalFlowNoAffine": 1}


def build(**more: Any) -> SRFlow:
    """A small network whose every map does something."""
    torch.manual_seed(0)
    options = {"nf": 4, "nb": 2, "gc": 4, "K": 1, "flow": FLOW, **more}
    network = create_network({"which_model": "srflow", **options})
    assert isinstance(network, SRFlow)
    with torch.no_grad():
        for weight in network.flowUpsamplerNet.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return network.double().eval()


def pictures(height: int = 8, width: int = 8, scale: int = 4, count: int = 1) -> tuple[Tensor, Tensor]:
    return (
        torch.rand(count, 3, height, width, dtype=torch.float64),
        torch.rand(count, 3, height // scale, width // scale, dtype=torch.float64),
    )


@pytest.mark.parametrize("split", [{"enable": False}, {"enable": True}, {"correct_splits": True, "consume_ratio": 0.25}])
def test_the_density_is_that_of_the_jacobian(split):
    network = build(flow={**FLOW, "split": split})
    picture, low_res = pictures()

    def flat(x: Tensor) -> Tensor:
        latents, *_ = network.encode(x.view_as(picture), low_res)
        return torch.cat([each.flatten() for each in latents])

    jacobian = torch.autograd.functional.jacobian(flat, picture.flatten())
    z = flat(picture.flatten())
    gaussian = -0.5 * (z.square() + math.log(2 * math.pi)).sum()
    expected = -(torch.linalg.slogdet(jacobian).logabsdet + gaussian) / (math.log(2) * 64)
    torch.testing.assert_close(network.encode(picture, low_res)[1][0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("scale", "options"),
    [(4, {}), (8, {}), (4, {"flow": {**FLOW, "L": 4}}), (4, {"initial_stride": 2, "flow_scale": 8})],
)
def test_encoding_and_decoding_undo_each_other(scale, options):
    network = build(scale=scale, **options)
    picture, low_res = pictures(32, 48, scale, 2)
    latents, *_ = network(picture, low_res)
    assert sum(each[0].numel() for each in latents) == picture[0].numel()
    torch.testing.assert_close(network.decode(latents, low_res), picture)
    drawn = network.draw(low_res, 0.9)
    assert [each.shape for each in drawn] == [each.shape for each in latents]
    for one, two in zip(network.encode(network.decode(drawn, low_res), low_res)[0], drawn, strict=True):
        torch.testing.assert_close(one, two)


def test_heat_is_the_deviation_of_the_latents():
    network = build()
    _, low_res = pictures(32, 32)
    assert network.sample(low_res, 0.0).equal(network.sample(low_res, 0.0))
    assert not network.sample(low_res, 0.5).equal(network.sample(low_res, 0.5))
    torch.manual_seed(3)
    picture, latents = network(None, low_res, None, 0.5, True)
    assert torch.cat([each.flatten() for each in latents]).std().item() == pytest.approx(0.5, rel=0.05)
    assert network.decode(latents, low_res).equal(picture)
    assert not picture.requires_grad


def test_noise_of_one_step_is_added_in_training_only():
    network = build(quant=32).train()
    picture, low_res = pictures()
    network(picture, low_res)  # normalises
    for layer in network.modules():
        assert not isinstance(layer, ActNorm) or len(layer.stage) == 2
    torch.manual_seed(1)
    noisy = network(picture, low_res)[1]
    torch.manual_seed(1)
    assert noisy.equal(network.encode(picture, low_res, torch.rand_like(picture))[1])
    plain = network.eval()(picture, low_res)[1]
    assert plain.equal(network.encode(picture, low_res)[1])
    half = network.encode(picture, low_res, torch.full_like(picture, 0.5))[1]  # no noise, but its density
    torch.testing.assert_close(half, plain + math.log2(32))
    published = copy.deepcopy(network)
    published.dequantise = False
    assert published.train()(picture, low_res)[1].equal(plain)


def test_the_first_batch_that_is_trained_on_is_normalised_and_no_other():
    norm = ActNorm(3)
    first, second = (5 + 3 * torch.randn(4, 3, 6, 6) for _ in range(2))
    assert norm.eval()(first).equal(first)  # not in evaluation
    with torch.no_grad():
        assert norm.train()(first).equal(first)  # nor where nothing is learned
    out = norm(first)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    fitted = norm.bias.detach().clone()
    norm(second)
    assert norm.bias.equal(fitted)
    resumed = ActNorm(3)
    resumed.load_state_dict(norm.state_dict())
    resumed.train()(second)
    assert resumed.bias.equal(fitted)


def fit_in_process(rank: int, rendezvous: str, x: Tensor, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    norm = nn.parallel.DistributedDataParallel(ActNorm(3))
    for _ in range(2):
        norm(x[2 * rank : 2 * rank + 2]).sum().backward()
    torch.save(norm.module.state_dict(), f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


def test_processes_normalise_their_batches_together(tmp_path):
    x = 5 + 3 * torch.randn(4, 3, 6, 6)
    multiprocessing.spawn(fit_in_process, (str(tmp_path / "rendezvous"), x, str(tmp_path)), nprocs=2)
    whole = ActNorm(3)
    whole(x)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pth"), dict(whole.state_dict()))


def test_the_encoder_is_trained_only_when_asked_for():
    picture, low_res = pictures()
    for trained in (False, True):
        network = build(train_RRDB=trained)
        network(picture, low_res)[1].mean().backward()
        assert (network.RRDB.conv_first.weight.grad is not None) == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": {**FLOW, "couplng": 1}}, r"flow\.couplng is unknown; the keys of 'flow' are"),
        ({"flow": {**FLOW, "coupling": "Affine"}}, r"flow\.coupling must be 'CondAffineSeparatedAndCond', got 'Affine'"),
        ({"flow": {**FLOW, "K": 3}}, r"flow\.K must be 1, got 3"),
        ({"flow": None}, r"blocks \[1, 8, 15, 22\]: with nb: 2 the blocks are 0 \.\. 1"),
        ({"flow_scale": 8}, r"4 x 1 = 4: this must be 4, 8 or 16, and flow_scale, if it is given \(8\)"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**options)


def test_sizes_that_do_not_fit_are_refused():
    network = build()
    picture, low_res = pictures(16, 16)
    with pytest.raises(ValueError, match=r"picture of 16x16 pixels does not go with .* 2x4 at scale 4: it must have 8x16"):
        network(picture, low_res[:, :, :2])
    with pytest.raises(ValueError, match=r"of 3x4 pixels does not fit: height and width must be multiples of 2"):
        network.sample(low_res[:, :, :3])
    with pytest.raises(ValueError, match="no picture to encode"):
        network(None, low_res)
