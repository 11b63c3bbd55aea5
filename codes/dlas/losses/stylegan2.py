"""The adversarial loss of StyleGAN2 under DL-Art-School's name and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.losses.adversarial import UNIT_GRADIENT_WEIGHT
from dlas.losses.base import Loss, State
from dlas.losses.gan import discriminator_loss, generator_loss
from dlas.losses.judging import first_image, judge, look_up, map_tensors, observe_real, side_by_side
from dlas.losses.penalties import unit_gradient_penalty
from dlas.registry import LOSSES
from dlas.types import NetworkName, NonNegativeFloat, PositiveInt, StateIns


@LOSSES.register("stylegan2_divergence")
class StyleGAN2DivergenceLoss(Loss):
    """Both sides of StyleGAN2's adversarial loss.

    The sign of the discriminator D depends on `logistic`, and must be the same in both steps:

    - true: the non-saturating logistic loss of StyleGAN2, where more is more real. Generator: softplus(-D(fake));
      discriminator: softplus(-D(real)) + softplus(D(fake)). It is `generator_gan` and `discriminator_gan` with
      `gan_type: gan`. Use `r1` and `path_length` beside it.
    - false: a hinge loss, where **less** is more real, the reverse of `gan_type: hinge`. Generator: D(fake); discriminator:
      relu(1 + D(real)) + relu(1 - D(fake)).

    Logs `d_fake`, and in the discriminator's step `d_real` and the penalty, in D's own sign.

    Args:
        real: what the discriminator is given for real pictures: a key, or the list of its arguments; not looked at with
            `gen_loss`.
        fake: the same for generated pictures.
        discriminator: the network that judges.
        gen_loss: the generator's side; else the discriminator's, where only the discriminator learns.
        gradient_penalty_frequency: in iterations that are a multiple of this, 10 (|gradient at a real picture| - 1)^2 is
            added to the discriminator's side; with `logistic` never, as in DL-Art-School.
        noise: amplitude of the noise, uniform in [0, noise], added to each tensor given to the discriminator.
        logistic: which of the two.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, section 2.1; the penalty and the
    second form: DL-Art-School.
    """

    second_order = ("gradient_penalty_frequency",)

    def __init__(
        self,
        *,
        real: StateIns,
        fake: StateIns,
        discriminator: NetworkName,
        gen_loss: bool,
        gradient_penalty_frequency: PositiveInt | None = None,
        noise: NonNegativeFloat = 0.0,
        logistic: bool = False,
    ) -> None:
        super().__init__()
        self.real = real
        self.fake = fake
        self.discriminator = discriminator
        self.for_generator = gen_loss
        self.penalty_every = None if logistic else gradient_penalty_frequency
        self.noise = noise
        self.kind, self.sign = ("gan", 1.0) if logistic else ("hinge", -1.0)

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        network = context.network(self.discriminator)
        stream = f"stylegan2_divergence.{self.discriminator}"
        fake = look_up(self.fake, state, context, self.noise, f"{stream}.fake")
        if self.for_generator:
            logits = side_by_side(judge(network, fake))
            return generator_loss(self.kind, self.sign * logits), {"d_fake": logits.mean().detach()}
        real = map_tensors(torch.detach, look_up(self.real, state, context, self.noise, f"{stream}.real"))
        penalized = self.penalty_every is not None and context.step % self.penalty_every == 0
        real_logits, logged = self._judge_real(network, real, penalized)
        fake_logits = side_by_side(judge(network, map_tensors(torch.detach, fake)))
        loss = discriminator_loss(self.kind, self.sign * real_logits, self.sign * fake_logits)
        loss = loss + sum(logged.values())
        logged |= {"d_real": real_logits.mean(), "d_fake": fake_logits.mean()}
        logged |= observe_real(network, self.sign * real_logits)
        return loss, {name: value.detach() for name, value in logged.items()}

    def _judge_real(self, network: nn.Module, real: list[Tensor], penalized: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass for logits and penalty."""
        if not penalized:
            return side_by_side(judge(network, real)), {}
        images = first_image(real, "stylegan2_divergence")
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float().requires_grad_()
            logits = side_by_side(judge(network, [images, *real[1:]]))
            return logits, {"gradient_penalty": UNIT_GRADIENT_WEIGHT * unit_gradient_penalty(logits, images)}
