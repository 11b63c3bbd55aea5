"""What is not finite is named: loss, state key, layer, operation, sample; and looking changes nothing."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import toys
from dlas.context import Context
from dlas.engine.diagnosis import Diagnosis, diagnose, trace_gradient
from dlas.engine.findings import contents
from dlas.engine.microbatch import split_batch
from dlas.engine.trainer import Trainer
from runs import batches, trainer

NAN, INF = float("nan"), float("inf")


def prepared(folder, text=toys.PSNR, *overrides: str, parts: int = 1, step: int = 0):
    """A trainer, one of its steps, and the micro-batches and contexts of the first iteration."""
    run = trainer(folder, text, "networks.generator.dropout=0.0", *overrides)
    batch = batches(run, 1)[0]
    micro = split_batch(batch, batch.pop("positions"), parts)
    chosen = run.steps[step]
    return run, chosen, micro, [Context(run.networks, chosen.trained, 0, True, 0, part.positions) for part in micro]


def everything(run: Trainer) -> dict[str, object]:
    """All that a diagnosis must leave alone."""
    state: dict[str, object] = {}
    for name, network in run.networks.items():
        state |= {f"{name}.{key}": value.clone() for key, value in network.state_dict().items()}
        state |= {f"{name}.{key}.grad": copy.deepcopy(p.grad) for key, p in network.named_parameters()}
        state |= {f"{name}.{key}.requires_grad": p.requires_grad for key, p in network.named_parameters()}
        state |= {f"{name}.{key}.training": module.training for key, module in network.named_modules()}
    for step in run.steps:
        state[f"{step.name}.optimizer"] = copy.deepcopy(step.optimizer.state_dict()["state"])
        state[f"{step.name}.scaler"] = step.scaler.state_dict() if step.scaler else None
        state[f"{step.name}.meter"] = step.meter is run.meter
    state["meter"] = copy.deepcopy(vars(run.meter))
    state["torch"] = torch.get_rng_state()
    state["python"] = random.getstate()
    state["numpy"] = np.random.get_state()[1].copy()  # noqa: NPY002
    return state


def equal(one: object, two: object) -> bool:
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return isinstance(two, list | tuple) and len(one) == len(two) and all(map(equal, one, two))
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one.nan_to_num(-123.0), two.nan_to_num(-123.0))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    return one == two


def cause(diagnosis: Diagnosis) -> tuple[str, str]:
    assert diagnosis.reproduced
    assert diagnosis.cause is not None
    return diagnosis.cause.kind, diagnosis.cause.name


def test_a_healthy_step_has_nothing_to_say(tmp_path):
    _, step, parts, contexts = prepared(tmp_path)
    found = diagnose(step, parts, contexts)
    assert not found.reproduced
    assert found.cause is None
    assert "every loss and gradient is finite when it runs again" in found.text()
    assert list(found.losses) == ["pix"]


def test_bad_input_data_are_named_with_their_sample(tmp_path):
    _, step, parts, contexts = prepared(tmp_path)
    parts[0].state["lq"][2, 1, 3, 3] = NAN
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("batch", "'lq' of the batch")
    assert "1 nan of 768 values, as the data set gives it" in found.text()
    (sample,) = found.cause.samples
    assert (sample.index, sample.position) == (2, parts[0].positions[2])
    assert sample.names["path"] == parts[0].state["path"][2]
    assert parts[0].state["path"][2] in found.text()
    assert found.losses["pix"][0] != found.losses["pix"][0]


def test_the_layer_is_named_and_what_follows_is_not_taken_for_the_cause(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    monkeypatch.setattr(run.networks["generator"].norm, "forward", lambda x: torch.log(-x.abs() - 1))
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("layer", "layer generator.norm (GroupNorm)")
    assert "input finite" in found.cause.text
    assert "run by injector 'gen'" in found.cause.text
    assert [(fault.kind, fault.source) for fault in found.faults[1:]] == [("state", False), ("loss", False)]
    assert "'gen', which injector 'gen' writes" in found.text()


def test_an_operation_between_layers_is_put_to_the_module_that_does_it(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    generator = run.networks["generator"]
    monkeypatch.setattr(generator, "forward", lambda x: generator.last(torch.log(-generator.first(x).abs() - 1)))
    assert cause(diagnose(step, parts, contexts)) == ("layer", "layer generator (ToyGenerator)")


def test_a_layer_that_makes_infinities_which_are_masked_is_not_blamed(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    generator = run.networks["generator"]
    monkeypatch.setattr(generator.first, "forward", lambda x: torch.full((4, 4, 8, 8), -INF))
    monkeypatch.setattr(generator.norm, "forward", lambda x: torch.exp(x))
    parts[0].state["hq"][1] = INF
    found = diagnose(step, parts, contexts)
    assert [sample.index for sample in found.cause.samples] == [1]
    assert not any("generator.first" in fault.name for fault in found.faults)


def test_entries_that_are_meant_to_be_infinite_are_no_cause(tmp_path, monkeypatch):
    text = toys.PSNR.replace("    losses:\n", "      flat: {type: toy_exponential, in: lq, out: flat}\n    losses:\n")
    run, step, parts, contexts = prepared(tmp_path, text)
    step.injectors[-1].injector.source = "mask"
    parts[0].state["mask"] = torch.full((4, 1), -INF)
    run.networks["generator"].last.weight.data[0, 0, 0, 0] = NAN
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("layer", "layer generator.last (Conv2d)")
    assert "its own weight (1 nan of" in found.cause.text
    assert "generator.last.weight (1 nan of" in found.text()
    harmless = next(fault for fault in found.faults if fault.kind == "batch")
    assert "harmless" in harmless.text


def test_a_loss_that_spoils_finite_values_is_named_with_its_samples(tmp_path):
    text = toys.PSNR.replace("    losses:\n", "    losses:\n      root: {type: toy_root, weight: 1, in: hq, of: gen}\n")
    _, step, parts, contexts = prepared(tmp_path, text)
    parts[0].state["hq"][3] = -1.0
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("loss", "loss 'root'")
    assert [sample.index for sample in found.cause.samples] == [3]
    assert found.losses["root"][0] != found.losses["root"][0]
    assert found.losses["pix"][0] == pytest.approx(float(found.losses["pix"][0]))
    assert "it reads 'gen' in [" in found.cause.text


def test_a_gradient_that_is_not_finite_is_traced_to_its_operation(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    generator = run.networks["generator"]
    monkeypatch.setattr(generator.norm, "forward", lambda x: torch.sqrt(x * 0))
    found = diagnose(step, parts, contexts)
    kind, name = cause(found)
    assert (kind, name) == ("gradient", "gradient in generator.norm (GroupNorm)")
    assert "SqrtBackward0" in found.cause.text
    assert any(fault.name.startswith("gradient of generator.first") for fault in found.faults)
    assert all(value == value for value in found.losses["pix"])
    trace = trace_gradient(step, parts, contexts)
    assert "MulBackward0" in trace
    assert "test_diagnosis.py" in trace  # the forward call


def test_a_gradient_of_a_loss_is_put_to_the_loss(tmp_path):
    text = toys.PSNR.replace("    losses:\n", "    losses:\n      root: {type: toy_root, weight: 1, in: hq, of: gen}\n")
    _, step, parts, contexts = prepared(tmp_path, text)
    parts[0].state["hq"][2] = 0.0  # sqrt(0 * x) is 0, and its gradient is not
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("gradient", "gradient in loss 'root'")
    assert [sample.index for sample in found.cause.samples] == [2]


def test_gradient_checkpointing_hides_nothing(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    generator = run.networks["generator"]
    original = nn.GroupNorm.forward
    monkeypatch.setattr(generator.norm, "forward", lambda x: torch.sqrt(original(generator.norm, x).abs() * 0))

    def forward(x):
        features = checkpoint(lambda y: generator.norm(generator.first(y)), x, use_reentrant=False)
        return nn.functional.pixel_shuffle(generator.last(features), 2)

    monkeypatch.setattr(generator, "forward", forward)
    assert cause(diagnose(step, parts, contexts)) == ("gradient", "gradient in generator.norm (GroupNorm)")
    monkeypatch.setattr(generator.norm, "forward", lambda x: torch.log(-x.abs() - 1))
    assert cause(diagnose(step, parts, contexts)) == ("layer", "layer generator.norm (GroupNorm)")


def test_layers_in_place_work_as_ever(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)
    generator = run.networks["generator"]
    generator.norm = nn.ReLU(inplace=True)
    monkeypatch.setattr(
        generator.last, "forward", lambda x: torch.full((4, 12, 8, 8), 3e38) * generator.last.weight.sum() ** 0 * 2
    )
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("layer", "layer generator.last (Conv2d)")
    assert "inf in all 3,072 values" in found.text()


def test_a_frozen_network_that_a_loss_runs_is_named(tmp_path):
    run, step, parts, contexts = prepared(tmp_path, toys.GAN, step=1)
    run.networks["discriminator"].layers[2].weight.data.mul_(INF)
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("layer", "layer discriminator.layers.2 (Conv2d)")
    assert "run by loss 'gan'" in found.cause.text
    assert set(found.losses) == {"pix", "gan"}


def test_what_an_earlier_step_wrote_is_told_from_data(tmp_path):
    _, step, parts, contexts = prepared(tmp_path, toys.GAN, step=1)
    parts[0].state["dgen"] = torch.full((4, 3, 16, 16), NAN)
    parts[0].state["hq"][0] = NAN
    found = diagnose(step, parts, contexts, written={"dgen"})
    assert cause(found)[1] == "'hq' of the batch"
    assert any("written by an earlier step" in fault.text for fault in found.faults)


def test_the_micro_batch_at_fault_is_named(tmp_path):
    _, step, parts, contexts = prepared(tmp_path, parts=2)
    parts[1].state["lq"][1] = INF
    found = diagnose(step, parts, contexts)
    assert found.cause.part == 1
    assert "[micro-batch 2 of 2]" in found.text()
    assert [sample.index for sample in found.cause.samples] == [3]
    assert found.losses["pix"][0] == found.losses["pix"][0]


def test_an_overflow_under_fp16_says_so(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path, toys.PSNR, "precision=fp16")
    found = diagnose(step, parts, contexts)
    assert not found.reproduced
    run.networks["generator"].first.weight.data.mul_(1e5)
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("layer", "layer generator.first (Conv2d)")
    assert "fp16 ends at 65504" in found.text()
    assert found.loss_scale == 65536.0


def test_an_overflow_that_the_scaler_has_dealt_with_is_found_at_the_scale_before(tmp_path):
    _, step, parts, contexts = prepared(tmp_path, toys.PSNR, "precision=fp16")
    powers = (2.0**exponent for exponent in range(16, 40))
    for scale in powers:
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        found = diagnose(step, parts, contexts)
        if found.reproduced:
            break
    assert found.loss_scale == 2 * scale  # the last one at which the step itself is finite: the scaler has gone down to it
    assert found.cause.kind == "gradient"
    assert f"only at the loss scale {2 * scale:g}" in found.text()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2 * scale)
    assert "only at" not in diagnose(step, parts, contexts).text()


def test_a_norm_that_overflows_while_gradients_do_not(tmp_path):
    _, step, parts, contexts = prepared(tmp_path, toys.PSNR.replace("weight: 1,", "weight: 1e30,"))
    found = diagnose(step, parts, contexts)
    assert cause(found) == ("sum", "the norm of the gradient")
    assert any(name.startswith("gradient of") for name in found.largest)


def test_an_error_is_a_finding_too(tmp_path, monkeypatch):
    run, step, parts, contexts = prepared(tmp_path)

    def forward(x):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(run.networks["generator"].last, "forward", forward)
    found = diagnose(step, parts, contexts)
    assert found.cause.kind == "error"
    assert "sizes do not match" in found.text()
    assert "failed" in found.text().splitlines()[0]


@pytest.mark.parametrize("fault", ["none", "data", "error", "fp16"])
def test_looking_changes_nothing(tmp_path, monkeypatch, fault):
    text = toys.GAN.replace("ToyGenerator", "ToyNormalised")
    overrides = ["precision=fp16"] if fault == "fp16" else []
    run = trainer(tmp_path, text, *overrides)
    first, second = batches(run, 2)
    run.iterate(first)
    batch = dict(second)
    (part,) = split_batch(batch, batch.pop("positions"), 1)
    if fault != "none":
        part.state["lq"][0] = NAN
    for number, parameter in enumerate(parameter for step in run.steps for parameter in step.parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    if fault == "error":

        def broken(state, context):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            raise RuntimeError("broken")

        monkeypatch.setattr(run.steps[1].losses[0].loss, "forward", broken)
    run.runner._focus_on(run.steps[0], 1)  # the diagnosis of the second step comes late
    before = everything(run)
    entries = dict(part.state)
    copies = {key: value.clone() for key, value in entries.items() if isinstance(value, torch.Tensor)}
    for step in run.steps:
        diagnose(step, [part], [Context(run.networks, step.trained, 1, True, 0, part.positions)])
        trace_gradient(step, [part], [Context(run.networks, step.trained, 1, True, 0, part.positions)])
    after = everything(run)
    assert [key for key in before if not equal(before[key], after[key])] == []
    assert part.state.keys() == entries.keys()
    assert all(equal(copies[key], part.state[key]) for key in copies)
    assert not any(module._forward_hooks or module._forward_pre_hooks for n in run.networks.values() for module in n.modules())


def test_a_repetition_draws_what_the_step_drew(tmp_path, monkeypatch):
    """Dropout of both micro-batches: the losses are those that the step recorded."""
    run = trainer(tmp_path, toys.PSNR, "networks.generator.dropout=0.5", "train.mega_batch_factor=2")
    batch = batches(run, 1)[0]
    clone = {key: value.clone() if isinstance(value, torch.Tensor) else list(value) for key, value in batch.items()}
    parts = split_batch(clone, clone.pop("positions"), 2)
    (step,) = run.steps
    found = diagnose(step, parts, [Context(run.networks, step.trained, 0, True, 0, part.positions) for part in parts])
    measured: list[float] = []
    add = run.meter.add
    monkeypatch.setattr(run.meter, "add", lambda name, value, *rest: (measured.append(float(value)), add(name, value, *rest)))
    run.iterate(batch)
    assert measured == found.losses["pix"]
    assert found.losses["pix"][0] != found.losses["pix"][1]


def test_the_report_is_json(tmp_path):
    _, step, parts, contexts = prepared(tmp_path)
    parts[0].state["lq"][2] = NAN
    told = json.loads(json.dumps(diagnose(step, parts, contexts).to_json(), allow_nan=False))
    assert told["reproduced"] is True
    assert told["losses"] == {"pix": ["nan"]}
    assert told["faults"][0]["samples"][0]["index"] == 2


def test_contents_of_tensors():
    found = contents(torch.tensor([[1.0, NAN], [INF, -3.0], [0.0, 0.0]]), samples=3)
    assert (found.total, found.nan, found.inf, found.largest, found.rows) == (6, 1, 1, 3.0, (0, 1))
    assert found.text() == "1 nan and 1 inf of 6 values"
    assert contents(torch.tensor([NAN, NAN])).text() == "nan in all 2 values"
    assert contents(torch.tensor([1, 2])).finite
    assert contents(torch.empty(0)).finite
    assert not contents(torch.tensor([[0.0, INF]]).to_sparse()).finite
