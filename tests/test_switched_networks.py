"""Networks whose convolutions are switched by their options: built, loaded from plain weights, trained, made plain again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dlas.archs import create_network
from dlas.cli.main import main
from dlas.config import load
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError
from dlas.inference.model import find
from dlas.interop.state_dicts import load_into
from dlas.layers.switched import SwitchedConv2d, switch_convolutions, switched_layers, unswitch_convolutions, watched
from dlas.registry import ARCHS

RRDB = {"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 2}
BODY = ["body.*.rdb?.conv*", "conv_body"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def diverge(network: nn.Module) -> None:
    """Kernels as training would leave them: no two alike."""
    with torch.no_grad():
        for _, layer in switched_layers(network):
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("bias", ["shared", "each"])
@pytest.mark.parametrize("name", ["RRDBNet", "EDSR", "vqvae", "guided_unet", "autoencoder_kl"])
def test_a_network_computes_after_the_conversion_what_it_did_before(name, bias, hard):
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options}).eval()
    before = network(*inputs)
    layers = switch_convolutions(network, ["**"], 4, bias=bias, hard=hard, norm="rescaled")
    assert layers == [name for name, _ in switched_layers(network)]
    assert len(layers) > 3
    for one, two in zip(*(each if isinstance(each, tuple) else (each,) for each in (before, network(*inputs))), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def test_what_is_switched_is_told_by_names():
    network = create_network({**RRDB, "nb": 2})
    names = switch_convolutions(network, ["body.*.rdb1.conv1", "conv_*"], 2)
    outer = ["conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert names == ["conv_first", "body.0.rdb1.conv1", "body.1.rdb1.conv1", "conv_body", *outer]
    assert [type(network.get_submodule(name)) for name in names] == [SwitchedConv2d] * 8


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ["body.0"],
            r"'body.0' names no convolution of the network; those that can be switched are: conv_first, body.0.rdb1.co",
        ),
        (["conv_first", "conv_nothing"], "'conv_nothing' names no convolution"),
    ],
)
def test_names_of_nothing(layers, message):
    with pytest.raises(ConfigurationError, match=message):
        create_network({**RRDB, "switched": {"layers": layers}})


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(2, 2, 4), "its kernel is 4 x 4"),
        (nn.Conv2d(2, 2, 3, groups=2), "it has groups"),
        (nn.Conv2d(2, 2, 3, padding_mode="reflect"), "it has groups, dilation, or padding other than zeros"),
        (nn.Conv2d(2, 2, 3, stride=(1, 2)), "its stride or padding is not one number"),
        (type("Weighted", (nn.Conv2d,), {})(2, 2, 3), "it is a Weighted, which does more"),
    ],
)
def test_convolutions_that_cannot_be_switched_say_why(layer, reason):
    with pytest.raises(ValueError, match=rf"'0' \(for '0'\) cannot be switched: {reason}"):
        switch_convolutions(nn.Sequential(layer), ["0"], 2)


@pytest.mark.parametrize("bias", ["shared", "each"])
def test_plain_weights_are_loaded_with_each_kernel_copied(bias):
    plain, x = create_network(RRDB).eval(), torch.rand(1, 3, 8, 8)
    network = create_network({**RRDB, "switched": {"layers": BODY, "breadth": 3, "bias": bias, "norm": "sum_to_one"}}).eval()
    assert not torch.allclose(network(x), plain(x), atol=1e-3)
    coupler = network.conv_body.coupler.weight.clone()
    load_into(network, {f"generator.{key}": value for key, value in plain.state_dict().items()}, source="plain")
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)
    assert torch.equal(network.conv_body.coupler.weight, coupler)
    diverge(network)
    other = create_network({**RRDB, "switched": {"layers": BODY, "breadth": 3, "bias": bias, "norm": "sum_to_one"}}).eval()
    load_into(other, network.state_dict(), source="switched")
    assert torch.equal(other(x), network(x))


def test_back_to_plain_convolutions():
    network = create_network(RRDB).eval()
    kept, x = copy.deepcopy(network.state_dict()), torch.rand(1, 3, 8, 8)
    before = network(x)
    switch_convolutions(network, BODY, 4, bias="each", norm="sum_to_one", norm_window=2)
    assert len(unswitch_convolutions(network)) == 16
    assert network.state_dict().keys() == kept.keys()
    assert torch.equal(network(x), before)


def test_which_kernel_stays():
    layer = SwitchedConv2d(2, 3, 3, 3, norm="sum_to_one", norm_window=1, bias="each")
    network, x = nn.Sequential(layer), torch.rand(1, 2, 8, 8)

    def plain(kernel):
        each = copy.deepcopy(network)
        assert unswitch_convolutions(each, kernel) == ["0"]
        return each[0]

    with pytest.raises(ValueError, match="the 3 kernels of '0' differ"):
        plain(None)
    with pytest.raises(ValueError, match="no norm whose memory is full"):
        plain("most_used")
    with pytest.raises(ValueError, match="has kernels 0 to 2"):
        plain("3")
    assert torch.equal(plain("2").weight, layer.weight[:, :, 2])
    assert torch.equal(plain("2").bias, layer.bias[2])
    torch.testing.assert_close(plain("mean").weight, layer.weight.mean(dim=2))
    with torch.no_grad():
        layer.coupler.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    layer(x)
    assert torch.equal(plain("most_used").weight, layer.weight[:, :, 1])


def test_commands(tmp_path, capsys):
    plain, x = create_network(RRDB).eval(), torch.rand(1, 3, 8, 8)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    there, back = str(tmp_path / "switched.safetensors"), str(tmp_path / "back.safetensors")
    assert (
        main(["convert", "switch", str(tmp_path / "plain.safetensors"), "--layers", *BODY, "--breadth", "2", "-o", there]) == 0
    )
    assert "16 convolutions" in capsys.readouterr().out
    network = find(there).build()
    assert len(list(switched_layers(network))) == 16
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)
    settings = [
        f"path.pretrain.generator={there}",
        "networks.generator.switched.breadth=2",
        "networks.generator.switched.norm_window=256",
    ]
    trainer = Trainer(configure(tmp_path, *settings, f"networks.generator.switched.layers={json.dumps(BODY)}"))
    torch.testing.assert_close(trainer.networks["generator"].eval()(x), plain(x), rtol=0, atol=1e-5)
    assert main(["convert", "switch", there, "--layers", *BODY, "-o", back]) == 2
    assert "has switched convolutions already" in capsys.readouterr().err
    assert main(["convert", "unswitch", there, "-o", back]) == 0
    assert torch.equal(find(back).build()(x), plain(x))
    assert main(["convert", "unswitch", back, "-o", there]) == 2
    assert "its options name no 'switched' convolutions" in capsys.readouterr().err


FILE = """
name: run
scale: 2
datasets:
  train: {mode: builtin_photos, batch_size: 2, target_size: 16}
networks:
  generator:
    which_model: RRDBNet
    nf: 8
    nb: 1
    gc: 4
    switched: {layers: ["body.*.rdb?.conv*"], breadth: 3, norm_window: 2}
steps:
  generator:
    training: generator
    optimizer_params: {lr: 1e-3}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
train: {niter: 3}
logger: {tensorboard: false}
"""


def configure(folder: Path, *settings: str):
    (folder / "file.yml").write_text(FILE, encoding="utf-8")
    return load(folder / "file.yml", [f"path.experiments={folder}", *settings])


def test_a_file_switches_a_network_and_starts_from_plain_weights(tmp_path):
    plain = create_network(RRDB)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    trainer = Trainer(configure(tmp_path, f"path.pretrain.generator={tmp_path}/plain.safetensors"))
    network, x = trainer.networks["generator"], torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)
    network.train()
    trainer.run()
    layer = network.get_submodule("body.0.rdb1.conv1")
    assert layer.gate.norm.accumulator_filled
    assert not torch.equal(layer.weight[:, :, 0], layer.weight[:, :, 1])
    again = find(tmp_path / "run").build()
    assert len(list(switched_layers(again))) == 15


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("networks.generator.switched.layer=[a]", "unknown key"),
        ("networks.generator.switched.norm=none", "sum_to_one"),
        ("networks.generator.switched.breadth=0", "breadth"),
    ],
)
def test_mistakes_in_a_file(tmp_path, setting, message):
    with pytest.raises(ConfigurationError, match=message):
        configure(tmp_path, setting)


def test_one_selector_chooses_for_all_layers():
    plain, x = create_network(RRDB).eval(), torch.rand(1, 3, 8, 8)
    switched = {"layers": BODY, "breadth": 3, "selector": "shared", "source": "conv_first", "norm": None, "dropout": 0.0}
    network = create_network({**RRDB, "switched": switched}).eval()
    load_into(network, plain.state_dict(), source="plain")
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)
    diverge(network)
    with watched(network) as routed:
        network(x).mean().backward()
    first = routed["conv_body"].chosen
    assert all(torch.equal(each.chosen, first) for each in routed.values())
    assert all(weight.grad is not None for weight in network.switch_selector.parameters())
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.switch_selector.attention_conv2.bias.copy_(torch.tensor([0.0, 99.0, 0.0]))
    with watched(other) as changed:
        other(x)
    assert bool((changed["conv_body"].chosen.argmax(dim=1) == 1).all())
    with watched(network) as routed:
        network(x)
    assert torch.equal(routed["conv_body"].chosen, first)
    unswitch_convolutions(network, "0")
    assert network.state_dict().keys() == plain.state_dict().keys()
    network(x)


@pytest.mark.parametrize("source", [None, "body.0", "nothing"])
def test_a_shared_selector_needs_a_layer_to_look_at(source):
    with pytest.raises(ConfigurationError, match="selector 'shared' needs a 'source'"):
        create_network({**RRDB, "switched": {"layers": BODY, "selector": "shared", "source": source}})


def test_a_shared_selector_looks_at_an_earlier_layer():
    network = create_network({**RRDB, "switched": {"layers": BODY, "selector": "shared", "source": "conv_last"}})
    with pytest.raises(RuntimeError, match="name an earlier source"):
        network(torch.rand(1, 3, 8, 8))


def test_random_choices_are_not_computed_again(tmp_path):
    with pytest.raises(ConfigurationError, match="switched draws random numbers"):
        Trainer(configure(tmp_path, "checkpointing_enabled=true"))
    Trainer(configure(tmp_path, "checkpointing_enabled=true", "networks.generator.switched.dropout=0"))
