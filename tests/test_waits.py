"""Nothing in a training step lets the host wait for a GPU, in all that is there and all that will come."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import resume.served  # noqa: F401  # registers its components
import toys
from dlas.context import Context
from dlas.engine import iteration
from dlas.engine import trainer as trainer_module
from dlas.engine.health import HealthMonitor, monitor
from dlas.engine.health.holding import HeldOptimizer
from dlas.engine.stage import STAGE
from dlas.engine.waiting import waiting_meant, waiting_told
from dlas.explain.catalogue import shipped
from dlas.host import constant
from dlas.injectors import create_injector
from dlas.losses import create_loss
from dlas.optim.optimizers import build_optimizer
from dlas.registry import ARCHS, LOSSES
from resume.configurations import CONFIGURATIONS
from runs import batches, trainer
from test_injectors import TABLE, context
from test_optimizers import MINIMAL
from waits import DEVICE, NoWaiting, WaitError, on_device

WAITING = {
    "unified_voice2": "`clip_inputs` cuts to the longest of the batch, and says so",
    "to_device": "the table moves to the CPU",
    "generator_ema": "the table's averages are on the CPU",
}
"""What waits, and why."""


def total(value: Any) -> Any:
    """The sum of all means of what has a gradient."""
    if isinstance(value, Tensor):
        return value.float().mean() if value.requires_grad and value.is_floating_point() else 0
    if isinstance(value, dict):
        return sum(map(total, value.values()))
    return sum(map(total, value)) if isinstance(value, list | tuple) else 0


# ---- the finder --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x[[0, 1]],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.copy_(torch.ones(2, 2)),
        lambda x: torch.linalg.inv(x),
    ],
)
def test_waiting_is_found(waits):
    with pytest.raises((WaitError, RuntimeError)), NoWaiting():
        waits(torch.ones(2, 2, device=DEVICE))


def test_waiting_in_the_backward_pass_is_found():
    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    x = torch.ones(2, device=DEVICE, requires_grad=True)
    with pytest.raises(WaitError, match="a number of the device is asked for"), NoWaiting():
        Asks.apply(x).sum().backward()


def test_what_does_not_wait_is_let_through():
    with NoWaiting():
        x = torch.ones(2, 2, device=DEVICE)
        x[0] = torch.where(x[0] > 0, x[1], 3.0) * torch.tensor(2.0)
        x += constant([1.0, 2.0], x.device)
        assert torch.tensor([1, 2]).tolist() == [1, 2]


# ---- all that is registered --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(shipped(ARCHS)) - set(WAITING)))
def test_no_network_waits(name):
    options, inputs = ARCHS.get(name).tiny()
    network = ARCHS.get(name)(**options).train().to(DEVICE)
    inputs = on_device(tuple(inputs))
    with NoWaiting():
        value = total(network(*inputs))
        if isinstance(value, Tensor):
            value.backward()


@pytest.mark.parametrize("name", sorted(TABLE.keys() - WAITING.keys()))
def test_no_injector_waits(name):
    options, state = TABLE[name]
    where = context()
    for network in where.networks.values():
        network.to(DEVICE)
    state = on_device(state)
    with NoWaiting():
        create_injector({"type": name, **options})(state, where)


class Upsampler(nn.Module):
    """(B, 3, h, w) -> (B, 3, 2 h, 2 w)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2)


PAIR = {"real": "hq", "fake": "gen"}
PICTURES = {"hq": torch.rand(4, 3, 48, 48), "gen": torch.rand(4, 3, 48, 48, requires_grad=True)}
SMALL = {"lq": torch.rand(4, 3, 24, 24, requires_grad=True), "full": torch.rand(4, 3, 48, 48, requires_grad=True)}
CORNERS = ("p_top_left", "p_top_right", "p_bottom_left", "p_bottom_right")
PATCHES = {name: torch.rand(4, 3, 12, 12) for name in ("p", *CORNERS)}
ROUTED = {"shares": torch.rand(2, 3, 4, 4), "chosen": torch.rand(2, 3, 4, 4), "load": torch.rand(3)}
TACOTRON = {name: torch.rand(2, 6) if name.startswith("gate") else torch.rand(2, 4, 6) for name in (
    "mel_target", "mel_output", "mel_output_postnet", "gate_target", "gate_output"
)}  # fmt: skip
# One row for each loss: its options and the state that it reads.
FEATURES = {**PAIR, "which_model_F": "mobilenet_v2", "layer_weights": {"features.1": 1.0}, "random_weights": True}
WITH_NETWORK = {"generator": "net", "criterion": "l1", "real": "full"}
WAVES = {"a": torch.rand(2, 4096), "b": torch.rand(2, 4096, requires_grad=True)}
TOKENS = {"x": torch.rand(1, 4, 5), "k": torch.tensor([[1, 0, 4, 2]])}
LATENTS = {"a": torch.rand(4, 5), "b": torch.rand(4, 5), "s": torch.rand(()), "k": torch.tensor([1, 0, 1, 2])}
OF_LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("average", "blurred_color", "color", "gradient", "luma"), (PAIR, PICTURES)),
    **dict.fromkeys(("fft", "focal_frequency", "ldl", "ssim"), (PAIR, PICTURES)),
    **dict.fromkeys(("dists", "lpips"), ({**PAIR, "random_weights": True}, PICTURES)),
    **dict.fromkeys(("feature", "style"), ({**FEATURES, "criterion": "l1"}, PICTURES)),
    "contextual": (FEATURES, PICTURES),
    "tv": ({"fake": "gen"}, PICTURES),
    "ms_ssim": ({**PAIR, "scales": 3}, PICTURES),
    "pix": ({**PAIR, "criterion": "charbonnier"}, PICTURES),
    "downscaled": ({"real": "lq", "fake": "full"}, SMALL),
    "direct": ({"key": "gen"}, PICTURES),
    "gaussian_kl": ({"mean": "hq", "log_variance": "gen"}, PICTURES),
    "generator_gan": ({**PAIR, "gan_type": "ragan", "discriminator": "judge", "noise": 0.1}, PICTURES),
    "discriminator_gan": ({**PAIR, "gan_type": "gan", "noise": 0.1, "label_noise": 0.1, "label_flip": 0.1}, PICTURES),
    "stylegan2_divergence": (
        {**PAIR, "discriminator": "judge", "gen_loss": False, "gradient_penalty_frequency": 1},
        PICTURES,
    ),
    "gradient_penalty": (PAIR, PICTURES),
    "r1": ({"real": "hq"}, PICTURES),
    "translational": ({**WITH_NETWORK, "real": "lq", "fake": ["p"], "patch_size": 24, "overlap": 8}, SMALL | PATCHES),
    "geometric": ({**WITH_NETWORK, "fake": "lq"}, SMALL),
    "recursive": ({**WITH_NETWORK, "fake": "lq", "recursive_depth": 1, "downsample_factor": 0.5}, SMALL),
    "crossentropy": ({"logits": "x", "labels": "k"}, {"x": torch.rand(4, 5), "k": torch.tensor([1, 0, 4, 2])}),
    "token_cross_entropy": ({"logits": "x", "tokens": "k", "ignore": 0}, TOKENS),
    "contrastive": ({"first": "a", "second": "b", "scale": "s", "same": "k"}, LATENTS),
    "multi_resolution_stft": ({"real": "a", "fake": "b"}, WAVES),
    "nv_tacotron2_loss": ({f"{name}_key": name for name in TACOTRON}, TACOTRON),
    **dict.fromkeys(("switch_balance", "switch_load"), ({"switches": "s"}, {"s": {"layer": ROUTED}})),
}


def test_every_loss_is_in_the_table():
    assert set(OF_LOSSES) | {"path_length"} == set(shipped(LOSSES))


@pytest.mark.parametrize("name", sorted(OF_LOSSES))
def test_no_loss_waits(name):
    options, state = OF_LOSSES[name]
    loss = create_loss({"type": name, **options})
    loss.prepare(torch.device("cpu"))
    networks = {"judge": toys.ToyDiscriminator().to(DEVICE), "net": Upsampler()}
    trained = ["judge"] if "gen_loss" in options or name in ("discriminator_gan", "gradient_penalty", "r1") else ["net"]
    loss, state = loss.to(DEVICE), on_device(state)
    with NoWaiting():
        value = total(loss(state, Context(networks, trained, positions=range(4))))
        if isinstance(value, Tensor):
            value.backward()


def test_path_length_does_not_wait():
    w = torch.rand(4, 6, device=DEVICE, requires_grad=True)
    loss = create_loss({"type": "path_length", "w_styles": "w", "gen": "gen"}).to(DEVICE)
    with NoWaiting():
        value = loss({"w": w, "gen": w.square().view(4, 6, 1, 1).expand(4, 6, 2, 2)}, Context({}, positions=range(4)))
        total(value).backward()


@pytest.mark.parametrize("name", sorted(MINIMAL.keys() - toys.NEED_APEX))
def test_no_update_waits(name):
    network = toys.ToyGenerator().to(DEVICE)
    optimizer = HeldOptimizer(build_optimizer(name, {"net": network}, MINIMAL[name]))
    optimizer._begun.update(map(id, network.parameters()))  # the host waits for the very first update
    with NoWaiting():
        for _ in range(2):
            network(torch.ones(1, 3, 4, 4, device=DEVICE)).mean().backward()
            optimizer.step(torch.zeros((), device=DEVICE))


# ---- the mode that tells of waiting on CUDA ---------------------------------------------------------------------------------


def test_waiting_is_told_within_steps_but_where_it_is_meant(monkeypatch):
    modes: list[int | str] = [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waiting_told(None), waiting_meant():
        assert modes == [0]
    with suppress(KeyError), waiting_told("error"):
        with waiting_meant():
            assert modes[-1] == "default"
        assert modes[-1] == "error"
        raise KeyError
    assert modes == [0, "error", "default", "error", 0]


def test_steps_and_averages_are_run_in_the_mode_and_nothing_else(tmp_path, monkeypatch):
    log: list[str] = []

    @contextmanager
    def told(mode):
        log.append(f"{mode}: {STAGE.name}")
        yield
        log.append(f"over: {STAGE.name}")

    monkeypatch.setattr(iteration, "waiting_told", told)
    run = trainer(tmp_path, toys.GAN, "train.ema.enabled=true", "sync_debug_mode=error")
    assert run.runner.waiting is None  # of a CPU there is nothing to tell
    run.runner.waiting = "error"
    run.iterate(batches(run, 1)[0])
    steps = ["error: transfer", "over: optimizer", "error: optimizer", "over: optimizer"]
    assert log == [*steps, "error: averages", "over: averages"]


# ---- whole iterations --------------------------------------------------------------------------------------------------------


EVERYTHING = (
    "train.mega_batch_factor=2",
    "train.health={spike: skip}",
    "train.noise_scale={every: 1}",
    "train.ema.post_hoc={every: 4}",
    "steps.generator.clip_grad_eps=0.1",
    "steps.generator.losses.second={type: pix, criterion: l2, weight: 1, real: hq, fake: gen}",
    "steps.generator.balance={at: gen}",
)
"""All that a step may do beside its work."""


@pytest.mark.parametrize("name", ["psnr", "gan", "diffusion"])
def test_no_iteration_waits(tmp_path, monkeypatch, name):
    """Steps, guards, updates, averages; what the host reads of it, it reads an iteration later."""
    monkeypatch.setattr(trainer_module, "HealthMonitor", partial(HealthMonitor, lag=1))
    monkeypatch.setattr(monitor._Record, "read", lambda self: [0] * len(self.watched))  # from pinned memory, after an event
    text = CONFIGURATIONS[name].text
    more = EVERYTHING if name == "psnr" else ()
    run = trainer(tmp_path, text, "device=meta", "train.ema.enabled=true", "logger.efficiency=false", *more)
    data = batches(run, 2)
    for step in run.steps:
        assert step.guard is not None
        step.guard.holder._begun.update(map(id, step.parameters))  # the host waits for the very first update
    with NoWaiting():
        for batch in data:
            run.iterate(batch, log_gradients=True)
    assert run.progress.step == 2
