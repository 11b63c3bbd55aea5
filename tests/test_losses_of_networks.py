"""Losses that run a network: the perceptual one, and those that ask for invariance."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dlas.context import Context
from dlas.engine.gate import Gate
from dlas.errors import CheckpointError, ConfigurationError
from dlas.injectors import create_injector
from dlas.layers.vgg import VGG19Features
from dlas.losses import create_loss
from dlas.losses.invariance import CORNERS, MOTIONS

FEATURE = {"type": "feature", "which_model_F": "vgg", "criterion": "l1", "real": "real", "fake": "fake"}


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = VGG19Features()
    for parameter in network.parameters():
        parameter.data.mul_(1.5)  # so that something is left after sixteen layers
    torch.save(network.state_dict() | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    return network, tmp_path / "vgg.pth"


def test_the_network_has_the_layers_of_vgg19_in_torchvisions_names():
    network = VGG19Features()
    places = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    own = network.state_dict()
    assert list(own) == [f"features.{place}.{name}" for place in places for name in ("weight", "bias")]
    assert [own[f"features.{place}.weight"].shape[0] for place in places] == widths
    assert sum(value.numel() for value in own.values()) == 20_024_384  # VGG19 without its linear layers
    x = torch.rand(1, 3, 32, 48)
    expected = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for before, place in zip([0, *places], places, strict=False):
        expected = F.max_pool2d(expected, 2) if place - before == 3 else expected
        expected = F.conv2d(expected, own[f"features.{place}.weight"], own[f"features.{place}.bias"], padding=1)
        expected = F.relu(expected) if place != places[-1] else expected
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)
    assert (expected < 0).any()


def test_the_perceptual_loss_is_the_distance_of_features(weights):
    network, path = weights
    loss = create_loss(FEATURE | {"load_path": str(path)})
    loss.prepare(torch.device("cpu"))
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    value = loss({"real": real, "fake": fake}, Context({}))
    torch.testing.assert_close(value, F.l1_loss(network(fake), network(real)))
    value.backward()
    assert fake.grad.abs().max() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert not loss.network.training


def test_weights_may_be_safetensors(weights, tmp_path):
    network, _ = weights
    save_file(network.state_dict(), tmp_path / "vgg.safetensors")
    loss = create_loss(FEATURE | {"load_path": str(tmp_path / "vgg.safetensors")})
    loss.prepare(torch.device("cpu"))
    assert loss.network.state_dict()["features.0.weight"].equal(network.state_dict()["features.0.weight"])


def test_without_weights_there_is_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"there is no file .*checkpoints/vgg19-dcbb9e9d\.pth; fetch"):
        create_loss(FEATURE).prepare(torch.device("cpu"))
    (tmp_path / "x.pth").write_text("text")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        create_loss(FEATURE | {"load_path": str(tmp_path / "x.pth")}).prepare(torch.device("cpu"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match=r"features\.0\.weight is missing or of another shape"):
        create_loss(FEATURE | {"load_path": str(tmp_path / "y.pth")}).prepare(torch.device("cpu"))


class Shift(nn.Module):
    """Treats all places alike, except for the first column."""

    def forward(self, x):
        result = 2 * x
        return result if self.training else torch.cat([result[..., :1] + 1, result[..., 1:]], dim=-1)


def state(network: nn.Module, image: torch.Tensor, size: int = 12):
    patches = create_injector({"type": "image_patch", "in": "lq", "out": "p", "patch_size": size})({"lq": image}, Context({}))
    return {"lq": image, **patches, "gen": network(patches["p"]), "full": network(image)}


LOSSES = {
    "translational": {"real": "gen", "fake": ["p"], "patch_size": 12, "overlap": 8},
    "geometric": {"real": "full", "fake": "lq"},
    "recursive": {"real": "full", "fake": "lq", "recursive_depth": 1, "downsample_factor": 1.0},
}


@pytest.mark.parametrize("kind", ["translational", "geometric"])
def test_a_network_that_is_invariant_costs_nothing(kind):
    network, image = Shift(), torch.rand(2, 3, 16, 16)
    loss = create_loss({"type": kind, "generator": "g", "criterion": "l2", **LOSSES[kind]})
    ways = CORNERS if kind == "translational" else MOTIONS
    values = state(network, image)
    for way in ways:
        assert loss.compare(values, Context({"g": network}), way) == 0
    network.eval()
    values = state(network, image)
    costs = [loss.compare(values, Context({"g": network}), way).item() for way in ways]
    assert any(cost > 0 for cost in costs)


@pytest.mark.parametrize("kind", ["translational", "geometric"])
def test_the_way_is_a_function_of_the_step_and_the_same_for_all_micro_batches(kind):
    network, image = Shift().eval(), torch.rand(2, 3, 16, 16)
    loss = create_loss({"type": kind, "generator": "g", "criterion": "l1", **LOSSES[kind]})
    seen = []
    loss.compare = lambda state, context, way: seen.append(way)
    for step in range(30):
        for positions in ([0, 1], [2, 3]):
            loss(state(network, image), Context({"g": network}, step=step, positions=positions))
    assert seen[::2] == seen[1::2]
    assert set(seen) == set(CORNERS if kind == "translational" else MOTIONS)


def test_recursion_feeds_the_output_back():
    network, image = Shift(), torch.rand(1, 3, 4, 4)
    options = {"type": "recursive", "generator": "g", "criterion": "l1", **LOSSES["recursive"], "recursive_depth": 2}
    value = create_loss(options)({"full": image}, Context({"g": network}))
    torch.testing.assert_close(value, (3 * image).mean())  # 2 * 2 * x against x


def test_detach_lets_only_the_first_output_learn():
    network = nn.Conv2d(3, 3, 1)
    for detach, expected in ((True, False), (False, True)):
        values = state(network, torch.rand(1, 3, 16, 16))
        values["gen"] = values["gen"].detach()
        loss = create_loss(
            {"type": "translational", "generator": "g", "criterion": "l1", **LOSSES["translational"], "detach_fake": detach}
        )
        assert loss(values, Context({"g": network})).requires_grad is expected


def test_sizes_that_do_not_go_together():
    options = {"type": "translational", "generator": "g", "criterion": "l1", **LOSSES["translational"]}
    with pytest.raises(ConfigurationError, match="must be below patch_size"):
        create_loss(options | {"overlap": 12})
    with pytest.raises(ConfigurationError, match="input_alteration_index 1"):
        create_loss(options | {"input_alteration_index": 1})
    network = Shift()
    with pytest.raises(ValueError, match="but patch_size is 24"):
        create_loss(options | {"patch_size": 24})(state(network, torch.rand(1, 3, 16, 16)), Context({"g": network}))


@pytest.mark.parametrize(
    ("gate", "niter", "opens"),
    [
        (Gate(), 1, True), (Gate(after=5), 5, False), (Gate(after=5), 6, True), (Gate(after=5, every=4), 8, False),
        (Gate(after=5, every=4), 9, True), (Gate(after=5, before=5), 100, False),
        (Gate(after=5, before=8, every=4), 100, False),
    ],
)  # fmt: skip
def test_whether_a_gate_opens_in_a_run(gate, niter, opens):
    assert gate.opens(niter) is opens
    assert any(gate(step) for step in range(niter)) is opens
