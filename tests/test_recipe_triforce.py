"""The recipe of four stages: they fit each other, and what is measured of them is what it is said to be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dlas.config import load
from dlas.engine.testing import run_test
from dlas.engine.trainer import Trainer

FOLDER = Path(__file__).parents[1] / "recipes/triforce"
STAGES = {"dvae": "small_1_codes", "prior": "small_2_prior", "clip": "small_3_rerank", "decoder": "small_4_decoder"}
ONLY_IN_TRAINING = {"dropout"}


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure", FOLDER / "measure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_networks_that_others_trained(stage: str) -> None:
    config = load(FOLDER / f"{STAGES[stage]}.yml")
    assert [name for name, network in config.networks.items() if network.trainable] == [stage]
    others = config.networks.keys() - {stage}
    assert config.path.pretrain.keys() == others
    for name in others:
        before = load(FOLDER / f"{STAGES[name]}.yml")
        expected = f"experiments/{before.name}/checkpoints/{before.train.niter}/{name}.ema.safetensors"
        assert config.path.pretrain[name] == expected
        trained, frozen = (
            {key: value for key, value in each.networks[name].options.items() if key not in ONLY_IN_TRAINING}
            for each in (before, config)
        )
        assert frozen == trained


def test_from_texts_to_pictures(tmp_path: Path) -> None:
    """Each stage for two steps, then the way of a text through all of them."""
    weights: dict[str, str] = {}
    settings = [f"path.experiments={tmp_path}"]
    for name, stage in STAGES.items():
        config = load(FOLDER / f"{stage}.yml")
        needed = [f"path.pretrain.{other}={weights[other]}" for other in config.path.pretrain]
        more = [*settings, *needed, "train.niter=2", "train.val_freq=0", "datasets.train.batch_size=16"]
        assert Trainer(load(FOLDER / f"{stage}.yml", more)).run().step == 2
        weights[name] = str(tmp_path / config.name / "checkpoints/2" / f"{name}.ema.safetensors")
    more = [
        *settings,
        *needed,
        f"path.run={tmp_path / config.name}",
        "eval.injectors.written.candidates=2",
        "eval.injectors.drawn.steps=2",
    ]
    result = run_test(load(FOLDER / "small_4_decoder.yml", more, mode="test"))["val"]
    names = [path.stem for path in result.folder.glob("*.png")]
    assert len(names) == 225
    assert {name.rpartition("_")[2] for name in names} >= {"zero", "nine"}


def test_equal_sets_have_no_distance(measure: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "STEPS", 150)
    (known, known_labels), (real, labels) = measure.digits("train"), measure.digits("val")
    network = measure.trained(known, known_labels)
    with torch.no_grad():
        assert (network.read(real) == labels).float().mean() > 0.85
        assert measure.distance(network, real, real) == pytest.approx(0, abs=1e-3)
        noise = torch.randn_like(real)
        little, much = (measure.distance(network, (real + scale * noise).clamp(0, 1), real) for scale in (0.1, 0.4))
        assert much > 2 * little > 0
