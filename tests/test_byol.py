"""BYOL: views, the target network, resuming, accumulation, and that representations do not collapse."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.archs.pixel_local_byol import at_points, shared_points
from dlas.compat.torchvision import prepare_torchvision
from dlas.config import load
from dlas.data.base import Request, create_dataset
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError
from dlas.layers.recompute import recompute
from dlas.layers.views import DRAWS, GEOMETRY_ALONE, ViewRules, draw_cuts, make_views
from dlas.registry import ARCHS
from runs import assert_same_tensors, batches, rows, trainer

RECIPES = Path(__file__).resolve().parent / "upstream-recipes"
SUBNET = {"which_model": "resnet50", "blocks": [1, 1], "width": 8, "small_pictures": True}
DIGITS = """
name: run
datasets:
  train:
    mode: byol_dataset
    batch_size: 32
    crop_size: 8
    key2: hq
    least_area: 0.4
    dataset: {mode: digits, channels: 3}
networks:
  net:
    which_model: byol
    subnet: {which_model: resnet50, blocks: [1, 1], width: 8, small_pictures: true}
    image_size: 8
    hidden_layer: avgpool
    projection_size: 32
    projection_hidden_size: 64
    report_spread: true
steps:
  net:
    training: net
    optimizer: lars
    optimizer_params: {lr: 1.0, weight_decay: 1.5e-6, momentum: 0.9, lars_coefficient: 0.01}
    injectors: {compare: {type: generator, generator: net, in: [aug1, aug2], out: [loss, spread]}}
    losses: {byol: {type: direct, key: loss, weight: 1}, spread: {type: direct, key: spread, weight: 0}}
train: {niter: 4}
logger: {print_freq: 1, save_checkpoint_freq: 2, tensorboard: false}
"""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(name: str, **more: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    options, inputs = ARCHS.get(name).tiny()
    return create_network({"which_model": name, **options, **more}), inputs


# ---- views ------------------------------------------------------------------------------------------------------------------


def test_a_view_shows_what_its_cut_says() -> None:
    """A picture whose red and green are x and y tells where each pixel of a view was."""
    side = 64
    places = (torch.arange(side) + 0.5) / side
    picture = torch.stack((places.expand(side, -1), places[:, None].expand(-1, side), torch.zeros(side, side)))
    views, cuts = make_views(picture.expand(20, -1, -1, -1), torch.rand(20, DRAWS), GEOMETRY_ALONE, 32)
    points = views[:, :2].flatten(2).transpose(1, 2)
    grid = torch.stack(torch.meshgrid((places := (torch.arange(32) + 0.5) / 32), places, indexing="xy"), dim=-1).flatten(0, 1)
    inside = ((points > 1.5 / side) & (points < 1 - 1.5 / side)).all(-1)  # at the edge a cut repeats the last pixel
    torch.testing.assert_close(cuts.to_view(points)[inside], grid.expand(20, -1, -1)[inside], atol=1e-4, rtol=0)
    assert set(cuts.flipped.tolist()) == {0.0, 1.0}


def test_cuts_stay_within_the_picture_and_above_the_least_area() -> None:
    cuts = draw_cuts(torch.rand(5000, DRAWS), ViewRules(least_area=0.4))
    for low, size in ((cuts.left, cuts.width), (cuts.top, cuts.height)):
        assert low.min() >= 0
        assert (low + size).max() <= 1 + 1e-6
        assert size.min() > 0.5  # so that any two overlap
    area = cuts.width * cuts.height
    assert area.min() > 0.35  # a side that would be longer than the picture's is shortened
    assert (cuts.width / cuts.height).max() <= 4 / 3 + 1e-4


def test_colours_change_as_the_rules_say() -> None:
    pictures = torch.rand(1, 3, 8, 8).expand(400, -1, -1, -1)
    whole = torch.rand(400, DRAWS)
    whole[:, 0], whole[:, 1], whole[:, 4] = 1 - 1e-6, 0.5, 1.0  # all of the picture, not mirrored
    untouched, _ = make_views(pictures, whole, GEOMETRY_ALONE)
    torch.testing.assert_close(untouched, pictures, atol=1e-4, rtol=0)
    grey, _ = make_views(pictures, whole, ViewRules(jitter=0, blur=0, grey=0.2))
    is_grey = (grey[:, 0] == grey[:, 1]).flatten(1).all(1)
    assert 0.1 < is_grey.float().mean() < 0.3
    hue, _ = make_views(pictures, whole, ViewRules(brightness=0, contrast=0, saturation=0, grey=0, blur=0))
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(torch.einsum("c,bchw->bhw", luma, hue), torch.einsum("c,bchw->bhw", luma, untouched))
    assert 0.7 < (hue != untouched).flatten(1).any(1).float().mean() < 0.9
    blurred, _ = make_views(pictures, whole, ViewRules(jitter=0, grey=0, blur=1.0))
    assert (blurred.std((-2, -1)) < untouched.std((-2, -1))).all()


def views(**more: Any) -> Any:
    inner = {"mode": "builtin_photos", "scale": 1, "target_size": 32, **more.pop("inner", {})}
    return create_dataset({"mode": "byol_dataset", "dataset": inner, "crop_size": 24, **more}, phase="train", name="train")


def test_views_are_a_function_of_seed_and_position() -> None:
    data = views()
    sample = data[Request(1, 5, 7)]
    assert sample["aug1"].shape == sample["aug2"].shape == (3, 24, 24)
    assert not sample["aug1"].equal(sample["aug2"])
    again = views()[Request(1, 5, 7)]
    assert all(sample[key].equal(again[key]) for key in ("aug1", "aug2", "hq"))
    for other in (Request(1, 6, 7), Request(1, 5, 8)):
        assert not data[other]["aug1"].equal(sample["aug1"])
    assert 0 <= sample["aug1"].min() <= sample["aug1"].max() <= 1


def test_the_other_data_sets_normalisation_comes_after_the_colours(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    inner = {"mode": "imagefolder", "paths": str(tmp_path), "scale": 1, "target_size": 32, "skip_lq": True}
    made = [
        create_dataset({"mode": "byol_dataset", "crop_size": 32, **more}, phase="train", name="train")[Request(0, 3, 0)]
        for more in ({"dataset": {**inner, "normalize": "imagenet"}}, {"dataset": inner, "normalize": True}, {"dataset": inner})
    ]
    assert made[0]["aug1"].equal(made[1]["aug1"])
    assert made[0]["hq"].equal(made[2]["hq"])
    mean, deviation = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(made[0]["aug1"], (made[2]["aug1"] - mean) / deviation)


def test_a_key_that_is_no_picture_is_named() -> None:
    with pytest.raises(ConfigurationError, match="key2 'depth' must be a picture"):
        views(key2="depth")[Request(0, 0, 0)]


# ---- the network ------------------------------------------------------------------------------------------------------------


def test_the_target_follows_once_an_update_and_gets_no_gradient() -> None:
    network, inputs = tiny("byol")
    network(*inputs).backward()
    assert all(weight.grad is None for weight in network.target_encoder.parameters())
    online = dict(network.online_encoder.named_parameters())
    with torch.no_grad():
        for weight in online.values():
            weight.add_(1.0)
    before = copy.deepcopy(dict(network.target_encoder.named_parameters()))
    network.after_update()
    for name, weight in network.target_encoder.named_parameters():
        torch.testing.assert_close(weight, 0.99 * before[name] + 0.01 * online[name])


def test_the_loss_is_that_of_the_paper() -> None:
    network, (one, two) = tiny("byol", report_spread=True)
    loss, spread = network(one, two)

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    projections = [network.online_encoder(view) for view in (one, two)]
    predictions = [unit(network.online_predictor(each)) for each in projections]
    targets = [unit(network.target_encoder(view)) for view in (one, two)]
    errors = [(predictions[0] - targets[1]).square().sum(-1), (predictions[1] - targets[0]).square().sum(-1)]
    torch.testing.assert_close(loss, (errors[0] + errors[1]).mean())
    assert 0 < spread < 1.5
    assert network(one, one)[1] > 0
    same = one[:1].expand(4, -1, -1, -1)
    assert network.eval()(same, same)[1] < 1e-3  # what a collapse looks like


def test_layers_by_name_and_number_and_what_lies_behind() -> None:
    options = {"which_model": "byol", "subnet": SUBNET, "image_size": 8, "projection_size": 8, "projection_hidden_size": 16}
    named, numbered = (create_network({**options, "hidden_layer": layer}) for layer in ("avgpool", -2))
    assert named.online_encoder.layer == numbered.online_encoder.layer == "avgpool"
    assert not named.online_encoder.net.fc.weight.requires_grad
    assert named.features(torch.rand(2, 3, 8, 8)).shape == (2, 64)
    structural = create_network({**options, "hidden_layer": "layer1", "use_structural_mlp": True})
    assert structural(*torch.rand(2, 4, 3, 8, 8)).isfinite()
    for layer, words in (("avgpol", "no layer 'avgpol'; its layers: conv1"), (40, "none of number 40")):
        with pytest.raises(ConfigurationError, match=words):
            create_network({**options, "hidden_layer": layer})
    with pytest.raises(ValueError, match="two views"):
        named(torch.rand(4, 3, 8, 8))


def test_views_made_on_the_device() -> None:
    network, (pictures, _) = tiny("byol", aug_enable=True)
    first, second = network(pictures), network(pictures)
    assert not first.equal(second)
    network.eval()
    assert network(pictures).equal(network(pictures))


def test_points_of_two_views_show_the_same_place() -> None:
    one, two = (draw_cuts(torch.rand(50, DRAWS), ViewRules(least_area=0.4)) for _ in range(2))
    points = shared_points(one, two, torch.rand(50, 30, 2))
    for cuts in (one, two):
        inside = cuts.to_view(points)
        assert inside.min() > -1e-5
        assert inside.max() < 1 + 1e-5
    places = (torch.arange(16) + 0.5) / 16
    coordinates = torch.stack((places.expand(16, -1), places[:, None].expand(-1, 16))).expand(50, -1, -1, -1)
    kept = points.clamp(1 / 32, 31 / 32)
    torch.testing.assert_close(at_points(coordinates, kept), kept)


def test_the_trained_subnet_is_taken_from_a_checkpoint() -> None:
    for name, other in (("byol", "resnet50"), ("pixel_local_byol", "segformer")):
        network, _ = tiny(name)
        subnet = create_network(ARCHS.get(name).tiny()[0]["subnet"])
        subnet.load_state_dict(ARCHS.get(other).rename_state_dict(network.state_dict()))
        assert all(value.equal(network.online_encoder.net.state_dict()[key]) for key, value in subnet.state_dict().items())


def test_recomputing_takes_a_batch_into_running_statistics_once() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    again = copy.deepcopy(plain)
    x = torch.randn(2, 3, 8, 8)
    plain(x).sum().backward()
    recompute(again, x, when=True).sum().backward()
    assert all(value.equal(again.state_dict()[key]) for key, value in plain.state_dict().items())
    assert again[1].momentum == 0.1


def test_resnet50_has_torchvisions_entries_and_numbers() -> None:
    prepare_torchvision()
    models = pytest.importorskip("torchvision.models")
    own, theirs = create_network({"which_model": "resnet52", "custom_head_logits": 7}), models.resnet50(num_classes=7)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x))


def test_segformer_has_the_published_number_of_weights() -> None:
    """3.3 million in the encoder and 3.8 in all, table 1 of the paper; exactly, those of the published B0 for 150 classes."""
    network = create_network({"which_model": "segformer", "num_classes": 150})
    assert sum(weight.numel() for weight in network.stages.parameters()) == 3_319_392
    assert sum(weight.numel() for weight in network.parameters()) == 3_752_694
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 150, 16, 24)


# ---- training ---------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "whole", DIGITS).run()
    trainer(tmp_path / "parts", DIGITS, "train.niter=2").run()
    trainer(tmp_path / "parts", DIGITS).run()
    assert_same_tensors(*(tmp_path / name / "run" / "checkpoints" / "4" for name in ("whole", "parts")))


def test_the_target_moves_once_however_many_micro_batches(tmp_path: Path) -> None:
    run = trainer(tmp_path, DIGITS, "train.mega_batch_factor=4")
    network = run.networks["net"]
    before = copy.deepcopy(network.target_encoder.state_dict())
    run.iterate(batches(run, 1)[0])
    online = dict(network.online_encoder.named_parameters())
    for name, weight in network.target_encoder.named_parameters():
        torch.testing.assert_close(weight, before[name].lerp(online[name], 0.01), msg=name)
    counts = [value for key, value in network.target_encoder.state_dict().items() if key.endswith("num_batches_tracked")]
    assert all(count == 8 for count in counts)  # statistics: both views of each micro-batch


def test_representations_do_not_collapse(tmp_path: Path) -> None:
    """Vectors stay apart; without what keeps them apart (predictor, slow target, normalisation) they do not."""
    found = {}
    for name in ("byol", "attraction alone"):
        (tmp_path / name).mkdir()
        run = trainer(tmp_path / name, DIGITS, "datasets.train={mode: digits, channels: 3, batch_size: 32}",
                      "networks.net.aug_enable=true", "steps.net.injectors.compare.in=hq", "train.niter=50",
                      "steps.net.optimizer=adam", "steps.net.optimizer_params={lr: 0.003}", "logger.print_freq=10",
                      "logger.save_checkpoint_freq=50")  # fmt: skip
        network = run.networks["net"]
        if name != "byol":
            network.decay = 0.0
            for module in (
                network.online_predictor,
                network.online_encoder.projector[-1],
                network.target_encoder.projector[-1],
            ):
                module[1] = nn.Identity()
            network.online_predictor = nn.Identity()
        run.run()
        found[name] = rows(tmp_path / name / "run", "train")[-1]["net/spread"]
    assert found["byol"] > 0.6
    assert found["attraction alone"] < 0.3


# ---- recipes of DL-Art-School -----------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, path: str, *small: str) -> Trainer:
    generator = np.random.default_rng(7)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        picture = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (40, 40))
        cv2.imwrite(str(tmp_path / "pictures" / f"{number}.png"), picture)
    return Trainer(load(RECIPES / path, [
        f"datasets.train.dataset.paths={tmp_path / 'pictures'}", "datasets.train.dataset.target_size=32",
        "datasets.train.crop_size=32", "networks.generator.image_size=32", "datasets.train.batch_size=8",
        "datasets.train.n_workers=0", f"path.experiments={tmp_path}", "train.niter=2", "logger.print_freq=1",
        "logger.tensorboard=false", "networks.generator.projection_hidden_size=16", "networks.generator.projection_size=8",
        *small,
    ]))  # fmt: skip


@pytest.mark.parametrize(
    ("path", "small"),
    [
        ("byol/train_div2k_byol.yml", ["blocks=[1,1,1,1]", "width=4"]),
        ("segformer/train_byol_segformer.yml", ["embed_dims=[4,8,12,16]", "depths=[1,1,1,1]", "num_heads=[1,1,1,1]"]),
    ],
)
def test_the_recipes_train(path: str, small: list[str], tmp_path: Path) -> None:
    run = recipe(tmp_path, path, *(f"networks.generator.subnet.{each}" for each in small))
    first = copy.deepcopy(run.networks["generator"].state_dict())
    assert run.run().step == 2
    last = run.networks["generator"].state_dict()
    for part in ("online_encoder.net", "online_encoder.projector", "online_predictor", "target_encoder.net"):
        assert any(not value.equal(first[key]) for key, value in last.items() if key.startswith(part)), part
    found = rows(next(tmp_path.glob("train_*")), "train")
    assert all(0 < row["generator/byol_loss"] < 8 for row in found)


# ---- recipes of the project -------------------------------------------------------------------------------------------------

OWN = Path(__file__).resolve().parents[1] / "recipes/byol"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of pictures, a folder each."""
    for name in ("one", "two"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(3):
            picture = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "classes" / name / f"{number}.png"), picture)
    return tmp_path / "classes"


def test_the_classifier_begins_with_what_the_first_recipe_trained(classes: Path, tmp_path: Path) -> None:
    prepare_torchvision()
    pytest.importorskip("torchvision.datasets")
    shared = [f"path.experiments={tmp_path}", "precision=fp32", "train.niter=2", "train.lr_scheme.total_steps=2",
              "datasets.train.batch_size=4", "datasets.train.n_workers=0", "logger.tensorboard=false"]  # fmt: skip
    small = ["blocks=[1,1]", "width=4"]
    Trainer(load(OWN / "full.yml", [
        *shared, *(f"networks.byol.subnet.{each}" for each in small), f"datasets.train.dataset.paths={classes}",
        "datasets.train.dataset.target_size=32", "datasets.train.crop_size=32", "networks.byol.image_size=32",
        "networks.byol.projection_size=8", "networks.byol.projection_hidden_size=16",
    ])).run()  # fmt: skip
    trained = tmp_path / "byol_resnet50/checkpoints/2/byol.safetensors"
    run = Trainer(load(OWN / "classifier.yml", [
        *shared, *(f"networks.classifier.{each}" for each in small), f"path.pretrain.classifier={trained}",
        "datasets.train.image_size=32", "datasets.val.image_size=32", "networks.classifier.custom_head_logits=2",
        *(f"datasets.{phase}.kwargs.root={classes}" for phase in ("train", "val")), "train.val_freq=2",
        "eval.values=[error]", "steps.classifier.injectors.error5.top=2",
    ]))  # fmt: skip
    assert run.networks["classifier"].conv1.weight.equal(load_file(trained)["online_encoder.net.conv1.weight"])
    run.run()
    assert 0 <= rows(tmp_path / "byol_classifier", "val")[-1]["error"] <= 1


def test_the_probe_tells_both_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    Trainer(load(OWN / "small.yml", [
        f"path.experiments={tmp_path}", "train.niter=1", "train.lr_scheme.total_steps=1", "networks.byol.subnet.width=4",
        "logger.tensorboard=false",
    ])).run()  # fmt: skip
    spec = importlib.util.spec_from_file_location("probe", OWN / "probe.py")
    assert spec is not None and spec.loader is not None
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    probe.main(tmp_path / "byol_small")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[-2:]] == ["untrained", "after 1 steps"]
    assert all(line.count("%") == 2 for line in lines[-2:])
