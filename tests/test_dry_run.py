"""The rehearsal of a run without memory: what it finds, what it reports, and that its forecasts are right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toys
from dlas.cli.main import main
from dlas.config import Config, _load, load
from dlas.data.base import Dataset, TensorSpec
from dlas.data.images.pairs import ImagePairs
from dlas.engine.dryrun import DEVICES, DryRun, dry_run
from dlas.engine.dryrun.devices import find_device
from dlas.engine.dryrun.kinds import iteration_kinds
from dlas.engine.dryrun.tracker import Operation, Tracker
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError
from dlas.layers.resize import imresize
from dlas.registry import ARCHS, DATASETS, INJECTORS
from runs import configure

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = ROOT / "options/train_x.yml"
GAN = ROOT / "options/train_gan_x.yml"


def unproven(path: Path, *overrides: str) -> Config:
    """A configuration that the static check would refuse: the rehearsal must find its faults by itself."""
    config, _ = _load(path, overrides, "train")
    assert config is not None
    return config


def unproven_text(folder: Path, text: str, *overrides: str) -> Config:
    (folder / "options.yml").write_text(text)
    return unproven(folder / "options.yml", *overrides)


def state(run: DryRun, number: int = 0) -> dict[str, str]:
    return {entry.key: entry.value for entry in run.iterations[number].state}


def messages(run: DryRun) -> list[str]:
    return [str(problem) for problem in run.problems]


# --------------------------------------------------------------------------------------------------------- what it reports


def test_the_state_of_the_quick_start_is_told_without_data(monkeypatch):
    monkeypatch.setattr(ImagePairs, "__init__", None)  # opening the data would fail
    run = dry_run(load(QUICK_START))
    assert messages(run) == []
    assert state(run) == {
        "lq": "float32 (8, 3, 32, 32)",
        "hq": "float32 (8, 3, 128, 128)",
        "path": "['image.png', 'image.png', 'image.png', ...]",
        "gen": "float32 (8, 3, 128, 128)",
    }
    writers = {entry.key: entry.writer for entry in run.iterations[0].state}
    assert writers["gen"] == "steps.generator.injectors.gen"
    assert writers["lq"] == "datasets.train (builtin_photos)"


def test_the_sample_that_a_data_set_tells_is_the_one_that_it_gives(tmp_path):
    config = load(QUICK_START)
    with Trainer(replace(config, path=replace(config.path, experiments=str(tmp_path))))._loader() as loader:
        batch = next(loader)
    told = state(dry_run(config))
    for key in ("lq", "hq"):
        assert told[key] == f"{str(batch[key].dtype).removeprefix('torch.')} {tuple(batch[key].shape)}"


def test_a_data_set_that_cannot_tell_is_asked_for_one_sample(tmp_path):
    run = dry_run(configure(tmp_path, toys.PSNR))
    assert messages(run) == []
    assert state(run)["lq"] == "float32 (4, 3, 8, 8)"
    assert state(run)["noisy"] == "float32 (4, 3, 8, 8)"
    assert state(run)["gen"] == "float32 (4, 3, 16, 16)"


def test_missing_data_that_must_be_read_are_a_problem_of_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(toys.ToyPairs, "__len__", lambda self: 0)
    run = dry_run(configure(tmp_path, toys.PSNR))
    assert len(run.problems) == 1
    assert f"{tmp_path}/options.yml:4:10: datasets.train" in messages(run)[0]
    assert "has no samples" in messages(run)[0]


@DATASETS.register("toy_sounds")
class ToySounds(Dataset):
    """Sounds of several lengths, padded to the longest of the batch: it has a `collate` of its own."""

    provides = ("lq", "hq", "lengths")

    def __init__(self, phase: str, /, *, size: int = 16) -> None:
        raise AssertionError("there are no sounds here")

    @classmethod
    def sample_spec(cls, phase: str, options: Any) -> dict[str, Any]:
        size = options["size"]
        return {"lq": TensorSpec((3, size // 2, size // 2)), "hq": TensorSpec((3, size, size)), "lengths": 7}

    @staticmethod
    def collate(samples: Any, sources: Any) -> dict[str, Any]:
        batch = {key: nn.utils.rnn.pad_sequence([s[key] for s in samples], batch_first=True) for key in ("lq", "hq")}
        return {**batch, "lengths": torch.tensor([s["lengths"] for s in samples])}


def test_a_data_set_may_collate_what_it_tells(tmp_path):
    run = dry_run(configure(tmp_path, toys.PSNR, "datasets.train={mode: toy_sounds, batch_size: 3}"))
    assert messages(run) == []
    assert state(run)["lq"] == "float32 (3, 3, 8, 8)"
    assert state(run)["lengths"] == "int64 (3,)"


@pytest.mark.parametrize("file", [QUICK_START, GAN, ROOT / "options/train_rrdb_psnr.yml"], ids=lambda p: p.stem)
def test_parameters_are_counted_as_in_the_real_networks(file):
    config = load(file)
    for size in dry_run(config).networks:
        section = config.networks[size.name]
        network = ARCHS.create(section.which_model, section.options)
        assert size.trainable == sum(p.numel() for p in network.parameters())
        assert size.frozen == 0


def test_a_frozen_network_is_counted_as_frozen(tmp_path):
    text = toys.GAN.replace("{type: discriminator, which", "{type: discriminator, trainable: false, which")
    start, end = text.index("  discriminator:\n    training"), text.index("  generator:\n    training")
    run = dry_run(configure(tmp_path, text[:start] + text[end:]))
    assert messages(run) == []
    sizes = {size.name: (size.trainable > 0, size.frozen > 0) for size in run.networks}
    assert sizes == {"generator": (True, False), "discriminator": (False, True)}


@ARCHS.register("toy_computing")
class Computing(nn.Module):
    """Computes with values when it is built, has one weight in two places and a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.mean = torch.full((3, 1, 1), 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) -> (B, 3, 2 h, 2 w)."""
        x = self.second(self.first(x - self.mean)) * (1 - self.rates[1])
        return nn.functional.interpolate(x, scale_factor=2)


def test_a_network_may_compute_when_it_is_built(tmp_path):
    run = dry_run(configure(tmp_path, toys.PSNR, "networks.generator={which_model: toy_computing}"))
    assert messages(run) == []
    assert run.networks[0].trainable == 3 * 3 * 3 * 3 + 2 * 3
    assert state(run)["gen"] == "float32 (4, 3, 16, 16)"


def test_the_operations_of_a_convolution_are_those_of_the_formula(tmp_path):
    """ToyDiscriminator on 16 x 16: 4 x 4 convolution to 4 channels, 1 x 1 to one; a multiply-add counts two."""
    run = dry_run(configure(tmp_path, toys.GAN))
    forward = 2 * 4 * (16 * 3 * 4 * 4 * 4 + 16 * 4)  # batch 4, 4 x 4 output pixels
    weight_only = 2 * 4 * 16 * 3 * 4 * 4 * 4  # the first convolution's input needs no gradient
    backward = 2 * 4 * (16 * 4) * 2 + weight_only
    pictures = 2 * 4 * 8 * 8 * (3 * 3 * 3 * 4 + 4 * 3 * 3 * 12)  # the generator's two convolutions, without gradients
    cost = next(cost for cost in run.iterations[0].costs if cost.step == "discriminator")
    assert cost.flops == pictures + 2 * (forward + backward)  # real and generated pictures


def test_every_gate_is_opened(tmp_path):
    run = dry_run(load(GAN))
    assert [(i.number, i.in_run) for i in run.iterations] == [(0, True), (100, True), (200, True)]
    assert run.iterations[2].switched == ["steps.generator.losses.gan", "steps.discriminator"]
    assert [cost.step for cost in run.iterations[0].costs if cost.step] == ["generator"]
    peaks = [iteration.peak.total for iteration in run.iterations]
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[2]
    late = dry_run(load(GAN, ["train.niter=150"]))
    assert [i.in_run for i in late.iterations] == [True, True, False]
    assert late.largest is late.iterations[1]


def test_kinds_of_iterations_follow_the_gates(tmp_path):
    config = configure(
        tmp_path, toys.GAN, "steps.generator.losses.gan.after=5", "steps.generator.losses.gan.every=4",
        "steps.discriminator.every=3", "steps.discriminator.before=100",
    )  # fmt: skip
    # The discriminator trains and the generator listens: yes/no, no/no, no/yes, yes/yes; from 100 on the former does not run.
    assert iteration_kinds(config) == [0, 1, 8, 12, 100, 101]


def test_no_memory_is_taken_for_a_network_of_published_size():
    """RRDB with 23 blocks on 16 crops of 128 x 128: its activations are 30 GB."""
    code = (
        "import resource, sys, json; from dlas.config import load; from dlas.engine.dryrun import dry_run, DEVICES\n"
        f"config = load({str(QUICK_START)!r}, sys.argv[1:]); import dlas.archs.rrdb, dlas.engine.trainer\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = used(); run = dry_run(config, DEVICES['h200'])\n"
        "print(json.dumps([used() - before, run.largest.peak.total, list(map(str, run.problems)),"
        " [n.trainable for n in run.networks]]))"
    )
    overrides = [
        "precision=fp32", "networks.generator={which_model: RRDBNet, nf: 64, nb: 23, gc: 32}",
        "datasets.train.batch_size=16", "datasets.train.target_size=512",
    ]  # fmt: skip
    out = subprocess.run(
        [sys.executable, "-c", code, *overrides], capture_output=True, text=True, check=True, cwd=ROOT / "codes"
    )
    taken, forecast, problems, parameters = json.loads(out.stdout)
    assert problems == []
    assert parameters == [16_697_987]
    assert forecast > 25e9
    assert taken < 150e6


# ----------------------------------------------------------------------------------------------------------- what it finds


def test_a_wrong_number_of_channels_is_found_where_the_network_runs():
    run = dry_run(unproven(GAN, "networks.generator.in_nc=4", "networks.generator.additive_mode=not"))
    assert len(run.problems) == 1  # the discriminator's step reads what could not be written: not a fault of its own
    assert messages(run)[0].startswith(
        f"{GAN}:45:12: steps.generator.injectors.gen: network 'generator' cannot work on its inputs"
    )
    assert "lq: float32 (8, 3, 32, 32)" in messages(run)[0]
    assert "expected input[8, 3, 32, 32] to have 4 channels, but got 3 channels" in messages(run)[0]


def test_all_problems_are_found_each_in_its_place():
    run = dry_run(unproven(GAN, "networks.discriminator.image_size=64", "steps.generator.losses.pix.real=lq"))
    places = [message.split(": ")[:2] for message in messages(run)]
    assert places == [
        [f"{GAN}:47:12", "steps.generator.losses.pix"],
        [f"{GAN}:49:9", "steps.generator.losses.gan"],
        [f"{GAN}:63:9", "steps.discriminator.losses.gan"],
    ]
    assert "real 'lq' (8, 3, 32, 32) and fake 'gen' (8, 3, 128, 128)" in messages(run)[0]
    assert "built for 64x64 pictures and got 128x128" in messages(run)[1]
    assert "hq: float32 (8, 3, 128, 128)" in messages(run)[2]
    assert "gen: float32 (8, 3, 128, 128)" in messages(run)[2]


def test_what_cannot_be_built_does_not_hide_the_rest(tmp_path):
    run = dry_run(
        unproven_text(
            tmp_path, toys.GAN,
            "networks.discriminator={which_model: discriminator_vgg_128, image_size: 33}",
            "steps.generator.injectors.bigger={type: interpolate, in: gen, out: bigger}",
            "steps.generator.losses.more={type: pix, criterion: l1, weight: 1, real: hq, fake: bigger}",
            "steps.generator.losses.pix.real=lq",
            "steps.generator.optimizer_params.fused=true",
        )
    )  # fmt: skip
    found = "\n".join(messages(run))
    for text in (
        "networks.discriminator: image_size must be a multiple of 32",
        "steps.generator.injectors.bigger: interpolate: give either 'scale_factor' or 'size'",
        "steps.generator.losses.pix: pix: real 'lq'",
    ):
        assert text in found
    assert len(run.problems) == 3


def test_a_loss_that_reaches_no_network_is_a_problem_of_its_step(tmp_path):
    run = dry_run(
        unproven_text(
            tmp_path, toys.PSNR, "steps.generator.losses.pix={type: pix, criterion: l1, weight: 1, real: lq, fake: noisy}"
        )
    )
    assert len(run.problems) == 1
    assert run.problems[0].path == "steps.generator"
    assert "no loss that is on depends on a parameter of generator" in messages(run)[0]


def test_a_key_that_nothing_writes_is_named(tmp_path):
    run = dry_run(unproven_text(tmp_path, toys.PSNR, "steps.generator.losses.pix.real=hd"))
    assert "the state key 'hd' has not been written; there are: gen, hq, lq, name, noisy, path" in messages(run)[0]
    assert run.problems[0].path == "steps.generator.losses.pix"


@INJECTORS.register("toy_keeps_bright")
class KeepsBright(toys.PassingNoise):
    """What comes out depends on values."""

    def __call__(self, state: Any, context: Any) -> dict[str, Any]:
        x = state[self.source]
        return {self.out: x[x > 0.5]}


def test_what_needs_values_is_passed_over_with_a_warning(tmp_path):
    run = dry_run(
        configure(
            tmp_path, toys.PSNR,
            "steps.generator.injectors.bright={type: toy_keeps_bright, in: gen, out: bright}",
            "steps.generator.losses.more={type: direct, key: bright, weight: 1}",
            "steps.generator.losses.pix.real=lq",
        )
    )  # fmt: skip
    severities = {problem.path: problem.severity for problem in run.problems}
    assert severities == {"steps.generator.injectors.bright": "warning", "steps.generator.losses.pix": "error"}
    assert "cannot be traced without data" in "\n".join(messages(run))


def test_injectors_that_draw_and_resize_are_traced(tmp_path):
    injectors = [
        "{type: noise, in: lq, out: a, shape: [3, 4]}",
        "{type: add_noise, in: gen, out: b}",
        "{type: stylegan2_noise, in: lq, out: c}",
        "{type: mix_and_label, in: [gen, hq], out: d, out_labels: labels}",
        "{type: random_crop, in: hq, out: e, dim_in: 16, dim_out: 8}",
        "{type: margin_removal, in: gen, out: f, margin: 2, random_shift_max: 1}",
        "{type: resize, in: gen, out: g, scale: 0.5}",
        "{type: image_patch, in: gen, out: h, patch_size: 8}",
        "{type: decompose_dimension, in: gen, out: i, dim: 2}",
        "{type: recompose_dimension, in: i, out: j, reverse_shape: i_reverse_shape, reverse_permute: i_reverse_permute}",
        "{type: scheduled_scalar, out: k, scheduler: {type: fixed, weight: 2.0}}",
    ]
    overrides = [f"steps.generator.injectors.extra{number}={text}" for number, text in enumerate(injectors)]
    losses = [f"steps.generator.losses.of_{key}={{type: direct, weight: 1, key: {key}}}" for key in "bdfgh"]
    run = dry_run(configure(tmp_path, toys.PSNR, *overrides, *losses))
    assert messages(run) == []
    found = state(run)
    assert found["labels"] == "int64 (4,)"
    assert (found["e"], found["f"], found["g"]) == tuple(
        f"float32 {shape}" for shape in ((4, 3, 8, 8), (4, 3, 12, 12), (4, 3, 8, 8))
    )
    assert found["h_bottom_right"] == "float32 (4, 3, 8, 8)"
    assert found["k"] == "2.0"
    # What is remembered between calls must not have turned fake.
    assert imresize(torch.ones(1, 3, 16, 16), 0.5).tolist()[0][0][0][0] == pytest.approx(1.0)


@pytest.mark.parametrize("gan_type", ["gan", "ragan", "wgan", "hinge"])
def test_adversarial_losses_are_traced(tmp_path, gan_type):
    change = [f"steps.{step}.losses.gan.gan_type={gan_type}" for step in ("generator", "discriminator")]
    penalty = "steps.discriminator.losses.gan.gradient_penalty=true"
    assert messages(dry_run(configure(tmp_path, toys.GAN, *change, penalty))) == []


# ------------------------------------------------------------------------------------------------------------ the forecast


def held_in_training(run: Trainer, number: int) -> int:
    """The most bytes that torch's allocator had handed out at one time, by the profiler's own record."""
    with run._loader() as loader:
        batches = [next(loader) for _ in range(2)]
    run.progress.step = number
    run.iterate(dict(batches[0]))
    tensors = [*(p for n in run.networks.values() for p in (*n.parameters(), *n.buffers()))]
    tensors += [a for ema in run.averages.all() for a in ema._averages]
    tensors += [v for s in run.steps for entries in s.optimizer.state.values() for v in entries.values()]
    tensors += [value for value in batches[1].values() if isinstance(value, torch.Tensor)]
    held = most = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run.progress.step = number
        run.iterate(dict(batches[1]))
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


NETWORKS = "networks.generator={which_model: RRDBNet, nf: 16, nb: 2, gc: 8}"
CASES = {
    "plain": (QUICK_START, [NETWORKS, "precision=fp32", "memory_format=contiguous"]),
    "bf16": (QUICK_START, [NETWORKS, "precision=bf16"]),
    "checkpointing": (QUICK_START, [NETWORKS, "precision=fp32", "checkpointing_enabled=true"]),
    "micro-batches": (QUICK_START, [NETWORKS, "precision=fp32", "train.mega_batch_factor=3"]),
    "sgd, no average": (QUICK_START, [NETWORKS, "precision=fp32", "train.ema.enabled=false", "steps.generator.optimizer=sgd",
                                      "steps.generator.optimizer_params={lr: 0.1, momentum: 0.9}"]),
    "gan": (GAN, ["precision=fp32", "networks.generator.nb=1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_forecast_is_within_20_percent_of_what_training_holds(case, tmp_path):
    file, overrides = CASES[case]
    config = load(file, [*overrides, "device=cpu", "datasets.train.batch_size=6", f"path.experiments={tmp_path}"])
    largest = dry_run(config).largest
    assert largest is not None
    measured = held_in_training(Trainer(config), largest.number)
    assert largest.peak.total == pytest.approx(measured, rel=0.2)


def test_memory_is_attributed(tmp_path):
    run = dry_run(configure(tmp_path, toys.PSNR))
    weights = 4 * run.networks[0].trainable
    parts = run.largest.peak.by_kind
    assert parts["parameters"] == weights
    assert parts["buffers"] == 4
    assert parts["averages"] == weights + 4
    assert parts["optimizer state"] >= 2 * weights
    assert parts["batch"] == 4 * 4 * (3 * 8 * 8 + 3 * 16 * 16)
    assert sum(parts.values()) == run.largest.peak.total
    without = dry_run(configure(tmp_path, toys.PSNR, "train.ema.enabled=false"))
    assert run.largest.peak.total - without.largest.peak.total == weights + 4


def test_a_storage_counts_until_its_last_view_dies():
    tracker = Tracker(block=512)
    with tracker:
        first = torch.ones(100)
        view = first[10:].reshape(9, 10)
        del first
        second = torch.ones(200)
        del view
        torch.ones(100)
        del second
    assert tracker.peak.total == 512 + 1024
    tracker.hold([torch.ones(1000)], "parameters")
    assert tracker.peak.total == 4096


# ---------------------------------------------------------------------------------------------------------------- the time


def test_time_is_the_longest_of_arithmetic_traffic_and_latency():
    device = DEVICES["a100"]
    product = Operation(torch.bfloat16, 10**15, 10**6)
    copy = Operation(torch.float32, 0, 10**12)
    tiny = Operation(torch.float32, 10, 10)
    assert device.seconds([product], tf32=True) == pytest.approx(1e15 / (312e12 * 0.4))
    assert device.seconds([copy], tf32=True) == pytest.approx(1e12 / (2039e9 * 0.7))
    assert device.seconds([tiny], tf32=True) == pytest.approx(6e-6)
    single = Operation(torch.float32, 10**15, 10**6)
    assert device.seconds([single], tf32=False) == pytest.approx(1e15 / (19.5e12 * 0.4))
    assert device.seconds([product, copy, tiny], True) == pytest.approx(
        sum(device.seconds([each], True) for each in (product, copy, tiny))
    )


def test_the_precision_follows_the_device():
    config = load(QUICK_START, ["precision=auto"])
    assert dry_run(config, DEVICES["a100"]).precision == "bf16"
    assert dry_run(config, DEVICES["t4"]).precision == "fp16"
    refused = dry_run(load(QUICK_START, ["precision=bf16"]), DEVICES["t4"])
    assert "precision: the NVIDIA T4 does not compute in bfloat16; write 'precision: auto'" in messages(refused)[0]


def test_group_norm_is_in_float32_under_the_autocast_of_cuda():
    """What CUDA's autocast computes in float32 takes more memory than on a CPU, which computes it in bfloat16."""
    config = load(GAN, ["precision=bf16", "networks.discriminator.nf=64"])
    on_gpu = dry_run(config, DEVICES["a100"]).iterations[1].peak.total
    on_cpu = dry_run(config, replace(DEVICES["a100"], kind="cpu")).iterations[1].peak.total
    assert on_gpu > 1.2 * on_cpu


def test_a_run_that_does_not_fit_gets_a_warning():
    big = ["datasets.train.batch_size=512", "precision=fp32", "networks.generator.nf=64", "networks.generator.nb=8"]
    run = dry_run(load(QUICK_START, big), DEVICES["t4"])
    assert [problem.severity for problem in run.problems] == ["warning"]
    assert "the NVIDIA T4 has 16 GB; set train.micro_batch_size: auto" in messages(run)[0]


def test_an_unknown_device_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"no device is called 'h10'; did you mean '\w+'\? known: t4, .*h200"):
        find_device("h10")


# ------------------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_tables(capsys):
    assert main(["check", "--dry", "-opt", str(GAN), "--device", "a100"]) == 0
    out = capsys.readouterr().out
    assert "steps.generator.injectors.gen" in out
    assert "forecast for NVIDIA A100 SXM 80 GB, bf16: peak memory" in out
    assert "rough estimates" in out
    assert out.endswith("0 errors, 0 warnings and notices\n")


def test_the_command_ends_with_2_where_there_are_problems(capsys):
    fault = "steps.generator.injectors.bigger={type: interpolate, in: gen, out: bigger}"  # not to be seen from outside
    assert main(["check", "--dry", "-opt", str(GAN), "--set", fault]) == 2
    out = capsys.readouterr().out
    assert "steps.generator.injectors.bigger: interpolate: give either 'scale_factor' or 'size'" in out
    assert "forecast" not in out
    assert main(["check", "--dry", "-opt", str(GAN), "--set", "networks.generator.nff=3"]) == 2
    assert "no option 'nff'" in capsys.readouterr().out
    assert main(["check", "--dry", "-opt", str(GAN), "--device", "abacus"]) == 2
