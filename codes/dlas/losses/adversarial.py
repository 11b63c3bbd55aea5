"""Both sides of a generative adversarial network, over the state."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.gan import LABELLED, RELATIVISTIC, Labels, discriminator_loss, generator_loss
from dlas.losses.judging import first_image, judge, judge_of, look_up, map_tensors, observe_real, penalty_between, side_by_side
from dlas.losses.penalties import r1_penalty, unit_gradient_penalty
from dlas.registry import LOSSES
from dlas.types import Fraction, NetworkName, NonNegativeFloat, StateIns

UNIT_GRADIENT_WEIGHT = 10.0
"""Of the penalty on gradients whose length is not 1."""


@LOSSES.register("generator_gan")
class GeneratorGANLoss(Loss):
    """How far the generator is from deceiving a discriminator.

    A discriminator that returns a list judges at several scales: the loss is the mean over them. An entry that is itself a list
    holds features and, last, logits.

    Logs `d_fake` (mean logit of generated samples), and for the relativistic kinds `d_real`.

    Args:
        gan_type: the objective; must be that of the discriminator. `vanilla`, `pixgan` and `wgan_softplus` are other names of
            `gan`; for `ragan` and `esrgan` the generator's side is the same. Formulas: `dlas.losses.gan`.
        discriminator: the network that judges.
        fake: what the discriminator is given for the generated samples: a key, or the list of its arguments.
        real: the same for real samples; needed by `ragan` and `esrgan`, not looked at by the others.
        noise: amplitude of the noise, uniform in [0, noise], added to each tensor given to the discriminator.
        detach_real: no gradient flows through the discriminator to `real`.
        real_label: what the kinds of cross entropy and `lsgan` call real.
        fake_label: what they call generated; only the relativistic kinds look at it here.
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
        real_label: float = 1.0,
        fake_label: float = 0.0,
    ) -> None:
        super().__init__()
        _check_labels("generator_gan", gan_type, real_label != 1.0 or fake_label != 0.0)
        if gan_type in RELATIVISTIC and real is None:
            raise ConfigurationError(f"generator_gan: gan_type {gan_type} compares with real samples; name their key as 'real'")
        self.gan_type = gan_type
        self.discriminator = discriminator
        self.fake = fake
        self.real = real
        self.noise = noise
        self.detach_real = detach_real
        self.labels = Labels(real_label, fake_label)

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        network = context.network(self.discriminator)
        stream = f"generator_gan.{self.discriminator}"
        fake_logits = judge(network, look_up(self.fake, state, context, self.noise, f"{stream}.fake"))
        metrics = {"d_fake": _mean(fake_logits).detach()}
        if self.gan_type not in RELATIVISTIC:
            return _mean([generator_loss(self.gan_type, fake, labels=self.labels) for fake in fake_logits]), metrics
        # After the fake ones: autocast keeps the weights it has cast, and those cast without gradients would be reused above.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_real):
            real_logits = judge(network, look_up(self.real, state, context, self.noise, f"{stream}.real"))
        metrics["d_real"] = _mean(real_logits).detach()
        pairs = zip(fake_logits, real_logits, strict=True)
        return _mean([generator_loss(self.gan_type, fake, real, self.labels) for fake, real in pairs]), metrics


@LOSSES.register("discriminator_gan")
class DiscriminatorGANLoss(Loss):
    """How badly the discriminator tells real from generated samples. Its inputs are detached: only the discriminator learns.

    Real and generated samples pass through the network separately, so that layers with batch statistics do not mix them.
    Logs `d_real` and `d_fake` (mean logits) and each penalty that is on, weighted. Penalties are computed in float32, with
    respect to the discriminator's first argument; the other arguments are those of the real samples. A discriminator that
    returns a list judges at several scales: the loss is the mean over them. An entry that is itself a list holds features and,
    last, logits. To compute a penalty in some steps only, use the losses `r1` and `gradient_penalty` beside this one.

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
        real_label: what the kinds of cross entropy and `lsgan` call real: below 1 for one-sided label smoothing (Salimans et
            al., 2016; 0.9 there).
        fake_label: what they call generated.
        label_noise: amplitude of noise, uniform in [-label_noise, label_noise], on the label of each sample.
        label_flip: share of samples whose labels are exchanged, drawn for each sample and side.
    """

    detaches = True
    second_order = ("gradient_penalty", "r1_gamma", "interpolate_penalty")

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
        real_label: float = 1.0,
        fake_label: float = 0.0,
        label_noise: NonNegativeFloat = 0.0,
        label_flip: Fraction = 0.0,
    ) -> None:
        super().__init__()
        asked = real_label != 1.0 or fake_label != 0.0 or label_noise > 0 or label_flip > 0
        _check_labels("discriminator_gan", gan_type, asked)
        self.gan_type = gan_type
        self.real = real
        self.fake = fake
        self.discriminator = discriminator
        self.noise = noise
        self.gradient_penalty = gradient_penalty
        self.r1_gamma = r1_gamma
        self.interpolate_penalty = interpolate_penalty
        self.labels = Labels(real_label, fake_label)
        self.label_noise = label_noise
        self.label_flip = label_flip

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        name = self._network_name(context)
        network = context.network(name)
        stream = f"discriminator_gan.{name}"
        real = map_tensors(torch.detach, look_up(self.real, state, context, self.noise, f"{stream}.real"))
        fake = map_tensors(torch.detach, look_up(self.fake, state, context, self.noise, f"{stream}.fake"))
        penalties: dict[str, Tensor] = {}
        if self.gradient_penalty or self.r1_gamma:
            real_logits, penalties = self._judge_real_with_penalties(network, real)
        else:
            real_logits = judge(network, real)
        fake_logits = judge(network, fake)
        if self.interpolate_penalty:
            penalties["interpolate_penalty"] = self._between(network, real, fake, context, f"{stream}.alpha")
        pairs = zip(real_logits, fake_logits, strict=True)
        loss = _mean([discriminator_loss(self.gan_type, r, f, self._labels(r, context, stream)) for r, f in pairs])
        for penalty in penalties.values():
            loss = loss + penalty
        logged = {"d_real": _mean(real_logits), "d_fake": _mean(fake_logits), **penalties}
        logged |= observe_real(network, side_by_side(real_logits))
        return loss, {key: value.detach() for key, value in logged.items()}

    def _network_name(self, context: Context) -> str:
        return judge_of("discriminator_gan", self.discriminator, context)

    def _labels(self, logits: Tensor, context: Context, stream: str) -> Labels:
        if not self.label_noise and not self.label_flip:
            return self.labels
        shape = (1,) * (logits.ndim - 1)
        device = logits.device

        def drawn(label: Tensor | float, other: Tensor | float, side: str) -> Tensor:
            flipped = context.rand(shape, f"{stream}.{side}.label_flip", device) < self.label_flip
            noise = 2 * context.rand(shape, f"{stream}.{side}.label_noise", device) - 1
            return torch.where(flipped, other, label) + self.label_noise * noise

        return Labels(drawn(self.labels.real, self.labels.fake, "real"), drawn(self.labels.fake, self.labels.real, "fake"))

    def _judge_real_with_penalties(self, network: nn.Module, real: list[Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """One pass for logits and penalties, so that batch statistics see the real samples once."""
        images = first_image(real)
        penalties = {}
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float().requires_grad_()
            logits = judge(network, [images, *real[1:]])
            if self.gradient_penalty:
                penalties["gradient_penalty"] = UNIT_GRADIENT_WEIGHT * unit_gradient_penalty(side_by_side(logits), images)
            if self.r1_gamma:
                penalties["r1"] = self.r1_gamma / 2 * r1_penalty(side_by_side(logits), images)
        return logits, penalties

    def _between(self, network: nn.Module, real: list[Any], fake: list[Any], context: Context, stream: str) -> Tensor:
        return self.interpolate_penalty * penalty_between("discriminator_gan", network, real, fake, context, stream)


def _check_labels(loss: str, kind: str, asked: bool) -> None:
    if asked and kind not in LABELLED:
        raise ConfigurationError(f"{loss}: gan_type {kind} compares with no labels; remove the options of labels")


def _mean(values: list[Tensor]) -> Tensor:
    """Mean over scales of each one's mean."""
    return values[0].mean() if len(values) == 1 else torch.stack([value.mean() for value in values]).mean()
