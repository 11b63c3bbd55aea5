"""Penalties of adversarial training as losses of their own, so that they can be computed in some of the steps only.

Lazy regularisation (Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020, section 3.1): a penalty that
is computed in every k-th step is given k times its weight: ``{type: r1, gamma: 10, every: 16, weight: 16}``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.judging import first_image, judge, judge_of, look_up, map_tensors, penalty_between, side_by_side
from dlas.losses.penalties import path_length_penalty, r1_penalty, unit_gradient_penalty
from dlas.registry import LOSSES
from dlas.types import Fraction, NetworkName, NonNegativeFloat, StateIn, StateIns


@LOSSES.register("r1")
class R1Loss(Loss):
    """R1: gamma / 2 times the squared length of a discriminator's gradient at real samples, mean over them. In float32.

    Computed in every k-th step only (`every: k`), give it the weight k: that is lazy regularisation, the penalty being the
    same on average. Inputs are detached.

    Args:
        real: what the discriminator is given for real samples: a key, or the list of its arguments; the gradient is with
            respect to the first.
        discriminator: the network; not given: the one that the step trains.
        gamma: of the penalty; 10 for small pictures, more for large ones.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9; lazily: Karras et al.,
    "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, section 3.1.
    """

    detaches = True
    second_order = ()

    def __init__(self, *, real: StateIns, discriminator: NetworkName | None = None, gamma: NonNegativeFloat = 10.0) -> None:
        super().__init__()
        self.real = real
        self.discriminator = discriminator
        self.gamma = gamma

    def forward(self, state: State, context: Context) -> Tensor:
        network = context.network(judge_of("r1", self.discriminator, context))
        real = map_tensors(torch.detach, look_up(self.real, state, context, 0.0, "r1"))
        images = first_image(real, "r1")
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float().requires_grad_()
            return self.gamma / 2 * r1_penalty(side_by_side(judge(network, [images, *real[1:]])), images)


@LOSSES.register("gradient_penalty", "GradientPenaltyLoss")
class GradientPenaltyLoss(Loss):
    """Mean of (length of a discriminator's gradient - 1)^2. In float32; inputs are detached.

    With `fake` it is that of WGAN-GP, at random points between real and generated samples; without, at real samples as in
    DL-Art-School. Both give it the weight 10. Computed in every k-th step only (`every: k`), give it k times that.

    Args:
        real: what the discriminator is given for real samples: a key, or the list of its arguments; the gradient is with
            respect to the first.
        fake: the same for generated samples.
        discriminator: the network; not given: the one that the step trains.

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, eq. 3.
    """

    detaches = True
    second_order = ()

    def __init__(self, *, real: StateIns, fake: StateIns | None = None, discriminator: NetworkName | None = None) -> None:
        super().__init__()
        self.real = real
        self.fake = fake
        self.discriminator = discriminator

    def forward(self, state: State, context: Context) -> Tensor:
        name = judge_of("gradient_penalty", self.discriminator, context)
        network = context.network(name)
        real = map_tensors(torch.detach, look_up(self.real, state, context, 0.0, "gradient_penalty"))
        if self.fake is not None:
            fake = map_tensors(torch.detach, look_up(self.fake, state, context, 0.0, "gradient_penalty"))
            return penalty_between("gradient_penalty", network, real, fake, context, f"gradient_penalty.{name}.alpha")
        images = first_image(real, "gradient_penalty")
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            images = images.float().requires_grad_()
            return unit_gradient_penalty(side_by_side(judge(network, [images, *real[1:]])), images)


@LOSSES.register("path_length", "stylegan2_pathlen")
class PathLengthLoss(Loss):
    """Mean squared deviation of a generator's path lengths from their running mean. In float32.

    Logs `length`, the mean path length of the micro-batch. The running mean is part of the checkpoint. Computed in every k-th
    step only (`every: k`), give it the weight 2 k, as StyleGAN2 does with k = 4. In runs with micro-batches each moves the
    running mean.

    Args:
        w_styles: key of the latents, (B, layers, D) or (B, D), that `gen` was made from, with gradients.
        gen: key of the generated pictures, (B, C, H, W).
        decay: share of a micro-batch in the new running mean.

    Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, eq. 4.
    """

    second_order = ()
    running_mean: Tensor

    def __init__(self, *, w_styles: StateIn, gen: StateIn, decay: Fraction = 0.01) -> None:
        super().__init__()
        self.latents = w_styles
        self.generated = gen
        self.decay = decay
        self.register_buffer("running_mean", torch.zeros(()))

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        latents, images = state[self.latents], state[self.generated]
        if not latents.requires_grad:
            raise ConfigurationError(
                f"path_length: no gradient reaches '{self.latents}'; the injector that writes it must record gradients in this "
                "step"
            )
        noise = context.randn(images.shape[1:], "path_length", images.device)
        with torch.autocast(images.device.type, enabled=False):
            penalty, lengths, mean = path_length_penalty(images.float(), latents, noise, self.running_mean, self.decay)
        self.running_mean.copy_(mean)
        return penalty, {"length": lengths.mean()}
