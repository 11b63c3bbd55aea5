"""Adversarial objectives as functions of a discriminator's logits.

A kind is a pair: what the discriminator minimises and what the generator minimises. Below, r and f are the logits of real and
generated samples, s is the logistic function, E the mean over all logits of the (micro-)batch.

=============  =============================================  =========================================================
kind           discriminator: real term + fake term           generator
=============  =============================================  =========================================================
gan            -E log s(r) - E log(1 - s(f))                  -E log s(f)
ragan          as gan, with r - E f and f - E r               half of -E log(1 - s(r - E f)) - E log s(f - E r)
esrgan         half of ragan, E f and E r held constant       as ragan
lsgan          E (r - 1)^2 + E f^2                            E (f - 1)^2
hinge          E max(0, 1 - r) + E max(0, 1 + f)              -E f
wgan           -E r + E f                                     -E f
max_spread     2 tanh(1 / (2 |E r - E f|))                    none
=============  =============================================  =========================================================

`vanilla` (a common name), `pixgan` (on a map of logits) and `wgan_softplus` (written with softplus) are other names of gan.
In gan, ragan, esrgan and lsgan other labels than 1 and 0 can be asked for (label smoothing, `Labels`): the cross entropy with
label y is -y log s(x) - (1 - y) log(1 - s(x)), the square (x - y)^2.
In the relativistic kinds, ragan and esrgan, the means couple the samples of a micro-batch: cutting the batch differently
changes the loss a little.

Sources: gan: Goodfellow et al., 2014 (non-saturating form). ragan: Jolicoeur-Martineau, "The relativistic discriminator", 2018;
the factor of the generator is DL-Art-School's. esrgan: Wang et al., "ESRGAN", 2018, eq. 1 and 2, with the factors and the
constants of its training in BasicSR. lsgan: Mao et al., 2017 (without the factor 1/2). hinge: Lim and Ye, "Geometric GAN",
2017. wgan: Arjovsky et al., 2017. max_spread: DL-Art-School.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_CROSS_ENTROPY = ("gan", "vanilla", "pixgan", "wgan_softplus")
RELATIVISTIC = ("ragan", "esrgan")
"""Kinds whose generator is also shown the real samples."""
LABELLED = (*_CROSS_ENTROPY, *RELATIVISTIC, "lsgan")
"""Kinds that compare logits with labels."""


@dataclass(frozen=True)
class Labels:
    """What logits are compared with: numbers, or one a sample in a shape that is broadcast against the logits."""

    real: Tensor | float = 1.0
    fake: Tensor | float = 0.0


HARD = Labels()


def generator_loss(kind: str, fake_logits: Tensor, real_logits: Tensor | None = None, labels: Labels = HARD) -> Tensor:
    """What the generator minimises.

    Args:
        kind: see the table of this module.
        fake_logits: of generated samples, any shape; the gradient flows through them.
        real_logits: of real samples; needed by the relativistic kinds, not used by the others.
        labels: of the kinds in `LABELLED`.

    Returns:
        Scalar.

    Raises:
        ValueError: `kind` is unknown or has no generator side, or `real_logits` are missing.
    """
    if kind in _CROSS_ENTROPY:
        return _cross_entropy(fake_logits, labels.real)
    if kind in RELATIVISTIC:
        if real_logits is None:
            raise ValueError(f"the generator loss of '{kind}' compares with real samples; give their logits")
        real_term = _cross_entropy(real_logits - fake_logits.mean(), labels.fake)
        return (real_term + _cross_entropy(fake_logits - real_logits.mean(), labels.real)) / 2
    if kind == "lsgan":
        return (fake_logits - labels.real).square().mean()
    if kind in ("hinge", "wgan"):
        return -fake_logits.mean()
    if kind == "max_spread":
        raise ValueError("max_spread is a loss for discriminators only; choose another kind for the generator")
    raise ValueError(_unknown(kind))


def discriminator_loss(kind: str, real_logits: Tensor, fake_logits: Tensor, labels: Labels = HARD) -> Tensor:
    """What the discriminator minimises: the sum of `discriminator_terms`."""
    real_term, fake_term = discriminator_terms(kind, real_logits, fake_logits, labels)
    return real_term + fake_term


def discriminator_terms(kind: str, real_logits: Tensor, fake_logits: Tensor, labels: Labels = HARD) -> tuple[Tensor, Tensor]:
    """The two halves of the discriminator's loss.

    Args:
        kind: see the table of this module.
        real_logits: of real samples, any shape.
        fake_logits: of generated samples.
        labels: of the kinds in `LABELLED`.

    Returns:
        The term that pushes real samples up and the one that pushes generated samples down, scalars.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind in _CROSS_ENTROPY:
        return _cross_entropy(real_logits, labels.real), _cross_entropy(fake_logits, labels.fake)
    if kind == "ragan":
        real_term = _cross_entropy(real_logits - fake_logits.mean(), labels.real)
        return real_term, _cross_entropy(fake_logits - real_logits.mean(), labels.fake)
    if kind == "esrgan":
        real_term = _cross_entropy(real_logits - fake_logits.mean().detach(), labels.real)
        return real_term / 2, _cross_entropy(fake_logits - real_logits.mean().detach(), labels.fake) / 2
    if kind == "lsgan":
        return (real_logits - labels.real).square().mean(), (fake_logits - labels.fake).square().mean()
    if kind == "hinge":
        return F.relu(1 - real_logits).mean(), F.relu(1 + fake_logits).mean()
    if kind == "wgan":
        return -real_logits.mean(), fake_logits.mean()
    if kind == "max_spread":
        # The clamp keeps 1 / 0 out of the gradient; below 0.05 the tanh is flat in float32 anyway.
        half = torch.tanh(0.5 / (real_logits.mean() - fake_logits.mean()).abs().clamp_min(1e-12))
        return half, half
    raise ValueError(_unknown(kind))


def _cross_entropy(logits: Tensor, label: Tensor | float) -> Tensor:
    """Binary cross entropy of s(logits)."""
    if not isinstance(label, Tensor) and label in (0.0, 1.0):
        return F.softplus(-logits if label else logits).mean()
    return (F.softplus(logits) - label * logits).mean()


def _unknown(kind: str) -> str:
    return (
        f"no GAN loss is called '{kind}'; known: gan (also vanilla, pixgan, wgan_softplus), ragan, esrgan, lsgan, hinge, "
        "wgan, max_spread (discriminator only)"
    )
