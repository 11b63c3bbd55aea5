"""The engine: what is trained, what is not, gates, micro-batches, precision, what a run writes."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

import toys
from dlas.config import load
from dlas.engine import precision as precision_module
from dlas.engine.precision import Precision
from dlas.engine.step import GatedInjector
from dlas.engine.testing import run_test
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError, ConfigurationError, TrainingError
from runs import assert_same_tensors, batches, configure, rows, trainer


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_a_run_writes_what_the_contract_says(tmp_path):
    result = trainer(tmp_path, toys.PSNR, "logger.tensorboard=true", "logger.visuals=[gen]", "logger.visual_debug_rate=4").run()
    assert (result.step, result.stopped_by) == (8, None)
    run = tmp_path / "toy"
    for name in ("config.resolved.yml", "environment.json", "train.log", "metrics.jsonl", "tb", "checkpoints/latest"):
        assert (run / name).exists(), name
    assert (run / "checkpoints/latest").read_text() == "8"
    assert sorted(p.name for p in (run / "checkpoints/8").iterdir()) == [
        "generator.ema.safetensors", "generator.safetensors", "manifest.json", "optimizers.safetensors", "state.json",
    ]  # fmt: skip
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["3", "6", "8", "latest"]
    for name in ("4.png", "8.png", "hq.png", "lq.png", "bicubic.png"):
        assert (run / "val/val/picture1" / name).is_file()
    assert (run / "visuals/gen/8.png").is_file()
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert list(first)[:4] == ["phase", "step", "samples", "seconds"]
    assert [(row["step"], row["samples"]) for row in rows(run, "train")] == [(2, 8), (4, 16), (6, 24), (8, 32)]
    validation = rows(run, "val")
    assert [row["step"] for row in validation] == [4, 8]
    assert {"psnr", "ssim_y", "bicubic_psnr", "bicubic_ssim_y"} <= validation[0].keys()


def test_two_runs_with_one_seed_are_identical_and_another_seed_is_not(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trainer(tmp_path, toys.PSNR, f"name={name}", f"seed={seed}").run()
    assert_same_tensors(tmp_path / "a/checkpoints/8", tmp_path / "b/checkpoints/8")
    with pytest.raises(AssertionError):
        assert_same_tensors(tmp_path / "a/checkpoints/8", tmp_path / "c/checkpoints/8")


def test_every_trainable_network_changes_in_two_steps_and_a_frozen_one_does_not(tmp_path):
    text = toys.GAN.replace("networks:\n", "networks:\n  frozen: {which_model_G: ToyGenerator, trainable: false}\n")
    run = trainer(tmp_path, text)
    before = {name: weights(network) for name, network in run.networks.items()}
    for batch in batches(run, 2):
        run.iterate(batch)
    for name, network in run.networks.items():
        same = [torch.equal(value, before[name][key]) for key, value in network.named_parameters()]
        assert all(same) if name == "frozen" else not any(same), name
    assert not run.networks["frozen"].training


def test_a_step_moves_only_the_networks_it_trains(tmp_path):
    run = trainer(tmp_path, toys.GAN, "steps.generator.after=100")
    before = weights(run.networks["generator"])
    run.iterate(batches(run, 1)[0])
    assert all(torch.equal(value, before[key]) for key, value in run.networks["generator"].named_parameters())
    assert all(p.grad is None for network in run.networks.values() for p in network.parameters())


@pytest.mark.parametrize("text", [toys.PSNR, toys.GAN], ids=["psnr", "gan"])
def test_every_loss_sends_gradient_to_a_network_of_its_step(tmp_path, text):
    run = trainer(tmp_path, text)
    assert_losses_reach_their_networks(run)


def assert_losses_reach_their_networks(run: Trainer) -> None:
    for step in run.steps:
        for loss in [each for each in step.losses if each.weight]:  # others are there to be seen in the log
            others = [each for each in step.losses if each is not loss]
            step.losses = [loss]
            captured = {}
            update = step._update
            step._update = lambda log, step=step, captured=captured: captured.update(
                {i: p.grad is not None and bool(p.grad.abs().sum() > 0) for i, p in enumerate(step.parameters)}
            )
            try:
                run.progress.step = max(loss.gate.after, step.runs.after)
                run.iterate(batches(run, 1)[0])
            finally:
                step.losses, step._update = [*others, loss], update
                step.optimizer.zero_grad()
            assert any(captured.values()), f"{step.name}/{loss.name}"


@pytest.mark.parametrize("parts", [2, 3, 5, 7])
@pytest.mark.parametrize("text", [toys.PSNR, toys.GAN], ids=["psnr", "gan"])
def test_micro_batches_equal_one_big_batch(tmp_path, text, parts):
    """Uneven splits too (7 samples in 2, 3 and 5 parts), with addressable noise in the injectors and losses."""
    results = []
    for factor in (1, parts):
        run = trainer(
            tmp_path,
            text,
            "datasets.train.batch_size=7",
            "networks.generator.dropout=0.0",
            f"train.mega_batch_factor={factor}",
            "steps.generator.optimizer=sgd",
            "steps.generator.optimizer_params={lr: 0.1}",
        )
        for network in run.networks.values():
            network.double()
        for batch in batches(run, 2):
            run.iterate({k: v.double() if isinstance(v, torch.Tensor) else v for k, v in batch.items()})
        results.append({f"{n}.{k}": v for n, network in run.networks.items() for k, v in weights(network).items()})
        results[-1].update({f"loss {k}": torch.tensor(v, dtype=torch.float64) for k, v in run.meter.read().items()})
    for key, value in results[0].items():
        # The losses are computed in float32, so the sums agree to its rounding.
        torch.testing.assert_close(results[1][key], value, rtol=2e-5, atol=1e-7, msg=key)


def test_layers_draw_by_iteration_step_and_micro_batch(tmp_path, monkeypatch):
    """Each micro-batch of each step draws differently, and one step of one iteration draws the same when it runs alone."""
    drawn = {}
    original = GatedInjector.__call__

    def call(self, state, context):
        drawn[context.step, self.name, context.positions[0]] = float(torch.rand(()))
        return original(self, state, context)

    monkeypatch.setattr(GatedInjector, "__call__", call)
    run = trainer(tmp_path, toys.GAN, "train.mega_batch_factor=2")
    first, second = batches(run, 2)
    again = dict(second)
    run.iterate(first)
    run.iterate(second)
    assert len(set(drawn.values())) == len(drawn) == 8
    before, alone = dict(drawn), trainer(tmp_path, toys.GAN, "train.mega_batch_factor=2", "steps.discriminator.before=1")
    alone.progress.step = 1
    alone.iterate(again)
    assert drawn == before


def test_more_micro_batches_than_samples_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="a batch of 4 cannot be cut into 5"):
        trainer(tmp_path, toys.PSNR, "train.mega_batch_factor=5")


def test_a_loss_that_is_off_is_not_computed(tmp_path):
    forbidden = "steps.generator.losses.never={type: toy_forbidden, weight: 1, after: 2}"
    run = trainer(tmp_path, toys.PSNR, forbidden)
    first, second, third = batches(run, 3)
    run.iterate(first)
    run.iterate(second)
    with pytest.raises(AssertionError, match="was computed"):
        run.iterate(third)


@pytest.mark.parametrize(("gate", "expected"), [("after: 2", [2, 3, 4, 5]), ("before: 2", [0, 1]), ("every: 3", [0, 3])])
def test_steps_run_when_their_gates_are_open(tmp_path, gate, expected):
    key, value = gate.split(": ")
    run = trainer(tmp_path, toys.PSNR, f"steps.generator.{key}={value}")
    changed = []
    for number, batch in enumerate(batches(run, 6)):
        before = weights(run.networks["generator"])
        run.iterate(batch)
        if any(not torch.equal(v, before[k]) for k, v in run.networks["generator"].named_parameters()):
            changed.append(number)
    assert changed == expected


def test_what_a_step_wrote_reaches_the_next_one_detached(tmp_path):
    text = toys.GAN.replace("fake: dgen}", "fake: gen}").replace(
        "      dgen: {type: generator, generator: generator, in: lq, out: dgen, no_grad: true}",
        "      same: {type: direct, in: lq, out: same}",
    )
    discriminator = text[text.index("  discriminator:\n    training") : text.index("  generator:\n    training")]
    text = text.replace(discriminator, "").replace("train: {niter", discriminator + "train: {niter")
    run = trainer(tmp_path, text)
    (part,) = run.iterate(batches(run, 1)[0])
    assert not part.state["gen"].requires_grad
    assert part.state["gen"].shape == part.state["hq"].shape


@pytest.mark.parametrize(
    ("part", "name", "option", "key", "message"),
    [
        ("injectors", "gen", "in", "nothing", "the state key 'nothing' has not been written; there are: hq, lq"),
        ("injectors", "gen", "out", "hq", "injector 'gen' writes the state key 'hq', which is there already"),
        ("losses", "pix", "fake", "noisy", "no loss that is on depends on a parameter of generator"),
    ],
)
def test_wiring_faults_that_no_check_could_see_name_the_key(tmp_path, part, name, option, key, message):
    config = configure(tmp_path, toys.PSNR.replace("lq, out: noisy, train", "hq, out: noisy, train"))
    getattr(config.steps["generator"], part)[name].options[option] = key
    run = Trainer(config)
    with pytest.raises(TrainingError, match=message):
        run.iterate(batches(run, 1)[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_precisions_train_and_only_fp16_scales(tmp_path, precision, layout):
    run = trainer(tmp_path, toys.GAN, f"precision={precision}", f"memory_format={layout}", "train.niter=2")
    assert all((step.scaler is not None) == (precision == "fp16") for step in run.steps)
    run.run()
    assert all(torch.isfinite(p).all() for network in run.networks.values() for p in network.parameters())
    assert all(p.dtype == torch.float32 for network in run.networks.values() for p in network.parameters())
    if layout == "channels_last":
        assert run.networks["generator"].last.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("bf16", "device", "chosen"), [(True, "cpu", "bf16"), (False, "cpu", "fp32"), (False, "cuda", "fp16")])
def test_automatic_precision_takes_what_the_device_is_fast_at(monkeypatch, bf16, device, chosen):
    monkeypatch.setattr(precision_module, "has_bf16", lambda _: bf16)
    assert Precision("auto", torch.device(device)).name == chosen


def test_clipping_bounds_the_norm_over_all_parameters(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "steps.generator.clip_grad_eps=1e-3", "steps.generator.optimizer=sgd",
                  "steps.generator.optimizer_params={lr: 1.0}", "train.lr_scheme={type: constant}")  # fmt: skip
    before = weights(run.networks["generator"])
    run.iterate(batches(run, 1)[0])
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in run.networks["generator"].named_parameters()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert run.meter.read()["generator/grad_norm"] > 1e-3  # the norm before clipping


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "steps.generator.optimizer=sgd", "steps.generator.optimizer_params={lr: 1e30}",
                  "train.lr_scheme={type: constant}", "train.health.max_consecutive=3")  # fmt: skip
    with pytest.raises(TrainingError, match=r"'generator', iteration 5: the loss is not finite \(generator/pix nan\): 4 bad"):
        run.run()
    assert "ERROR step 'generator', iteration 5: the loss is not finite" in (tmp_path / "toy/train.log").read_text()


def test_an_older_run_is_set_aside_only_when_the_new_one_can_start(tmp_path):
    trainer(tmp_path, toys.PSNR, "train.niter=2").run()
    with pytest.raises(ConfigurationError):
        Trainer(configure(tmp_path, toys.PSNR, "train.mega_batch_factor=5"), resume="never")
    assert (tmp_path / "toy/checkpoints/2").is_dir()


def test_evaluation_needs_the_weights_of_the_networks_that_it_runs(tmp_path):
    trainer(tmp_path, toys.GAN, "train.niter=1").run()
    weights = tmp_path / "gan/checkpoints/1/generator.safetensors"
    path = tmp_path / "options.yml"
    paths = [f"path.experiments={tmp_path}", "name=tested"]
    assert run_test(load(path, [*paths, f"path.pretrain.generator={weights}"], mode="test"))
    with pytest.raises(CheckpointError, match=r"no weights are named for generator: give 'path\.run'"):
        run_test(load(path, paths, mode="test"))


def test_validation_measures_the_average_and_leaves_the_weights_alone(tmp_path):
    figures = {}
    for use_ema in (True, False):
        run = trainer(tmp_path, toys.PSNR, f"eval.weights={'ema' if use_ema else 'raw'}", f"name=ema{use_ema}")
        run.run()
        live = weights(run.networks["generator"])
        found = run.validation.evaluator.run(run.datasets["val"], 8, lambda result: None)
        assert all(torch.equal(v, live[k]) for k, v in run.networks["generator"].named_parameters())
        assert run.networks["generator"].training
        figures[use_ema] = [values["psnr"] for values in found.pictures.values()]
    assert figures[True] != figures[False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_at_a_step_boundary_after_saving(tmp_path, monkeypatch, number):
    interrupt_after(monkeypatch, 5, number)
    result = trainer(tmp_path, toys.PSNR).run()
    assert (result.step, result.stopped_by) == (5, number)
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "5"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def interrupt_after(monkeypatch, steps: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal during the iteration that completes `steps`."""
    original = Trainer.iterate

    def iterate(self, batch, log_gradients=False):
        if self.progress.step + 1 == steps:
            os.kill(os.getpid(), number)
        return original(self, batch, log_gradients)

    monkeypatch.setattr(Trainer, "iterate", iterate)


RESUMED = {
    "psnr": (toys.PSNR, []),
    "gan": (toys.GAN, []),
    "accumulation": (toys.PSNR, ["train.mega_batch_factor=3"]),
    "scaled": (toys.GAN, ["precision=fp16"]),
    "bf16": (toys.PSNR, ["precision=bf16", "memory_format=channels_last"]),
    "torch-schedule": (toys.PSNR, ["train.lr_scheme={type: ExponentialLR, gamma: 0.9}", "train.warmup_iter=3"]),
    "lamb": (toys.PSNR, ["steps.generator.optimizer=lamb"]),
    "workers": (toys.PSNR, ["datasets.train.n_workers=2"]),
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(tmp_path, monkeypatch, case, stop_at):
    text, overrides = RESUMED[case]
    overrides = [*overrides, "name=whole"]
    trainer(tmp_path, text, *overrides).run()
    overrides[-1] = "name=halves"
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_at)
        assert trainer(tmp_path, text, *overrides).run().step == stop_at
    assert trainer(tmp_path, text, *overrides).run().step == 8
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert_same_tensors(whole / "checkpoints/8", halves / "checkpoints/8")
    one, two = (json.loads((run / "checkpoints/8/state.json").read_text()) for run in (whole, halves))
    one["progress"].pop("seconds"), two["progress"].pop("seconds")
    assert one == two
    for phase in ("train", "val"):
        assert rows(whole, phase) == rows(halves, phase)


def test_a_complete_run_is_left_alone_and_never_starts_anew_beside_it(tmp_path):
    assert trainer(tmp_path, toys.PSNR).run().step == 8
    before = (tmp_path / "toy/metrics.jsonl").read_text()
    assert trainer(tmp_path, toys.PSNR).run().step == 8
    assert (tmp_path / "toy/metrics.jsonl").read_text() == before
    Trainer(configure(tmp_path, toys.PSNR), resume="never").run()
    (aside,) = tmp_path.glob("toy_archived_*")
    assert (aside / "metrics.jsonl").read_text() == before


def test_going_back_to_an_older_checkpoint_rewrites_what_came_after(tmp_path):
    trainer(tmp_path, toys.PSNR).run()
    last = (tmp_path / "toy/checkpoints/8").rename(tmp_path / "kept")
    trainer(tmp_path, toys.PSNR, f"path.resume_state={tmp_path}/toy/checkpoints/3").run()
    assert_same_tensors(last, tmp_path / "toy/checkpoints/8")
    assert [row["step"] for row in rows(tmp_path / "toy", "train")] == [2, 4, 6, 8]


@pytest.mark.parametrize("option", ["grad: false", "no_grad: true"])
def test_a_network_that_ran_without_gradients_still_gets_them_later_in_the_step(tmp_path, option):
    """Autocast keeps weights that it has cast; those cast without gradients must not be reused."""
    first = "      peek: {type: generator, generator: generator, in: lq, out: peek, " + option + "}\n      gen: {"
    text = toys.GAN.replace("      gen: {", first)
    run = trainer(tmp_path, text, "precision=bf16")
    before = weights(run.networks["generator"])
    run.iterate(batches(run, 1)[0])
    assert not any(torch.equal(value, before[key]) for key, value in run.networks["generator"].named_parameters())
