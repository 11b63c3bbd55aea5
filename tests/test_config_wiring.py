"""Files that are right, though it takes some thought to see it: the checker says nothing of them."""

from __future__ import annotations

import inspect

import pytest
import torch

import toys
from dlas.config import check
from dlas.config.torch_classes import NOT_CONFIGURABLE, optimizer_entry, optimizer_files, schedule_entry, schedule_names
from dlas.config.wiring.gates import Window, first_uncovered
from dlas.optim import build_optimizer

BASE = """\
name: right
scale: 4
datasets:
  train: {mode: builtin_photos, batch_size: 8, target_size: 128}
  val: {mode: builtin_photos}
networks:
  generator: {which_model: RRDBNet, nf: 8, nb: 1, gc: 4}
  discriminator: {type: discriminator, which_model: discriminator_vgg_128_gn, nf: 8, image_size: 96}
steps:
  discriminator:
    training: discriminator
    after: 100
    optimizer_params: {lr: 1e-4}
    injectors:
      plq: {type: image_patch, patch_size: 24, in: lq, out: plq}
      phq: {type: image_patch, patch_size: 96, in: hq, out: phq}
      dgen: {type: generator, generator: generator, grad: false, in: plq, out: dgen}
    losses:
      gan: {type: discriminator_gan, gan_type: gan, weight: 1, real: phq, fake: dgen}
  generator:
    training: generator
    optimizer_params: {lr: 1e-4}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
      pgen: {type: image_patch, patch_size: 96, in: gen, out: pgen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
      gan: {type: generator_gan, gan_type: gan, weight: 0.1, after: 200, discriminator: discriminator, fake: pgen_top_left}
train: {niter: 600}
"""

PIX = "      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}\n"
GEN = "      gen: {type: generator, generator: generator, in: lq, out: gen}\n"


def chained(*lines: str, read: str) -> str:
    """BASE with injectors behind `gen`, whose last output the loss reads."""
    return BASE.replace(GEN, GEN + "".join(f"      {line}\n" for line in lines)).replace(
        PIX, PIX.replace("fake: gen", f"fake: {read}")
    )


RIGHT = {
    "as it is": BASE,
    "a key read within the gate of its writer": chained(
        "late: {type: direct, in: gen, out: late, after: 100, every: 2}", read="late, after: 101, every: 4"
    ),
    "two writers that share the run": chained(
        "a: {type: clamp, min: 0, in: gen, out: x, before: 300, train: true}",
        "b: {type: clamp, min: 0, max: 1, in: gen, out: x, after: 300, train: true}",
        read="x",
    ),
    "a writer for training and one for evaluation": chained(
        "a: {type: add_noise, in: gen, out: x, train: true}", "b: {type: direct, in: gen, out: x, eval: true}", read="x"
    ),
    "keys that injectors derive": chained(
        "a: {type: decompose_dimension, in: gen, out: x, dim: 1}",
        "b: {type: recompose_dimension, in: x, out: y, reverse_shape: x_reverse_shape, reverse_permute: x_reverse_permute}",
        read="y",
    ),
    "numbers where keys may stand": chained("a: {type: arithmetic, operation: multiply, in: [gen, 0.5], out: x}", read="x"),
    "no value, and lists": BASE.replace("in: lq, out: gen}", "in: [lq, None, 3], out: [gen]}"),
    "another injector's injector": chained(
        "a: {type: for_each, subtype: interpolate, in: gen, out: x, scale_factor: 1}", read="x"
    ),
    "a patch brought to the size of the discriminator": BASE.replace(
        "patch_size: 96, in: hq", "patch_size: 64, resize: 96, in: hq"
    ),
    "one step for two networks": BASE.replace("    training: generator\n", "    training: [generator]\n"),
    "torch's own classes": BASE.replace("    optimizer_params: {lr: 1e-4}\n", (
        "    optimizer: NAdam\n"
        "    optimizer_params: {lr: 1e-4, betas: [0.9, 0.99], momentum_decay: 0.1, exclude_norm_and_bias: true}\n"
        "    lr_scheme: {type: CosineAnnealingLR, T_max: 600}\n"
    ), 1),
    "an optimizer of another package": BASE.replace("optimizer_params", "optimizer: pkg.Shampoo\n    optimizer_params", 1),
    "groups of parameters": BASE.replace(
        "{lr: 1e-4}", "{lr: 1e-4, param_groups: {head: {match: 'linear\\d', lr: 0, weight_decay: 0.1, betas: [0.5, 0.9]}}}", 1
    ),
    "injectors of its own for evaluation": BASE
    + "eval:\n  output_state: out\n  injectors: {out: {type: generator, generator: generator, in: lq, out: out}}\n",
    "network without scale": BASE.replace("scale: 4\n", "").replace("128}", "128, scale: 2}").replace(
        "{mode: builtin_photos}", "{mode: builtin_photos, scale: 2}"
    ).replace("nb: 1,", "nb: 1, scale: 2,").replace("image_size: 96", "image_size: 64").replace(
        "patch_size: 24", "patch_size: 32"
    ).replace("patch_size: 96", "patch_size: 64"),
    "channels under other names": BASE.replace(
        "RRDBNet, nf: 8, nb: 1, gc: 4", "SwinIR, embed_dim: 12, depths: [2], num_heads: [2]"
    ).replace("discriminator_vgg_128_gn, nf: 8, image_size: 96", "UNetDiscriminatorSN, num_feat: 8"),
    "the toys": toys.PSNR,
    "the toy GAN": toys.GAN,
    "a loss that says nothing of what it reads": toys.PSNR.replace(
        "    losses:\n", "    losses:\n      never: {type: toy_forbidden, weight: 1, after: 5}\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_a_file_that_is_right(name, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    path = tmp_path / "right.yml"
    path.write_text(RIGHT[name])
    assert [str(problem) for problem in check(path)] == []


def test_gates_cover_exactly_what_enumeration_says():
    """All small windows against one and two others, in 60 iterations."""
    windows = [Window(after, before, every) for after in (0, 3, 20) for before in (10, 30, 60) for every in (1, 2, 3, 4)]
    run = Window(before=60)

    def steps(window):
        return {s for s in range(window.after, min(window.before, 60)) if s % window.every == 0}

    for wanted in windows:
        assert (wanted.first is None) == (not steps(wanted))
        for number, first in enumerate(windows):
            for second in windows[number::7]:
                missing = sorted(steps(wanted) - steps(first) - steps(second))
                assert first_uncovered(wanted & run, [first, second]) == (missing[0] if missing else None)
            assert steps(wanted & first) == steps(wanted) & steps(first)


def test_torch_is_read_as_it_is():
    """What is read from torch's source text is what importing it shows."""
    classes = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    assert set(optimizer_files()) == set(classes)
    added = {"beta1", "beta2", "param_groups", "exclude_norm_and_bias"}
    for name, cls in classes.items():
        entry = optimizer_entry(name.lower())
        assert entry is not None
        assert {p.name for p in entry.parameters} - added == set(list(inspect.signature(cls).parameters)[1:])
    base = torch.optim.lr_scheduler.LRScheduler
    schedules = {
        name: value
        for name, value in vars(torch.optim.lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not name.startswith("_")
    }
    assert set(schedule_names()) == set(schedules) - NOT_CONFIGURABLE
    for name in schedule_names():
        entry = schedule_entry(name)
        assert entry is not None
        assert {p.name for p in entry.parameters} == set(list(inspect.signature(schedules[name]).parameters)[1:])


def test_what_the_checker_refuses_the_builder_refuses_too():
    network = {"n": torch.nn.Linear(2, 2)}
    with pytest.raises(Exception, match="evaluates the loss several times"):
        build_optimizer("LBFGS", network, {})
    with pytest.raises(Exception, match="no option 'momentun_decay'"):
        build_optimizer("NAdam", network, {"momentun_decay": 0.1})
