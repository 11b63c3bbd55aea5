"""Low-rank adapters: what they compute, what is trained, and what files hold."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dlas.archs import create_network
from dlas.cli.main import main
from dlas.errors import CheckpointError, ConfigurationError
from dlas.inference.model import find
from dlas.interop.state_dicts import load_into, read_state_dict
from dlas.layers.gpt2 import LinearInOut
from dlas.layers.low_rank import adapted_layers, add_adapters, merge_adapters
from dlas.registry import ARCHS
from runs import assert_same_tensors, trainer

NETWORKS = ["unified_voice2", "diffusion_tts_flat", "guided_unet", "RRDBNet", "SwinIR", "dit", "vqvae", "clvp2", "EDSR"]
LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "without bias": (nn.Linear(6, 4, bias=False), (3, 6)),
    "GPT-2's": (LinearInOut(6, 4), (3, 5, 6)),
    "1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 7, 6)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 6)),
    "3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def move(network, size=0.1):
    """Factors as training would leave them."""
    with torch.no_grad():
        for _, layer in adapted_layers(network):
            layer.lora_b.normal_(std=size)


def outputs(network, inputs):
    torch.manual_seed(1)
    found = network(*inputs)
    return [each for each in (found if isinstance(found, tuple) else (found,)) if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_with_an_adapter(kind):
    plain, shape = LAYERS[kind]
    network = nn.Sequential(copy.deepcopy(plain))
    x = torch.randn(shape)
    before = network(x)
    assert add_adapters(network, rank=2, alpha=3) == ["0"]
    assert network(x).equal(before)
    move(network, 1.0)
    (layer,) = network
    product = layer.lora_b @ layer.lora_a * 1.5
    expected = copy.deepcopy(plain)
    with torch.no_grad():
        expected.weight += product.T if kind == "GPT-2's" else product.view_as(plain.weight)
    assert not torch.allclose(expected(x), before, atol=1e-2)
    torch.testing.assert_close(layer.weight, expected.weight)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-4, atol=1e-5)
    network(x).sum().backward()
    assert sorted(name for name, p in network.named_parameters() if p.grad is not None) == ["0.lora_a", "0.lora_b"]
    assert merge_adapters(network) == ["0"]
    assert type(network[0]) is type(plain)
    assert network.state_dict().keys() == nn.Sequential(plain).state_dict().keys()
    torch.testing.assert_close(network(x), expected(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name):
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options}).eval()
    before, weights = outputs(network, inputs), network.state_dict()
    weights = {key: value.clone() for key, value in weights.items()}
    layers = add_adapters(network, rank=2)
    assert len(layers) > 3
    for one, two in zip(outputs(network, inputs), before, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert weights.items() <= {key: weights.get(key) for key in network.state_dict()}.items()  # names of the base stay
    assert all(value.equal(network.state_dict()[key]) for key, value in weights.items())
    move(network)
    adapted = outputs(network, inputs)
    assert any(not torch.allclose(one, two, atol=1e-3) for one, two in zip(adapted, before, strict=True))
    merged = copy.deepcopy(network)
    assert merge_adapters(merged) == layers
    assert merged.state_dict().keys() == weights.keys()
    for one, two in zip(outputs(merged, inputs), adapted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3 * two.abs().max().item())


@pytest.mark.parametrize("name", ["unified_voice2", "diffusion_tts_flat", "guided_unet", "RRDBNet"])
def test_gradients_are_those_of_the_merged_weights(name):
    """Also where a network reads a weight past its layer: no factor is left without a gradient."""
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options}).eval()
    nn.init.normal_(next(p for p in network.parameters() if p.ndim > 1))
    for parameter in network.parameters():
        if not parameter.any():  # layers that begin at zero keep gradients from those before them
            nn.init.normal_(parameter, std=0.1)
    layers = add_adapters(network, rank=2)
    move(network)
    merged = copy.deepcopy(network)
    merge_adapters(merged)
    merged.requires_grad_(True)
    for each in (network, merged):
        sum(x.float().square().mean() for x in outputs(each, inputs) if x.is_floating_point()).backward()
    reached = 0
    for layer_name, layer in adapted_layers(network):
        weight = merged.get_submodule(layer_name).weight
        if weight.grad is None or not weight.grad.any():
            continue
        reached += 1
        gradient = weight.grad.T if layer.transposed else weight.grad.flatten(1)
        expected = gradient @ layer.lora_a.T
        torch.testing.assert_close(layer.lora_b.grad, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item() + 1e-7)
    assert reached > len(layers) / 2


def test_only_what_is_named_is_adapted_or_trained():
    network = create_network({"which_model": "RRDBNet", "nf": 8, "nb": 2, "gc": 4, "scale": 2})
    layers = add_adapters(network, targets=["body.*.rdb1.conv?", "conv_last"], trained=["**.bias"])
    assert layers == [*(f"body.{i}.rdb1.conv{j}" for i in range(2) for j in range(1, 6)), "conv_last"]
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sorted({name.rpartition(".")[2] for name in trained}) == ["bias", "lora_a", "lora_b"]
    assert {name for name in trained if name.endswith("lora_a")} == {f"{name}.lora_a" for name in layers}
    assert len([name for name in trained if name.endswith("bias")]) == len(
        [name for name, _ in network.named_parameters() if name.endswith("bias")]
    )


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["conv_nothing"]}, "'conv_nothing' names no layer; those that can have an adapter are: conv_first, body"),
        ({"targets": ["body.0.rdb1"]}, r"'body.0.rdb1' is a \w+"),
        ({"trained": ["nothing"]}, "lora.trained: 'nothing' names no parameter; they are called conv_first.weight"),
    ],
)
def test_names_of_nothing(lora, message):
    with pytest.raises(ConfigurationError, match=message):
        create_network({"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 2, "lora": lora})


def test_tied_weights_have_no_adapters():
    network = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])
    network[1].weight = network[0].weight
    assert add_adapters(network) == ["2"]


def test_dropout_is_for_training():
    network = nn.Sequential(nn.Linear(64, 4))
    add_adapters(network, dropout=0.5)
    move(network, 1.0)
    x = torch.ones(1, 64)
    assert not network(x).equal(network(x))
    network.eval()
    assert network(x).equal(network(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_lower_precision(dtype):
    network = nn.Sequential(nn.Linear(32, 16), nn.Conv1d(5, 7, 1))
    add_adapters(network, rank=4)
    move(network)
    x = torch.randn(3, 5, 32)
    exact = network(x)
    with torch.autocast("cpu", dtype):
        found = network(x)
        assert found.dtype == dtype
        assert network[0].weight.dtype == torch.float32  # what reads it casts it
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


# ------------------------------------------------------------------------------------------------------------------- runs

TEXT = """
name: run
scale: 2
precision: fp32
device: cpu
datasets:
  train: {mode: toy_pairs, batch_size: 2}
  val: {mode: toy_pairs}
networks:
  generator:
    which_model: ToyGenerator
    width: 8
    lora: {rank: 2, alpha: 4, targets: [first, last], trained: ["norm.*"], dropout: 0.1}
steps:
  generator:
    training: generator
    optimizer_params: {lr: 1e-2, weight_decay: 0.1}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
train: {niter: 4, val_freq: 4}
logger: {print_freq: 1, save_checkpoint_freq: 2, tensorboard: false}
"""


@pytest.fixture
def base(tmp_path):
    """A file of weights without adapters."""
    network = create_network({"which_model": "ToyGenerator", "width": 8})
    torch.save(network.state_dict(), tmp_path / "base.pth")
    return tmp_path / "base.pth"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_adapters_only_and_goes_on_exactly(base, tmp_path, precision):
    told = [f"path.pretrain.generator={base}", f"precision={precision}"]
    whole = trainer(tmp_path, TEXT, "name=whole", *told)
    before = {name: value.clone() for name, value in whole.networks["generator"].state_dict().items()}
    whole.run()
    after = whole.networks["generator"].state_dict()
    moved = {name for name in before if not after[name].equal(before[name])} - {"calls"}
    factors = {f"{layer}.{factor}" for layer in ("first", "last") for factor in ("lora_a", "lora_b")}
    assert moved == factors | {"norm.weight", "norm.bias"}
    assert sum(len(group["params"]) for group in whole.steps[0].optimizer.param_groups) == len(moved)
    trainer(tmp_path, TEXT, "name=parts", "train.niter=2", *told).run()
    trainer(tmp_path, TEXT, "name=parts", *told).run()
    assert_same_tensors(tmp_path / "whole/checkpoints/4", tmp_path / "parts/checkpoints/4")


def test_files(base, tmp_path, capsys):
    run = trainer(tmp_path, TEXT, f"path.pretrain.generator={base}", "train.ema.enabled=false")
    run.run()
    network = run.networks["generator"].eval()
    x = torch.rand(1, 3, 8, 8)
    merged, adapters, again = (tmp_path / f"{name}.safetensors" for name in ("merged", "adapters", "again"))
    main(["convert", "lora", str(tmp_path / "run"), "-o", str(merged)])
    assert "2 layers merged" in capsys.readouterr().out
    plain = create_network({"which_model": "ToyGenerator", "width": 8}).eval()
    load_into(plain, read_state_dict(merged), source="merged")
    torch.testing.assert_close(plain(x), network(x))
    assert find(merged).options == {"which_model": "ToyGenerator", "width": 8, "scale": 2}
    main(["convert", "lora", str(tmp_path / "run"), "--adapters", "-o", str(adapters)])
    assert sorted(load_file(adapters)) == sorted(
        [f"{layer}.{key}" for layer in ("first", "last") for key in ("lora_a", "lora_b")] + ["norm.bias", "norm.weight"]
    )
    main(["convert", "lora", str(adapters), "--base", str(base), "-o", str(again)])
    first, second = load_file(merged), load_file(again)
    del first["calls"], second["calls"]  # a buffer, which is not trained
    assert all(first[name].equal(second[name]) for name in first)
    onward = trainer(tmp_path, TEXT, "name=on", f"path.pretrain.generator={base}", f"networks.generator.lora.start={adapters}")
    torch.testing.assert_close(onward.networks["generator"].eval()(x), network(x))
    with pytest.raises(CheckpointError, match=r"has adapters, and the network none; .*dlas convert lora"):
        trainer(
            tmp_path,
            TEXT,
            "name=x",
            "networks.generator.lora=null",
            f"path.pretrain.generator={tmp_path}/run/checkpoints/4/generator.safetensors",
        )
    with pytest.raises(CheckpointError, match="does not hold adapters of network 'generator'"):
        trainer(tmp_path, TEXT, "name=x", f"networks.generator.lora.start={adapters}", "networks.generator.lora.targets=[last]")


def test_dropout_and_activations_computed_again(tmp_path):
    text = TEXT.replace("ToyGenerator", "RRDBNet").replace("width: 8", "nf: 8").replace("[first, last]", "[conv_first]")
    text = text.replace('["norm.*"]', "[]") + "checkpointing_enabled: true\n"
    with pytest.raises(ConfigurationError, match=r"lora.dropout draws random numbers"):
        trainer(tmp_path, text)


def test_fresh_weights_keep_their_first_values(base, tmp_path):
    larger = create_network({"which_model": "ToyGenerator", "width": 8, "scale": 4})
    torch.save(larger.state_dict(), tmp_path / "other.pth")  # its last layer has another shape
    lines = ["networks.generator.lora=null", f"path.pretrain.generator={tmp_path / 'other.pth'}"]
    with pytest.raises(CheckpointError):
        trainer(tmp_path, TEXT, *lines)
    unread = trainer(tmp_path, TEXT, "networks.generator.lora=null").networks["generator"].state_dict()
    found = trainer(tmp_path, TEXT, *lines, "networks.generator.fresh=[last.*]").networks["generator"].state_dict()
    assert found["first.weight"].equal(larger.state_dict()["first.weight"])
    assert found["last.weight"].equal(unread["last.weight"])
    with pytest.raises(ConfigurationError, match="fresh: 'nothing' names no weight of the network; they are called"):
        trainer(tmp_path, TEXT, *lines, "networks.generator.fresh=[nothing]")
