"""The recipes for SRFlow: DL-Art-School's, unedited but for data, and this project's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dlas.config import check, load
from dlas.engine.trainer import Trainer
from runs import rows
from test_upstream_recipes import chunks, data, photographs, recipe  # noqa: F401  # fixtures

RECIPES = Path(__file__).parents[1] / "recipes/srflow"
ENCODER = ["networks.generator.nf=4", "networks.generator.nb=2", "networks.generator.gc=4"]
FLOW = [*ENCODER, "networks.generator.K=1", "networks.generator.flow.stackRRDB.blocks=[0,1]"]
UPSTREAM = [*FLOW, "networks.generator.flow.K=1", "datasets.train.target_size=32"]


@pytest.fixture
def first_stage(data, tmp_path) -> str:  # noqa: F811
    """Trains upstream's first stage; the file that its second stage starts from."""
    run = Trainer(load(recipe("train_div2k_rrdb_psnr"), [*ENCODER, *data]))
    assert run.run().step == 2
    assert [row for row in rows(tmp_path / "train_div2k_rrdb_psnr", "val") if math.isfinite(row["psnr_y"])]
    return str(tmp_path / "train_div2k_rrdb_psnr/checkpoints/2/generator.ema.safetensors")


def test_both_stages_of_dl_art_school_run_unedited(data, first_stage, tmp_path):  # noqa: F811
    photographs(tmp_path / "random", 3, 64, 64)
    evaluated = [f"eval.evaluators.gaussian.dataset.paths={tmp_path / 'random'}"]
    evaluated += ["eval.evaluators.gaussian.dataset.target_size=48", "train.val_freq=2"]
    own = [each for each in data if "datasets.val" not in each]
    config = load(
        recipe("train_div2k_srflow"),
        [*own, *evaluated, *UPSTREAM, f"networks.generator.pretrain_rrdb={first_stage}"],
    )
    run = Trainer(config)
    before = {name: weight.detach().clone() for name, weight in run.networks["generator"].named_parameters()}
    assert run.run().step == 2
    changed = {name for name, weight in run.networks["generator"].named_parameters() if not weight.equal(before[name])}
    assert changed
    assert not any(name.startswith("RRDB.") for name in changed)  # train_RRDB is false
    folder = tmp_path / "train_div2k_srflow"
    assert all(math.isfinite(row["generator/log_likelihood"]) for row in rows(folder, "train"))
    (figures,) = rows(folder, "val")
    assert figures["gaussian_diff"] < -0.5 * math.log(2 * math.pi)
    assert {path.name for path in (folder / "val/gaussian").iterdir() if path.is_dir()} == {"0", "1", "2"}


def test_an_evaluator_joins_what_is_evaluated_already(tmp_path):
    """A file with a picture to validate keeps its injectors and figures."""
    text = recipe("train_div2k_srflow").read_text()
    path = tmp_path / "file.yml"
    own = "output_state: eval_gen\n  values: [nll]\n  injectors:\n"
    own += "    g: {type: flow_sample, generator: generator, out: eval_gen}\n"
    own += "    n: {type: flow_nll, generator: generator, out: nll}"
    path.write_text(text.replace("output_state: eval_gen", own))
    config = load(path)
    assert config.eval.values == ["nll", "gaussian_diff"]
    assert list(config.eval.injectors) == ["g", "n", "gaussian"]
    path.write_text(text.replace("output_state: eval_gen", "output_state: gen"))
    config = load(path)  # the step makes it
    assert list(config.eval.injectors) == ["z_inj", "gen_inj", "gaussian"]
    assert config.eval.batch_size == 2
    assert config.datasets["gaussian"].mode == "imagefolder"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      for: generator\n", "", "needs a network ('for') and a data set ('dataset')"),
        ("    gaussian:\n", "    train:\n", "a data set is called 'train', too"),
    ],
)
def test_an_evaluator_that_cannot_be_read_is_refused(old, new, message, tmp_path):
    path = tmp_path / "file.yml"
    text = recipe("train_div2k_srflow").read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert any(message in each.message for each in check(path) if each.severity == "error")


# --------------------------------------------------------------------------------------------------------- this project's


@pytest.mark.parametrize(("first", "second"), [("psnr", "srflow"), ("small_psnr", "small")])
def test_the_second_stage_starts_from_what_the_first_leaves(first, second):
    before, after = (load(RECIPES / f"{name}.yml") for name in (first, second))
    options = after.networks["generator"].options
    expected = f"experiments/{before.name}/checkpoints/{before.train.niter}/generator.ema.safetensors"
    assert options["pretrain_rrdb"] == expected
    encoder = before.networks["generator"].options
    assert all(options.get(key) == encoder.get(key) for key in ("nf", "nb", "gc"))


def test_the_small_stages_follow_each_other_shrunk(tmp_path):
    common = [f"path.experiments={tmp_path}", "train.niter=2", "train.val_freq=0", "logger.tensorboard=false", *ENCODER]
    common += ["datasets.train.batch_size=2", "datasets.train.target_size=32"]
    Trainer(load(RECIPES / "small_psnr.yml", [*common, "datasets.val={mode: toy_pairs}", "eval.metrics=[psnr]"])).run()
    weights = tmp_path / "srflow_small_psnr/checkpoints/2/generator.ema.safetensors"
    pretrained = f"networks.generator.pretrain_rrdb={weights}"
    run = Trainer(
        load(RECIPES / "small.yml", [*common, pretrained, "networks.generator.K=1", "datasets.val={mode: toy_pairs}"])
    )
    before = run.networks["generator"].RRDB.conv_first.weight.detach().clone()
    assert run.run().step == 2
    assert not run.networks["generator"].RRDB.conv_first.weight.equal(before)  # in the second half
    (figures,) = rows(tmp_path / "srflow_small", "val")
    assert all(math.isfinite(figures[key]) for key in ("nll", "bits_per_dimension", "latent_log_density", "local_gain"))
    assert figures["deviation"] > 0


def test_the_settings_are_the_papers():
    paper = load(RECIPES / "srflow.yml")
    network = paper.networks["generator"].options
    assert not {"train_RRDB", "train_RRDB_delay", "dequantise", "quant"} & network.keys()  # the network's defaults
    (step,) = paper.steps.values()
    assert step.optimizer_params["betas"] == [0.9, 0.99]
    assert torch.tensor(paper.train.lr_scheme.options["gen_lr_steps"]).div(paper.train.niter).tolist() == pytest.approx(
        [0.5, 0.75, 0.9, 0.95]
    )
