"""Classifiers from YAML: torchvision's data sets and networks, cross-entropy, errors and distances in validation."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs import create_network
from dlas.compat.torchvision import prepare_torchvision
from dlas.config import check
from dlas.context import Context
from dlas.data.base import BadSample, Request, create_dataset
from dlas.errors import ConfigurationError, DataError, TrainingError
from dlas.injectors import create_injector
from dlas.losses import create_loss
from runs import rows, trainer

MEAN, DEVIATION = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def torchvision(part: str) -> Any:
    """A part of torchvision; the test is left out where it is not installed."""
    prepare_torchvision()
    return pytest.importorskip(f"torchvision.{part}")


def context(training: bool = True) -> Context:
    return Context({}, (), 0, training=training, seed=0, positions=[0])


# ---- the loss ---------------------------------------------------------------------------------------------------------------


def loss(logits: Tensor, labels: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    options = {"type": "crossentropy", "logits": "x", "labels": "k", **options, **({} if mask is None else {"mask": "m"})}
    return create_loss(options)({"x": logits, "k": labels, "m": mask}, context())


def test_one_class_and_its_accuracy() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    value, extra = loss(logits, labels)
    torch.testing.assert_close(value, F.cross_entropy(logits, labels))
    torch.testing.assert_close(extra["accuracy"], (logits.argmax(1) == labels).float().mean())
    sequence = torch.randn(2, 3, 4)
    steps = torch.randint(4, (2, 3))
    torch.testing.assert_close(loss(sequence, steps)[0], F.cross_entropy(sequence.flatten(0, 1), steps.flatten()))
    smoothed, _ = loss(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_places_of_a_map() -> None:
    maps, labels = torch.randn(2, 4, 3, 5), torch.randint(4, (2, 6, 10))
    nearest = labels[:, ::2, ::2]
    value, _ = loss(maps, labels, swap_channels=True, rescale=True)
    torch.testing.assert_close(value, F.cross_entropy(maps, nearest))
    mask = torch.zeros(2, 3, 5)
    mask[0, 1, 2] = 1
    value, extra = loss(maps, nearest, mask, swap_channels=True)
    torch.testing.assert_close(value, F.cross_entropy(maps[0, :, 1, 2], nearest[0, 1, 2]))
    assert extra["accuracy"] in (0, 1)
    with pytest.raises(ValueError, match="'k' must have the shape"):
        loss(maps, labels, swap_channels=True)


def test_several_classes_and_distributions() -> None:
    logits, labels = torch.randn(5, 4), torch.rand(5, 4)
    torch.testing.assert_close(loss(logits, labels, subtype="bce"), F.binary_cross_entropy_with_logits(logits, labels))
    torch.testing.assert_close(loss(logits, labels, subtype="soft_ce"), F.cross_entropy(logits, labels.softmax(1)))
    maps = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(
        loss(maps, maps.sigmoid(), subtype="bce", swap_channels=True),
        F.binary_cross_entropy_with_logits(maps, maps.sigmoid()),
    )
    with pytest.raises(ConfigurationError, match="label_smoothing belongs to subtype: ce"):
        loss(logits, labels, subtype="bce", label_smoothing=0.1)


# ---- figures ----------------------------------------------------------------------------------------------------------------


def figure(state: dict[str, Tensor], **options: Any) -> Tensor:
    written: Tensor = create_injector({**options, "out": "o"})(state, context(training=False))["o"]
    return written


def test_the_error_counts_the_most_probable_classes() -> None:
    state = {"x": torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0]]), "k": torch.tensor([1, 1, 0])}
    options = {"type": "classification_error", "logits": "x", "labels": "k"}
    assert figure(state, **options).tolist() == [0, 1, 1]
    assert figure(state, **options, top=2).tolist() == [0, 0, 1]
    with pytest.raises(TrainingError, match="top 4"):
        figure(state, **options, top=4)


def test_distances_of_features() -> None:
    state = {"a": torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "b": torch.tensor([[0.0, 0.0], [0.0, 2.0]]), "c": torch.rand(2, 3)}
    options = {"type": "feature_distance", "one": "a"}
    torch.testing.assert_close(figure(state, **options, two="b"), torch.tensor([5.0, 5**0.5]))
    torch.testing.assert_close(figure(state, **options, two="b", normalize=True), torch.tensor([1.0, 2**0.5]))
    with pytest.raises(TrainingError, match="expected the same"):
        figure(state, **options, two="c")


# ---- data sets --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """64 pictures of MNIST's format: a bright column where the class says, for torchvision to read."""
    torchvision("datasets")
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    labels = np.arange(64, dtype=np.uint8) % 4
    pictures = np.random.default_rng(0).integers(0, 60, (64, 28, 28), dtype=np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[4 + 6 * label : 8 + 6 * label] = 255  # rows: mirroring must not change the class
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            header = struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def digits(root: Path, phase: str = "train", **more: Any) -> Any:
    options = {"mode": "torch_dataset", "dataset": "mnist", "kwargs": {"root": str(root)}, "image_size": 28, **more}
    return create_dataset(options, phase=phase, name=phase)


def test_labelled_images_of_torchvision(mnist: Path) -> None:
    data = digits(mnist, "val")
    assert len(data) == 64
    sample = data[Request(5, 0, 0)]
    assert sample["labels"] == 1
    assert sample["hq"] is sample["lq"]
    restored = sample["hq"] * DEVIATION + MEAN
    torch.testing.assert_close(restored[:, 10:14], torch.ones(3, 4, 28), atol=1e-5, rtol=0)
    flips = [digits(mnist)[Request(5, position, 0)]["hq"] for position in range(12)]
    assert {bool(each.equal(sample["hq"])) for each in flips} == {True, False}
    assert all(each.equal(sample["hq"]) or each.flip(-1).equal(sample["hq"]) for each in flips)
    few = digits(mnist, "val", offset=60, fixed_len=10, normalize=False)
    assert len(few) == 4
    assert few[Request(0, 0, 0)]["labels"] == 0
    assert few[Request(0, 0, 0)]["name"] == "60"
    with pytest.raises(ConfigurationError, match="offset: 64 leaves nothing of 64"):
        digits(mnist, offset=64)


def test_images_are_brought_to_their_size(mnist: Path) -> None:
    for side in (14, 40):
        for crop in (False, True):
            data = digits(mnist, image_size=side, random_crop=crop)
            made = [data[Request(0, position, 0)]["hq"] for position in range(8)]
            assert {tuple(each.shape) for each in made} == {(3, side, side)}
            mirrored = {each.equal(made[0]) or each.flip(-1).equal(made[0]) for each in made}
            assert mirrored == ({True, False} if crop else {True})
            assert made[3].equal(data[Request(0, 3, 0)]["hq"])


def test_what_torchvision_refuses_is_said(tmp_path: Path, mnist: Path) -> None:
    with pytest.raises(DataError, match="cannot be read from 'root'"):
        digits(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="MNIST refuses them"):
        digits(mnist, kwargs={"root": str(mnist), "sort": True})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for number in range(2):
        folder = tmp_path / "pairs" / str(number)
        folder.mkdir(parents=True)
        for name, size in (("1.jpg", (40, 80)), ("2.jpg", (64, 64))):
            cv2.imwrite(str(folder / name), np.full((*size, 3), 90 + number, np.uint8))
        torch.save(((20, 10), (32, 16)), folder / "coords.pth")
    return tmp_path / "pairs"


def test_points_are_shares_of_their_images(pairs: Path) -> None:
    data = create_dataset({"mode": "point_pairs", "path": str(pairs), "size": 32}, phase="val", name="val")
    sample = data[Request(0, 0, 0)]
    assert sample["img1"].shape == sample["img2"].shape == (3, 32, 32)
    torch.testing.assert_close(sample["coords1"], torch.tensor([[0.25, 0.25]]))
    torch.testing.assert_close(sample["coords2"], torch.tensor([[0.5, 0.25]]))
    torch.save(((20, 90), (32, 16)), pairs / "1" / "coords.pth")
    with pytest.raises(BadSample, match=r"point 1 \[20.0, 90.0\] is outside 1.jpg"):
        data[Request(1, 0, 0)]
    torch.save(torch.zeros(3), pairs / "1" / "coords.pth")
    with pytest.raises(BadSample, match="expected two points"):
        data[Request(1, 0, 0)]
    with pytest.raises(DataError, match="no pairs"):
        create_dataset({"mode": "point_pairs", "path": str(pairs / "0"), "size": 32}, phase="val", name="val")


# ---- from YAML --------------------------------------------------------------------------------------------------------------

CLASSIFIER = """
name: run
datasets:
  train: {{mode: torch_dataset, dataset: mnist, kwargs: {{root: {root}}}, image_size: 28, batch_size: 16}}
  val: {{mode: torch_dataset, dataset: mnist, kwargs: {{root: {root}, train: false}}, image_size: 28}}
networks:
  net: {{{network}}}
steps:
  net:
    training: net
    optimizer: adam
    optimizer_params: {{lr: 0.003}}
    injectors:
      classify: {{type: generator, generator: net, in: hq, out: logits}}
      error: {{type: classification_error, logits: logits, labels: labels, out: error, eval: true}}
    losses: {{class: {{type: crossentropy, logits: logits, labels: labels, weight: 1}}}}
train: {{niter: 40, ema: {{enabled: false}}}}
eval: {{output_state: hq, metrics: [], values: [error], batch_size: 16, save_images: false}}
logger: {{print_freq: 10, save_checkpoint_freq: 40, tensorboard: false}}
"""


@pytest.mark.parametrize(
    "network",
    [
        "which_model: resnet50, custom_head_logits: 4, blocks: [1, 1], width: 8",
        "which_model: torchvision, model: mobilenet_v3_small, num_classes: 4, options: {width_mult: 0.5}",
    ],
)
def test_a_classifier_trains_and_is_validated(network: str, mnist: Path, tmp_path: Path) -> None:
    text = CLASSIFIER.format(root=mnist, network=network)
    learns = "resnet50" in network
    trainer(tmp_path, text, *([] if learns else ["train.niter=2", "logger.print_freq=1"])).run()
    train, val = rows(tmp_path / "run", "train")[-1], rows(tmp_path / "run", "val")[-1]
    assert 0 <= train["net/class_accuracy"] <= 1
    assert val["error"] < 0.3 if learns else 0 <= val["error"] <= 1


def test_networks_of_torchvision_by_name() -> None:
    models = torchvision("models")
    network = create_network({"which_model": "torchvision", "model": "resnet18", "num_classes": 7})
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    theirs = models.resnet18(num_classes=7)
    network.load_state_dict(network.rename_state_dict(theirs.state_dict()))  # the same entries: published files fit
    x = torch.rand(2, 3, 32, 32)
    assert network.eval()(x).equal(theirs.eval()(x))
    with pytest.raises(ConfigurationError, match="did you mean 'resnet18'"):
        create_network({"which_model": "torchvision", "model": "resnet8"})
    with pytest.raises(ConfigurationError, match="refuses"):
        create_network({"which_model": "torchvision", "model": "resnet18", "options": {"depth": 3}})


def test_similar_and_dissimilar_points_are_measured(pairs: Path, tmp_path: Path) -> None:
    text = f"""
name: run
datasets:
  train: {{mode: byol_dataset, crop_size: 32, key2: hq, batch_size: 4, dataset: {{mode: builtin_photos, target_size: 32}}}}
  similar: {{mode: point_pairs, path: {pairs}, size: 32}}
networks:
  net:
    which_model: pixel_local_byol
    subnet: {{which_model: segformer, embed_dims: [8], depths: [1], num_heads: [1], reductions: [2], decoder_dim: 8}}
    image_size: 32
    hidden_layer: tail
    projection_size: 8
    projection_hidden_size: 16
steps:
  net:
    training: net
    optimizer_params: {{lr: 0.001}}
    injectors: {{compare: {{type: generator, generator: net, in: aug1, out: loss}}}}
    losses: {{byol: {{type: direct, key: loss, weight: 1}}}}
train: {{niter: 1}}
eval:
  output_state: img1
  metrics: []
  values: [l2]
  save_images: false
  injectors:
    one: {{type: generator, generator: net, method: features, in: [img1, coords1], out: one}}
    two: {{type: generator, generator: net, method: features, in: [img2, coords2], out: two}}
    distance: {{type: feature_distance, one: one, two: two, out: l2}}
logger: {{print_freq: 1, tensorboard: false}}
"""
    trainer(tmp_path, text).run()
    assert rows(tmp_path / "run", "val")[-1]["l2"] >= 0
    assert [str(p) for p in check(tmp_path / "options.yml") if p.severity == "error"] == []
