"""Memory that runs out: the batch is cut and tried again, or a message says what to change."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import toys
from dlas.config import check
from dlas.config.schema import Config
from dlas.context import Context
from dlas.engine import memory_advice
from dlas.engine.cutting import Cutting
from dlas.engine.dryrun import dry_run
from dlas.engine.dryrun.devices import Device
from dlas.engine.dryrun.report import size as in_words
from dlas.engine.microbatch import MicroBatch
from dlas.engine.out_of_memory import is_out_of_memory, reason
from dlas.engine.trainer import Trainer
from dlas.errors import TrainingError
from dlas.injectors.base import Injector, State
from dlas.losses.base import Loss
from dlas.registry import ARCHS, LOSSES
from runs import assert_same_tensors, batches, configure, rows, trainer

ROOT = Path(__file__).resolve().parent.parent
AUTO = "train.micro_batch_size=auto"
Fails = Callable[[int, int], bool]  # iteration, samples of the micro-batch


@ARCHS.register("ToyCounting")
class ToyCounting(nn.Module):
    """Has running statistics, and a buffer that its forward pass replaces."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 12, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, 2 h, 2 w)."""
        self.calls = self.calls + 1
        return nn.functional.pixel_shuffle(self.layers(x), 2)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


@ARCHS.register("ToyCheckpointed")
class ToyCheckpointed(ToyCounting):
    """Offers gradient checkpointing."""

    def __init__(self, *, width: int = 64) -> None:
        super().__init__(width=width)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, 2 h, 2 w)."""
        if not self.checkpointing:
            return super().forward(x)
        result: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return result


@LOSSES.register("toy_exact")
class ExactLoss(Loss):
    """Squared error in the type of its inputs."""

    def __init__(self, *, real: str = "hq", fake: str = "gen") -> None:
        super().__init__()
        self.real, self.fake = real, fake

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        return (state[self.real] - state[self.fake]).square().mean()


class _FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, fails: bool) -> Tensor:
        ctx.fails = fails
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return gradient, None


def run_short(run: Trainer, name: str, place: str, fails: Fails) -> Trainer:
    """Makes memory run out in a step of the run."""
    step = next(each for each in run.steps if each.name == name)

    def short(context: Context) -> bool:
        return fails(context.step, len(context.positions))

    def stop(context: Context) -> None:
        if short(context):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if place == "forward":
        gated = step.injectors[-1]
        injector = gated.injector

        class Short(Injector):
            def __call__(self, state: State, context: Context) -> dict[str, Any]:
                new = injector(state, context)
                if context.training:
                    stop(context)
                return new

        gated.injector = Short()
        return run
    loss = step.losses[-1].loss
    forward = loss.forward

    def compute(state: State, context: Context) -> Any:
        result = forward(state, context)
        if place == "loss":
            stop(context)
            return result
        value, *rest = result if isinstance(result, tuple) else (result,)
        value = _FailingBackward.apply(value, short(context))
        return (value, *rest) if rest else value

    loss.forward = compute
    return run


def above(size: int, start: int = 0) -> Fails:
    """Micro-batches of more than `size` samples fail from iteration `start` on."""
    return lambda iteration, samples: iteration >= start and samples > size


def calls(*numbers: int) -> Fails:
    """The micro-batches with these numbers fail, counted over all attempts."""
    counter = itertools.count()
    return lambda iteration, samples: next(counter) in numbers


WHOLE: dict[str, dict[str, Tensor]] = {}  # results of runs whose memory suffices
PLACES = ["forward", "loss", "backward"]
BATCH = ["datasets.train.batch_size=7", "networks.generator.dropout=0.0"]
SGD = ["steps.generator.optimizer=sgd", "steps.generator.optimizer_params={lr: 0.1}"]


def results(run: Trainer, iterations: int, double: bool = True) -> dict[str, Tensor]:
    """Weights and mean losses after some iterations."""
    for network in run.networks.values():
        network.double()
    for batch in batches(run, iterations):
        run.iterate({k: v.double() if isinstance(v, Tensor) else v for k, v in batch.items()})
    found = {f"{n}.{k}": v.detach() for n, network in run.networks.items() for k, v in network.named_parameters()}
    return found | {f"loss {k}": torch.tensor(v, dtype=torch.float64) for k, v in run.meter.read().items()}


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if key.startswith("loss "):  # the meter has float32
            rtol, atol = max(rtol, 1e-6), max(atol, 1e-7)
        torch.testing.assert_close(two[key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}")


EXACT = toys.PSNR.replace(
    "pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}", "pix: {type: toy_exact, weight: 1}"
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("size", "start"), [(4, 0), (1, 0), (2, 1), (3, 2)])
def test_a_batch_that_was_cut_trains_like_a_whole_one(tmp_path, place, size, start):
    """In float64: what differs is rounding alone."""
    if "exact" not in WHOLE:
        WHOLE["exact"] = results(trainer(tmp_path, EXACT, *BATCH, *SGD), 4)
    run = run_short(trainer(tmp_path, EXACT, *BATCH, *SGD, AUTO), "generator", place, above(size, start))
    assert_close(WHOLE["exact"], results(run, 4), rtol=1e-12, atol=1e-13)
    assert run.cutting.limit == {4: 4, 1: 1, 2: 2, 3: 2}[size]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("step", ["discriminator", "generator"])
@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (3, 4)])
def test_any_micro_batch_of_any_step_may_fail(tmp_path, place, step, numbers):
    """With two optimisers, accumulation, and entries that one step writes and the other reads."""
    text = toys.GAN.replace("gan_type: gan, weight: 0.1, noise: 0.01,", "gan_type: gan, weight: 0.1,")
    text = text.replace(
        "in: lq, out: gen}",
        "in: lq, out: gen}\n      mixed: {type: arithmetic, operation: add, in: [gen, dgen], out: mixed, train: true}",
    )
    text = text.replace("real: hq, fake: gen}\n      gan", "real: hq, fake: mixed}\n      gan")
    overrides = ["datasets.train.batch_size=7", "train.mega_batch_factor=2", *SGD]
    if "gan" not in WHOLE:
        WHOLE["gan"] = results(trainer(tmp_path, text, *overrides), 2)
    run = run_short(trainer(tmp_path, text, *overrides, AUTO), step, place, calls(*numbers))
    assert_close(WHOLE["gan"], results(run, 2), rtol=2e-5, atol=1e-7)
    assert run.cutting.limit is not None


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    """Of runs that others are compared with."""
    return tmp_path_factory.mktemp("whole")


FIXED = {
    "psnr": (toys.PSNR, []),
    "gan": (toys.GAN, []),
    "norm": (toys.PSNR.replace("ToyGenerator, dropout: 0.1", "ToyCounting"), []),
    "scaler": (toys.GAN, ["precision=fp16"]),
    "bf16": (toys.PSNR, ["precision=bf16"]),
}


@pytest.mark.parametrize("place", ["forward", "backward"])
@pytest.mark.parametrize("case", FIXED)
def test_a_size_that_was_found_at_once_gives_the_bits_of_one_that_was_given(whole_folder, tmp_path, case, place):
    """Nothing of the failed attempts is left: statistics of networks, scaler, meter, random numbers."""
    text, overrides = FIXED[case]
    overrides = [*overrides, "datasets.train.batch_size=8", "train.niter=4"]
    given = whole_folder / case
    if not given.exists():
        trainer(whole_folder, text, *overrides, f"name={case}", "train.micro_batch_size=2").run()
    run = trainer(tmp_path, text, *overrides, "name=found", AUTO)
    run_short(run, run.steps[0].name, place, above(2)).run()
    found = rows(tmp_path / "found", "train")
    assert [row.pop("micro_batch_size") for row in found] == [2.0, 2.0]
    assert found == rows(given, "train")
    assert_same_tensors(given / "checkpoints/4", tmp_path / "found/checkpoints/4")


@pytest.mark.parametrize(
    ("kill", "gentle"), [(1, True), (2, True), (4, True), (5, True), (2, False), (3, False), (5, False), (6, False)]
)
def test_a_restart_goes_on_with_the_size_that_was_found(whole_folder, tmp_path, monkeypatch, kill, gentle):
    """Killed anywhere around the shortages of iterations 2 and 5, it ends like the run that was not."""

    def short(run: Trainer) -> Trainer:
        fails: Fails = lambda i, n: (i >= 2 and n > 2) or (i >= 5 and n > 1)  # noqa: E731
        return run_short(run, "generator", "backward", fails)

    if not (whole_folder / "whole").exists():
        short(trainer(whole_folder, toys.GAN, AUTO, "name=whole", "train.niter=7")).run()
    # Nothing of a killed process writes on.
    run = short(trainer(tmp_path, toys.GAN, AUTO, "name=killed", "train.niter=7", "checkpoints.background=false"))
    original = run.iterate

    def iterate(batch: dict[str, Any], log_gradients: bool = False) -> Any:
        if run.progress.step == kill and not gentle:
            raise KeyboardInterrupt
        result = original(batch, log_gradients)
        if run.progress.step == kill + 1 and gentle:
            os.kill(os.getpid(), 15)
        return result

    monkeypatch.setattr(run, "iterate", iterate)
    if gentle:
        assert run.run().step == kill + 1
    else:
        with pytest.raises(KeyboardInterrupt):
            run.run()
    again = short(trainer(tmp_path, toys.GAN, AUTO, "name=killed", "train.niter=7"))
    assert again.run().step == 7
    whole, killed = whole_folder / "whole/checkpoints/7", tmp_path / "killed/checkpoints/7"
    assert_same_tensors(whole, killed)
    one, two = (json.loads((folder / "state.json").read_text()) for folder in (whole, killed))
    one["progress"].pop("seconds"), two["progress"].pop("seconds")
    assert one == two
    assert one["progress"]["micro_batch_size"] == 1


def test_a_restart_starts_with_what_was_found_and_a_given_size_takes_its_place(tmp_path):
    run_short(trainer(tmp_path, toys.PSNR, AUTO), "generator", "forward", above(1)).run()
    again = trainer(tmp_path, toys.PSNR, AUTO, "train.niter=10")
    again.run()
    assert (again.cutting.limit, rows(tmp_path / "toy", "train")[-1]["micro_batch_size"]) == (1, 1.0)
    given = trainer(tmp_path, toys.PSNR, "train.micro_batch_size=3", "train.niter=12")
    given.run()
    assert (given.cutting.limit, given.progress.micro_batch_size) == (3, None)


def test_with_one_sample_at_a_time_there_is_nothing_left_to_cut(tmp_path, caplog):
    run = run_short(trainer(tmp_path, toys.PSNR, AUTO), "generator", "loss", above(0, start=1))
    with pytest.raises(TrainingError, match=r"step 'generator', loss 'pix': CUDA out .* with one sample at a time"):
        run.run()
    lines = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert [line.split("at most")[1] for line in lines[:2]] == [" 2 samples (4 before)", " 1 sample (2 before)"]
    assert lines[0].startswith("iteration 1: out of memory in step 'generator', loss 'pix': CUDA out of memory.")


def test_an_attempt_that_failed_leaves_nothing_behind(tmp_path):
    run = run_short(trainer(tmp_path, toys.PSNR, "train.mega_batch_factor=2"), "generator", "backward", calls(1))
    (batch,) = batches(run, 1)
    (step,) = run.steps
    run.meter.add("other", torch.tensor(1.0))
    parts = run.cutting.cut(batch, batch.pop("positions"))
    keys = [list(part.state) for part in parts]
    contexts = [Context(run.networks, step.trained, 0, True, 0, part.positions) for part in parts]
    with pytest.raises(TrainingError, match="the backward pass") as caught:
        step.run(parts, contexts, log_gradients=True)
    assert caught.value.__context__ is None  # whose frames would keep the activations alive
    assert [list(part.state) for part in parts] == keys
    assert all(parameter.grad is None for parameter in step.parameters)
    assert list(run.meter.read()) == ["other"]


def test_entries_of_any_form_are_cut_with_their_micro_batch():
    state = {
        "image": torch.arange(10).reshape(5, 2),
        "names": ["a", "b", "c", "d", "e"],
        "features": [torch.arange(5), torch.arange(10).reshape(5, 2)],
        "nested": {"codes": (torch.arange(5), "word"), "size": torch.tensor(3)},
        "kernel": torch.ones(3, 3),
        "scale": 2,
    }
    first, second = MicroBatch(state, 0.5, [10, 11, 12, 13, 14]).cut(2)
    assert (first.positions, second.positions) == ([10, 11, 12], [13, 14])
    assert (first.share, second.share) == (pytest.approx(0.3), pytest.approx(0.2))
    assert second.state["image"].tolist() == [[6, 7], [8, 9]]
    assert second.state["names"] == ["d", "e"]
    assert [each.tolist() for each in second.state["features"]] == [[3, 4], [[6, 7], [8, 9]]]
    assert second.state["nested"]["codes"][0].tolist() == [3, 4]
    assert second.state["nested"]["codes"][1] == "word"
    assert second.state["kernel"].shape == (3, 3)
    assert first.state["scale"] == 2


@pytest.mark.parametrize(
    ("cutting", "sizes"),
    [
        (Cutting(), [7]),
        (Cutting(3), [3, 2, 2]),
        (Cutting(limit=4), [4, 3]),
        (Cutting(limit=3), [3, 2, 2]),
        (Cutting(limit=9), [7]),
        (Cutting(3, limit=4, automatic=True), [3, 2, 2]),
    ],
)
def test_sizes_of_micro_batches(cutting, sizes):
    assert [len(part.positions) for part in cutting.cut({}, list(range(7)))] == sizes
    assert cutting.size(7) == max(sizes)


# ------------------------------------------------------------------------------------------------------- telling and naming

TORN = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB of which 1.2 GiB is free. Process "
    "12 has 22 GiB memory in use. Of the allocated memory 14.00 GiB is allocated by PyTorch, and {} GiB is reserved by PyTorch "
    "but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("anything"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (raised_from(TrainingError("network 'g' cannot work on its inputs"), RuntimeError("HIP out of memory")), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),  # no device here that could be full
        (RuntimeError("could not create a primitive"), False),  # no limit here that it could have met
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (5)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_shortages_are_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_errors_of_libraries_are_shortages_on_a_full_device(monkeypatch):
    error = RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input"
    )
    monkeypatch.setattr("dlas.engine.out_of_memory._device_is_full", lambda: True)
    assert is_out_of_memory(error)
    monkeypatch.setattr("dlas.engine.out_of_memory.address_space_left", lambda: 1000)
    assert is_out_of_memory(RuntimeError("could not create a primitive"))


def test_the_cpu_allocators_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert reason(caught.value).startswith(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1152921504606846976"
    )


def test_memory_in_pieces_is_recognised():
    assert "1.2 GiB is free. 6.00 GiB lie unused in gaps: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in reason(
        torch.OutOfMemoryError(TORN.format("6.00"))
    )
    whole = reason(torch.OutOfMemoryError(TORN.format("0.50")))
    assert "expandable" not in whole
    assert whole.endswith("1.2 GiB is free")


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_go_their_way(tmp_path, monkeypatch):
    run = trainer(tmp_path, toys.PSNR, AUTO)
    monkeypatch.setattr(toys.ToyGenerator, "forward", lambda self, x: x @ torch.ones(3, 4, 5))
    with pytest.raises(TrainingError, match="network 'generator' cannot work on its inputs"):
        run.run()


def test_a_shortage_in_the_update_names_the_optimiser(tmp_path, monkeypatch):
    run = trainer(tmp_path, toys.PSNR, AUTO)
    monkeypatch.setattr(run.steps[0].optimizer, "step", no_memory)
    with pytest.raises(
        TrainingError, match=r"the optimiser \(Adam\) of step 'generator' ran out of memory: CUDA .* less state"
    ):
        run.run()


def test_a_shortage_on_the_way_to_the_device_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("dlas.engine.transfer.to_device", no_memory)
    with pytest.raises(TrainingError, match="moving a batch of 4 samples to cpu ran out of memory"):
        trainer(tmp_path, toys.PSNR, AUTO).run()


@pytest.mark.parametrize(("method", "words"), [("__init__", "building"), ("to", "moving")])
def test_a_network_that_does_not_fit_is_named(tmp_path, monkeypatch, method, words):
    monkeypatch.setattr(toys.ToyGenerator, method, no_memory)
    with pytest.raises(TrainingError, match=f"{words} network 'generator' .*ran out of memory"):
        trainer(tmp_path, toys.PSNR)


def test_averages_that_do_not_fit_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dlas.engine.averages.ModelEma", no_memory)
    with pytest.raises(TrainingError, match=r"write 'train\.ema\.enabled: false'"):
        trainer(tmp_path, toys.PSNR)


def test_a_picture_that_is_too_large_to_validate_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    original = toys.ToyGenerator.forward
    monkeypatch.setattr(toys.ToyGenerator, "forward", lambda self, x: original(self, x) if self.training else no_memory())
    message = r"evaluating picture 'picture0' \('lq' of 3 x 8 x 8, 'hq' of 3 x 16 x 16\) ran out of memory: CUDA"
    with pytest.raises(TrainingError, match=message):
        trainer(tmp_path, toys.PSNR).run()
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "4"


# ------------------------------------------------------------------------------------------------------------------- advice

OFFERING = toys.PSNR.replace("batch_size: 4", "batch_size: 8, size: 32").replace(
    "{which_model_G: ToyGenerator, dropout: 0.1}", "{which_model_G: ToyCheckpointed}"
)


def peak(config: Config) -> int:
    largest = dry_run(config).largest
    assert largest is not None
    return largest.peak.total


def advice(folder: Path, monkeypatch: pytest.MonkeyPatch, available: int, *overrides: str) -> str:
    monkeypatch.setattr(memory_advice, "available_memory", lambda device: available)
    run = run_short(trainer(folder, OFFERING, *overrides), "generator", "backward", above(0))
    with pytest.raises(TrainingError) as caught:
        run.run()
    assert caught.value.exit_code == 1
    return str(caught.value)


@pytest.mark.parametrize(("given", "first"), [("train.mega_batch_factor=1", 8), ("train.micro_batch_size=4", 4)])
def test_a_fixed_setting_ends_with_the_sizes_that_would_fit(tmp_path, monkeypatch, given, first):
    sizes = {size: peak(configure(tmp_path, OFFERING, f"train.micro_batch_size={size}")) for size in (8, 4, 2, 1)}
    assert sizes[8] > sizes[4] > sizes[2] > sizes[1]
    text = advice(tmp_path, monkeypatch, int(sizes[2] / memory_advice.MARGIN) + 1, given)
    assert text.startswith(
        "out of memory in step 'generator', the backward pass: CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    assert "Smallest change that fits: 'train.micro_batch_size: 2', or 'auto'" in text
    assert "Or 'checkpointing_enabled: true'" in text
    table = [line.split() for line in text.splitlines() if line.startswith("  ") and line.split()[0].isdigit()]
    expected = [[str(size), *in_words(sizes[size]).split()] for size in (8, 4, 2) if size <= first]
    assert [row[:3] for row in table] == expected
    assert text in (tmp_path / "toy/train.log").read_text()


def test_a_forecast_that_did_not_hold_is_not_passed_over(tmp_path, monkeypatch):
    text = advice(tmp_path, monkeypatch, 10**12)
    assert "By the forecast the present setting fits: libraries, other programs" in text
    assert "Try 'train.micro_batch_size: 4', or 'auto'" in text


def test_when_nothing_fits_it_says_so(tmp_path, monkeypatch):
    assert "Nothing in this table fits" in advice(tmp_path, monkeypatch, 1000)


def test_a_factor_that_the_advice_replaces_is_named(tmp_path, monkeypatch):
    size = peak(configure(tmp_path, OFFERING, "train.micro_batch_size=2"))
    text = advice(tmp_path, monkeypatch, int(size / memory_advice.MARGIN) + 1, "train.mega_batch_factor=2")
    assert "'train.micro_batch_size: 2' in place of 'mega_batch_factor'" in text


def test_components_that_cannot_be_rehearsed_leave_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_advice, "dry_run", no_memory)
    assert "Write 'train.micro_batch_size: auto'" in advice(tmp_path, monkeypatch, 10**12)


@pytest.mark.parametrize(
    ("available", "size", "warned"), [(1000, "null", True), (10**12, "null", False), (1000, "auto", False)]
)
def test_a_start_that_will_not_fit_is_warned_of_on_a_gpu(tmp_path, monkeypatch, caplog, available, size, warned):
    monkeypatch.setattr(memory_advice, "available_memory", lambda device: available)
    run = trainer(tmp_path, toys.PSNR, f"train.micro_batch_size={size}")
    memory_advice.warn_if_too_large(run.config, run.networks, torch.device("cuda"))
    assert ("expect it to run out of memory" in caplog.text) is warned
    caplog.clear()
    memory_advice.warn_if_too_large(run.config, run.networks, torch.device("cpu"))
    assert not caplog.text


# ------------------------------------------------------------------------------------------------ the checker and the rehearsal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.micro_batch_size=2", "train.mega_batch_factor=3"], "cuts a batch of 4 into 2 micro-batches, and 'mega_b"),
        (["train.micro_batch_size=0"], "micro_batch_size"),
        (["train.micro_batch_size=often"], "micro_batch_size"),
        (["train.micro_batch_size=2", "train.mega_batch_factor=2"], None),
        (["train.micro_batch_size=auto", "train.mega_batch_factor=3"], None),
        (["train.micro_batch_size=100"], None),
    ],
)
def test_the_checker_knows_the_setting(tmp_path, settings, message):
    (tmp_path / "options.yml").write_text(toys.PSNR)
    problems = [str(problem) for problem in check(tmp_path / "options.yml", settings)]
    assert [message in problem for problem in problems] == ([True] if message else [])


def test_a_rehearsal_finds_the_size_that_fits(tmp_path):
    sizes = {size: peak(configure(tmp_path, OFFERING, f"train.micro_batch_size={size}")) for size in (8, 4, 2)}

    def rehearse(memory: float) -> Any:
        return dry_run(configure(tmp_path, OFFERING, AUTO), Device("small", "small", "cpu", memory / 1e9, 10, 1, 1, 1))

    found = rehearse(1.001 * sizes[2])
    assert (found.samples, found.parts, found.tried, found.problems) == (2, 4, sizes, [])
    assert rehearse(1.001 * sizes[8]).samples == 8
    (problem,) = rehearse(1000).problems
    assert "lower the size of the samples" in str(problem)


# ------------------------------------------------------------------------------------------------------------ several processes

RANKS = """
import sys
sys.path[:0] = [{codes!r}, {tests!r}]
from pathlib import Path
import torch
from torch import distributed
import toys
from test_out_of_memory import AUTO, above, results, run_short
from runs import trainer
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
run = trainer(folder / str(rank), toys.GAN, AUTO, f"name=rank{{rank}}", "datasets.train.batch_size=8")
if rank == 1:
    run_short(run, "generator", "backward", above(2, start=1))
found = results(run, 3)
torch.save((run.cutting.limit, found), folder / f"{{rank}}.pt")
"""


def test_processes_cut_alike_when_one_of_them_has_no_memory(tmp_path):
    script = RANKS.format(codes=str(ROOT / "codes"), tests=str(ROOT / "tests"))
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    started = [subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    (limit, one), (other, two) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert limit == other == 2
    assert all(value.equal(two[key]) for key, value in one.items())
