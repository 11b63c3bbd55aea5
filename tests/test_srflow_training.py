"""Training SRFlow: what is frozen when, layers that are set by the first batch, and keys that are checked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import toys
from dlas.archs import create_network
from dlas.config import check
from dlas.engine.microbatch import MicroBatch, join
from dlas.errors import ConfigurationError
from dlas.layers.flow import ActNorm
from runs import assert_same_tensors, trainer

FLOW = """\
name: flow
scale: 4
datasets:
  train: {mode: builtin_photos, batch_size: 4, target_size: 16}
networks:
  flow:
    which_model: srflow
    nf: 4
    nb: 2
    gc: 4
    K: 1
    dequantise: false
    flow: {L: 2, additionalFlowNoAffine: 1, stackRRDB: {blocks: [0, 1]}, CondAffineSeparatedAndCond: {hidden_channels: 4}}
steps:
  flow:
    training: flow
    optimizer: adam
    optimizer_params: {lr: 1.0e-3, betas: [0.9, 0.99]}
    injectors:
      nll: {type: generator, generator: flow, in: [hq, lq], out: [latents, nll]}
    losses:
      nll: {type: direct, key: nll, weight: 1}
train: {niter: 4, ema: {rate: 0.9}}
logger: {print_freq: 1, tensorboard: false}
"""


def weights(run) -> dict[str, Tensor]:
    (network,) = run.networks.values()
    return {name: each.detach().clone() for name, each in network.named_parameters()}


def train_and_look(run, steps: Sequence[int]) -> list[dict[str, Tensor]]:
    """Trains; the weights at the beginning and after these iterations."""
    seen, update = [weights(run)], run.averages.update

    def look(step, held):
        update(step, held)
        if step in steps:
            seen.append(weights(run))

    run.averages.update = look
    run.run()
    return seen


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not before[name].equal(after[name])}


# ------------------------------------------------------------------------------------------------------------------ freezing

FROZEN = "networks.generator.freeze={first: {match: 'weight$', before: 2}, then: {match: 'bias$', after: 2, before: 4}}"


def test_parts_are_frozen_while_the_file_says_so(tmp_path):
    seen = train_and_look(trainer(tmp_path, toys.PSNR, FROZEN, "train.niter=5", "train.val_freq=0"), (2, 4, 5))
    for name in seen[0]:
        changes = [name in moved(one, other) for one, other in pairwise(seen)]
        assert changes == ([False, True, True] if name.endswith("weight") else [True, False, True]), name


def test_the_optimiser_passes_over_what_is_frozen(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "networks.generator.freeze={x: {match: 'weight$'}}", "train.niter=2", "train.val_freq=0")
    run.run()
    (step,) = run.steps
    names = {id(p): name for name, p in run.networks["generator"].named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in step.optimizer.state} == {"bias"}
    assert len(step.parameters) == len(names)


def test_a_run_that_stops_while_something_is_frozen_goes_on_as_if_it_had_not(tmp_path):
    common = [FROZEN, "train.val_freq=0", "logger.save_checkpoint_freq=1", "train.lr_scheme={type: constant}"]
    for name, counts in (("through", [4]), ("stopped", [1, 3, 4])):
        for count in counts:
            trainer(tmp_path, toys.PSNR, *common, f"name={name}", f"train.niter={count}").run()
    assert_same_tensors(tmp_path / "stopped/checkpoints/4", tmp_path / "through/checkpoints/4")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("encoder", "no parameter's name matches 'encoder'; they are called"),
        ("'['", r"'\[' is no regular expression: untermin"),
    ],
)
def test_an_expression_of_no_parameter_is_refused(expression, message, tmp_path):
    with pytest.raises(ConfigurationError, match=rf"generator\.freeze\.x: {message}"):
        trainer(tmp_path, toys.PSNR, f"networks.generator.freeze={{x: {{match: {expression}, before: 2}}}}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [False, True]),  # the paper: from half of the iterations on
        (["networks.flow.train_RRDB=true"], [True, True]),
        (["networks.flow.train_RRDB=false"], [False, False]),
        (["networks.flow.train_RRDB=false", "networks.flow.train_RRDB_delay=0.25"], [True, True]),
        (["networks.flow.train_RRDB_delay=0.75"], [False, True]),
        (["networks.flow.train_RRDB=true", r"networks.flow.freeze={encoder: {match: '^RRDB\.', before: 3}}"], [False, True]),
    ],
)
def test_when_the_encoder_is_trained(options, expected, tmp_path):
    run = trainer(tmp_path, FLOW, *options)
    seen = train_and_look(run, (2, 4))
    found = [any(name.startswith("RRDB.") for name in moved(one, other)) for one, other in pairwise(seen)]
    assert found == expected


def test_a_delay_of_what_is_trained_from_the_beginning_is_refused():
    with pytest.raises(ConfigurationError, match="leave train_RRDB_delay out"):
        create_network({"which_model": "srflow", "train_RRDB": True, "train_RRDB_delay": 0.5})


# --------------------------------------------------------------------------------------------------------------- first batch


def normalisations(run) -> dict[str, Tensor]:
    return {name: each for name, each in weights(run).items() if ".actnorm." in name}


def test_the_whole_first_batch_is_normalised_however_it_is_cut(tmp_path):
    """Rates of nearly nothing leave what the first batch has set."""
    common = ["train.niter=1", "steps.flow.optimizer_params.lr=1e-12"]
    whole = trainer(tmp_path, FLOW, *common, "name=whole")
    whole.run()
    expected = normalisations(whole)
    assert expected
    assert all(each.any() for each in expected.values())
    for setting in ("train.mega_batch_factor=4", "train.micro_batch_size=3"):
        cut = trainer(tmp_path, FLOW, *common, setting, f"name=cut{setting[-1]}")
        cut.run()
        torch.testing.assert_close(normalisations(cut), expected, rtol=1e-4, atol=1e-5)
        assert not any(each.awaits_batch for each in cut.networks["flow"].modules() if isinstance(each, ActNorm))
        assert all(p.requires_grad for name, p in cut.networks["flow"].named_parameters() if "upsamplerNet.layers" in name)


@pytest.mark.parametrize("setting", ["train.mega_batch_factor=1", "train.mega_batch_factor=2"])
def test_averages_begin_with_what_the_first_batch_has_set(setting, tmp_path):
    run = trainer(tmp_path, FLOW, setting, "train.niter=1", "train.ema.rate=0.999", "train.ema.post_hoc={every: 1}")
    run.run()
    present = run.networks["flow"].state_dict()
    for average in run.averages.all():
        for name, value in average.state_dict().items():
            if ".actnorm." in name:
                assert value.equal(present[name]), name
    other = "flowUpsamplerNet.layers.1.invconv.weight"
    assert not run.averages.main["flow"].state_dict()[other].equal(present[other])


def test_nothing_is_set_again_after_a_restart(tmp_path):
    common = ["train.mega_batch_factor=2", "train.lr_scheme={type: constant}", "logger.save_checkpoint_freq=1"]
    trainer(tmp_path, FLOW, *common, "name=through").run()
    trainer(tmp_path, FLOW, *common, "name=stopped", "train.niter=2", "networks.flow.train_RRDB_delay=1").run()
    run = trainer(tmp_path, FLOW, *common, "name=stopped")
    run._restore()
    assert run.runner.first_batch.waiting(["flow"]) == []
    trainer(tmp_path, FLOW, *common, "name=stopped").run()
    assert_same_tensors(tmp_path / "stopped/checkpoints/4", tmp_path / "through/checkpoints/4")


def test_what_is_joined_is_what_was_cut():
    tensors = {"x": torch.rand(4, 2), "fixed": torch.rand(2), "pair": (torch.rand(4), [torch.rand(4, 1)]), "n": torch.tensor(1)}
    batch = MicroBatch({**tensors, "deep": {"x": torch.rand(4)}, "names": list("abcd"), "word": "w"}, 0.5, [3, 4, 5, 6])
    for count in (2, 3):
        joined = join(batch.cut(count))
        assert (joined.share, joined.positions) == (pytest.approx(0.5), batch.positions)
        assert (joined.state.pop("names"), joined.state.pop("word")) == (list("abcd"), "w")
        torch.testing.assert_close(joined.state, {**tensors, "deep": batch.state["deep"]}, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------------- keys


def test_a_misspelt_key_of_the_flow_is_found_with_its_place(tmp_path):
    path: Path = tmp_path / "file.yml"
    path.write_text(FLOW.replace("flow: {L: 2, additional", "flow: {L: 2, split: {consume_ration: 0.5}, additonal"))
    errors = [each for each in check(path) if each.severity == "error"]
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "additonal" in text)
    found = {(each.path, each.mark.line, each.mark.column): each.fix for each in errors}
    assert found == {
        ("networks.flow.flow.split.consume_ration", line, 26): "did you mean 'consume_ratio'?",
        ("networks.flow.flow.additonalFlowNoAffine", line, 48): "did you mean 'additionalFlowNoAffine'?",
    }
