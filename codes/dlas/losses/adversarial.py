"""Both sides of a generative adversarial network, over the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.gan import RELATIVISTIC, discriminator_loss, generator_loss
from dlas.losses.penalties import interpolate_gradient_penalty, r1_penalty, unit_gradient_penalty
from dlas.registry import LOSSES
from dlas.types import NetworkName, NonNegativeFloat, StateIns

_UNIT_GRADIENT_WEIGHT = 10.0


@LOSSES.register("generator_gan")
class GeneratorGANLoss(Loss):
    """How far the generator is from deceiving a discriminator.

    Logs `d_fake` (mean logit of generated samples), and for the relativistic kinds `d_real`.

    Args:
        gan_type: the objective; must be that of the discriminator. `vanilla`, `pixgan` and `wgan_softplus` are other names of
            `gan`; for `ragan` and `esrgan` the generator's side is the same. Formulas: `dlas.losses.gan`.
        discriminator: the network that judges.
        fake: what the discriminator is given for the generated samples: a key, or the list of its arguments.
        real: the same for real samples; needed by `ragan` and `esrgan`, not looked at by the others.
        noise: amplitude of the noise, uniform in [0, noise], added to each tensor given to the discriminator.
        detach_real: no gradient flows through the discriminator to `real`.
    """

    def __init__(
        self,
        *,
        gan_type: Literal["gan", "vanilla", "pixgan", "ragan", "esrgan", "lsgan", "hinge", "wgan", "wgan_softplus"],
        discriminator: NetworkName,
        fake: StateIns,
        real: StateIns | None = None,
        noise: NonNegativeFloat = 0.0,
        detach_real: bool = True,
    ) -> None:
        super().__init__()
        if gan_type in RELATIVISTIC and real is None:
            raise ConfigurationError(f"generator_gan: gan_type {gan_type} compares with real samples; name their key as 'real'")
        self.gan_type = gan_type
        self.discriminator = discriminator
        self.fake = fake
        self.real = real
        self.noise = noise
        self.detach_real = detach_real

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        network = context.network(self.discriminator)
        stream = f"generator_gan.{self.discriminator}"
        fake_logits = _logits(network, _arguments(self.fake, state, context, self.noise, f"{stream}.fake"))
        metrics = {"d_fake": fake_logits.detach().mean()}
        if self.gan_type not in RELATIVISTIC:
            return generator_loss(self.gan_type, fake_logits), metrics
        # After the fake ones: autocast keeps the weights it has cast, and those cast without gradients would be reused above.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_real):
            real_logits = _logits(network, _arguments(self.real, state, context, self.noise, f"{stream}.real"))
        metrics["d_real"] = real_logits.detach().mean()
        return generator_loss(self.gan_type, fake_logits, real_logits), metrics


@LOSSES.register("discriminator_gan")
class DiscriminatorGANLoss(Loss):
    """How badly the discriminator tells real from generated samples. Its inputs are detached: only the discriminator learns.

    Real and generated samples pass through the network separately, so that layers with batch statistics do not mix them.
    Logs `d_real` and `d_fake` (mean logits) and each penalty that is on, weighted. Penalties are computed in float32, with
    respect to the discriminator's first argument; the other arguments are those of the real samples.

    Args:
        gan_type: the objective; must be that of the generator. `vanilla`, `pixgan` and `wgan_softplus` are other names of
            `gan`; `ragan` is the sum of its two halves, `esrgan` their mean with the opposing average held constant.
            `wgan` is meant to be used with `interpolate_penalty`. Formulas: `dlas.losses.gan`.
        real: what the discriminator is given for real samples: a key, or the list of its arguments.
        fake: the same for generated samples.
        discriminator: the network; not given: the one that the step trains.
        noise: amplitude of the noise, uniform in [0, noise], added to each tensor given to the discriminator.
        gradient_penalty: add 10 (|gradient at a real sample| - 1)^2.
        r1_gamma: gamma of R1: add gamma / 2 |gradient at a real sample|^2 (Mescheder et al., 2018).
        interpolate_penalty: lambda of WGAN-GP: add lambda (|gradient| - 1)^2 at random points between real and generated
            samples (Gulrajani et al., 2017; 10 there).
    """

    detaches = True

    def __init__(
        self,
        *,
        gan_type: Literal[
            "gan", "vanilla", "pixgan", "ragan", "esrgan", "lsgan", "hinge", "wgan", "wgan_softplus", "max_spread"
        ],
        real: StateIns,
        fake: StateIns,
        discriminator: NetworkName | None = None,
        noise: NonNegativeFloat = 0.0,
        gradient_penalty: bool = False,
        r1_gamma: NonNegativeFloat = 0.0,
        interpolate_penalty: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.gan_type = gan_type
        self.real = real
        self.fake = fake
        self.discriminator = discriminator
        self.noise = noise
        self.gradient_penalty = gradient_penalty
        self.r1_gamma = r1_gamma
        self.interpolate_penalty = interpolate_penalty

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        name = self._network_name(context)
        network = context.network(name)
        stream = f"discriminator_gan.{name}"
        real = _map_tensors(torch.detach, _arguments(self.real, state, context, self.noise, f"{stream}.real"))
        fake = _map_tensors(torch.detach, _arguments(self.fake, state, context, self.noise, f"{stream}.fake"))
        penalties: dict[str, Tensor] = {}
        if self.gradient_penalty or self.r1_gamma:
            real_logits, penalties = self._judge_real_with_penalties(network, real)
        else:
            real_logits = _logits(network, real)
        fake_logits = _logits(network, fake)
        if self.interpolate_penalty:
            penalties["interpolate_penalty"] = self._between(network, real, fake, context, f"{stream}.alpha")
        loss = discriminator_loss(self.gan_type, real_logits, fake_logits)
        for penalty in penalties.values():
            loss = loss + penalty
        logged = {"d_real": real_logits.mean(), "d_fake": fake_logits.mean(), **penalties}
        return loss, {key: value.detach() for key, value in logged.items()}

    def _network_name(self, context: Context) -> str:
        if self.discriminator is not None:
            return self.discriminator
        if len(context.trained) != 1:
            trained = ", ".join(context.trained) or "no network"
            raise ConfigurationError(
                f"discriminator_gan: which network is the discriminator? The step trains {trained}; name it as 'discriminator'"
            )
        return context.trained[0]

    def _judge_real_with_penalties(self, network: nn.Module, real: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass for logits and penalties, so that batch statistics see the real samples once."""
        images = _images(real)
        penalties = {}
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float().requires_grad_()
            logits = _logits(network, [images, *real[1:]])
            if self.gradient_penalty:
                penalties["gradient_penalty"] = _UNIT_GRADIENT_WEIGHT * unit_gradient_penalty(logits, images)
            if self.r1_gamma:
                penalties["r1"] = self.r1_gamma / 2 * r1_penalty(logits, images)
        return logits, penalties

    def _between(self, network: nn.Module, real: list[Any], fake: list[Any], context: Context, stream: str) -> Tensor:
        first, second = _images(real).float(), _images(fake).float()
        if first.shape != second.shape:
            raise ValueError(
                f"discriminator_gan: interpolate_penalty needs real and fake samples of the same shape, not "
                f"{tuple(first.shape)} and {tuple(second.shape)}"
            )
        alpha = _noise_like(first[(slice(None), *[slice(1)] * (first.ndim - 1))], context, stream)
        with torch.enable_grad(), torch.autocast(first.device.type, enabled=False):
            penalty = interpolate_gradient_penalty(lambda x: _logits(network, [x, *real[1:]]), first, second, alpha)
        return self.interpolate_penalty * penalty


def _arguments(spec: Any, state: State, context: Context, noise: float, stream: str) -> list[Any]:
    """The discriminator's arguments: keys are looked up, `None` stands for no value, literals pass, lists nest."""
    items = spec if isinstance(spec, list | tuple) else [spec]
    return [_argument(item, state, context, noise, f"{stream}.{index}") for index, item in enumerate(items)]


def _argument(item: Any, state: State, context: Context, noise: float, stream: str) -> Any:
    if isinstance(item, list | tuple):
        return _arguments(item, state, context, noise, stream)
    value = (None if item == "None" else state[item]) if isinstance(item, str) else item
    if noise and isinstance(value, Tensor) and value.is_floating_point():
        return value + noise * _noise_like(value, context, stream).to(value.dtype)
    return value


def _noise_like(tensor: Tensor, context: Context, stream: str) -> Tensor:
    """Uniform in [0, 1), float32. Each sample's noise is its own, however the batch is cut."""
    if len(tensor) != len(context.positions):
        raise ValueError(
            f"noise for a discriminator's input of shape {tuple(tensor.shape)}: its first axis must be the batch, but "
            f"the batch has {len(context.positions)} samples"
        )
    return context.rand(tensor.shape[1:], stream, tensor.device)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_map_tensors(function, each) for each in value]
    return function(value) if isinstance(value, Tensor) else value


def _images(arguments: list[Any]) -> Tensor:
    if not isinstance(arguments[0], Tensor) or not arguments[0].is_floating_point():
        raise ValueError("discriminator_gan: a gradient penalty needs a float tensor as the discriminator's first argument")
    return arguments[0]


def _logits(network: nn.Module, arguments: list[Any]) -> Tensor:
    logits = network(*arguments)
    if not isinstance(logits, Tensor):
        raise ValueError(f"a discriminator must return one tensor of logits, not a {type(logits).__name__}")
    return logits.float()
