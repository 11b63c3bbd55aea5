"""Invertible layers of conditional normalising flows, and the log-determinants of their Jacobians.

Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018 (arXiv:1807.03039), table 1;
Lugmayr et al., "SRFlow: Learning the Super-Resolution Space with Normalizing Flow", ECCV 2020 (arXiv:2006.14200), section 3.3.
Parameters have the names of SRFlow's published checkpoints.

Every layer maps by ``encode``, which also gives what it adds to ln p(x) of each sample, (B,), and back by ``decode``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.invertible_conv import InvertibleConv, log_determinant
from dlas.layers.kept import Kept
from dlas.ranks import how_many, summed

Maps = tuple[Tensor, Tensor]
"""Shift and, before its sigmoid or exponential, scale of an affine map."""


class Seen(NamedTuple):
    """What the two maps of a `ConditionalAffine` follow from.

    Args:
        injector: the first one's maps, of the condition alone.
        coupling: the second one's, given the channels that it keeps.
    """

    injector: Callable[[], Maps]
    coupling: Callable[[Tensor], Maps]


WEIGHT_STD = 0.05
"""Of the convolutions that are followed by a normalisation."""

ZERO_CONV_GAIN = 3.0
"""How much faster the scale of a convolution that starts as zero is learned (Glow's code)."""

DEVIATION_FLOOR = 1e-6
"""Added to standard deviations before division."""


class ActNorm(nn.Module):
    """(x + bias) exp(logs), by channel. The first batch that is trained on comes out with mean 0 and deviation 1.

    That happens once: not where any bias is other than zero, as in a checkpoint. With several processes it is their batches
    together.

    Source: Glow, section 3.1.
    """

    stage: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        # Read by its length, which costs no wait for the device: 1 before the first batch, 2 afterwards. As a buffer it comes
        # back where a pass is made that is to leave no trace.
        self.register_buffer("stage", torch.zeros(1), persistent=False)

    @property
    def awaits_batch(self) -> bool:
        """Whether the first batch is still to come; does not wait for the device."""
        return len(self.stage) == 1

    @property
    def fitting(self) -> bool:
        """Whether `forward` would first fit bias and scale to what it is given."""
        return self.awaits_batch and self.training and torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        if self.fitting:
            self._fit(x)
        return (x + self.bias) * self.logs.exp()

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        # Moments around zero would cancel where the mean is large: first the mean, then the deviation from it.
        mean = summed(x.mean((0, 2, 3), keepdim=True)) / how_many()
        deviation = (summed((x - mean).square().mean((0, 2, 3), keepdim=True)) / how_many()).sqrt()
        fresh = ~self.bias.any()  # stays on the device: nothing waits for it
        self.bias.copy_(torch.where(fresh, -mean, self.bias))
        self.logs.copy_(torch.where(fresh, -(deviation + DEVIATION_FLOOR).log(), self.logs))
        self.stage = self.stage.new_zeros(2)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.stage = self.stage.new_zeros(1 if self.bias.is_meta or not self.bias.any() else 2)


class NormedConv(nn.Conv2d):
    """A convolution without bias and an ActNorm."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, side, padding=side // 2, bias=False)
        nn.init.normal_(self.weight, std=WEIGHT_STD)
        self.actnorm = ActNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        if self.actnorm.fitting:
            return self.actnorm(super().forward(x))
        return F.conv2d(x, *self.as_one(), padding=self.kernel_size[0] // 2)

    def as_one(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that does both."""
        scale = self.actnorm.logs.flatten().exp()
        return self.weight * scale[:, None, None, None], self.actnorm.bias.flatten() * scale


class ZeroConv(nn.Conv2d):
    """A 3x3 convolution that starts as zero, with a learned scale of each output channel (Glow, section 3.3).

    Its channels are two maps, interleaved as in the published checkpoints.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        assert self.bias is not None
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.logs = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor) -> Maps:  # type: ignore[override]
        """(B, in_channels, H, W) -> two tensors (B, out_channels / 2, H, W): the even channels, and the odd ones."""
        assert self.bias is not None
        scale = (self.logs * ZERO_CONV_GAIN).exp()
        weight = _halved(self.weight * scale[..., None])
        bias = _halved(self.bias * scale.flatten())
        even, odd = F.conv2d(x, weight, bias, padding=1).chunk(2, dim=1)
        return even, odd


def _halved(value: Tensor) -> Tensor:
    return torch.cat((value[0::2], value[1::2]))


class Subnet(nn.Sequential):
    """What makes the shift and the scale of an affine map: three convolutions.

    Args:
        in_channels: of what it sees.
        hidden_channels: width.
        out_channels: of the map.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__(
            NormedConv(in_channels, hidden_channels, 3),
            nn.ReLU(),
            NormedConv(hidden_channels, hidden_channels, 1),
            nn.ReLU(),
            ZeroConv(hidden_channels, 2 * out_channels),
        )

    def forward(self, x: Tensor) -> Maps:
        """(B, in_channels, H, W) -> two tensors (B, out_channels, H, W)."""
        return self.rest(self.first(x))

    @property
    def first(self) -> NormedConv:
        """The convolution that sees the condition."""
        layer = self[0]
        assert isinstance(layer, NormedConv)
        return layer

    def rest(self, made: Tensor) -> Maps:
        """(B, hidden_channels, H, W) -> the maps: what follows from the first convolution's result, after its normalisation."""
        maps: Maps = self[4](F.relu(self[2](F.relu(made))))
        return maps


class ConditionalAffine(nn.Module):
    """First an affine map that follows from the condition, then one of half the channels that follows from the others and it.

    Args:
        channels: of what is mapped.
        condition_channels: of the condition.
        hidden_channels: width of the two small networks that make shifts and scales.
        eps: the least scale.

    Source: SRFlow, section 3.3: the affine injector and the conditional affine coupling.
    """

    def __init__(self, channels: int, condition_channels: int, hidden_channels: int, eps: float) -> None:
        super().__init__()
        self.kept = channels // 2
        self.eps = eps
        self.fAffine = Subnet(self.kept + condition_channels, hidden_channels, channels - self.kept)
        self.fFeatures = Subnet(condition_channels, hidden_channels, channels)

    def first_weights(self) -> list[Tensor]:
        """What the first convolutions of both subnets are made of, with their normalisations."""
        return [*self.fFeatures.first.parameters(), *self.fAffine.first.parameters()]

    def seeing(self, condition: Tensor) -> Seen:
        """For one step alone: each subnet sees the whole condition, (B, condition_channels, H, W)."""
        return Seen(lambda: self.fFeatures(condition), lambda kept: self.fAffine(torch.cat((kept, condition), dim=1)))

    def encode(self, x: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) -> the same shape, and (B,)."""
        shift, scale = self._affine(seen.injector())
        x = (x + shift) * scale
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        shift_half, scale_half = self._affine(seen.coupling(kept))
        log_density = _by_sample(scale.log()) + _by_sample(scale_half.log())
        return torch.cat((kept, (changed + shift_half) * scale_half), dim=1), log_density

    def decode(self, z: Tensor, seen: Seen) -> Tensor:
        """The inverse of `encode`."""
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        shift_half, scale_half = self._affine(seen.coupling(kept))
        x = torch.cat((kept, changed / scale_half - shift_half), dim=1)
        shift, scale = self._affine(seen.injector())
        return x / scale - shift

    def _affine(self, maps: Maps) -> tuple[Tensor, Tensor]:
        shift, raw = maps
        return shift, torch.sigmoid(raw + 2.0) + self.eps


class Squeeze(nn.Module):
    """Blocks of 2x2 pixels to channels, ordered by channel, row, column."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 C, H / 2, W / 2); a density stays as it is."""
        return F.pixel_unshuffle(x, 2)

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return F.pixel_shuffle(z, 2)


class FlowStep(nn.Module):
    """Normalisation, 1x1 convolution and, unless it is a transition, the conditional affine maps.

    The steps of a level are run together, by `dlas.layers.flow_level`.

    Args:
        channels: of what is mapped.
        affine: the maps; None for a transition step (SRFlow, section 3.3).
        lu: parameters of the 1x1 convolution, see `InvertibleConv`.
    """

    def __init__(self, channels: int, affine: ConditionalAffine | None, lu: bool = False) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.invconv = InvertibleConv(channels, lu)
        self.affine = affine
        self._backwards: Kept[tuple[Tensor, Tensor]] = Kept()

    @property
    def fitting(self) -> bool:
        """Whether a normalisation within would first fit itself to what it is given."""
        return any(layer.fitting for layer in self.modules() if isinstance(layer, ActNorm))

    def encode(self, x: Tensor, seen: Seen | None) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) -> the same shape, and (B,), to which normalisation and convolution add nothing."""
        if self.actnorm.fitting:
            z = self.invconv(self.actnorm(x))
        else:  # both as one convolution
            scale = self.actnorm.logs.flatten().exp()
            matrix = self.invconv.matrix * scale
            z = F.conv2d(x, matrix[:, :, None, None], matrix @ self.actnorm.bias.flatten())
        if self.affine is None or seen is None:
            return z, z.new_zeros(len(z))
        return self.affine.encode(z, seen)

    def decode(self, z: Tensor, seen: Seen | None) -> Tensor:
        """The inverse of `encode`."""
        if self.affine is not None and seen is not None:
            z = self.affine.decode(z, seen)
        made_of = [*self.actnorm.parameters(), *self.invconv.parameters(), *self.invconv.buffers()]
        weight, bias = self._backwards.get(made_of, self._inverted)
        return F.conv2d(z, weight, bias)

    def _inverted(self) -> tuple[Tensor, Tensor]:
        scale = (-self.actnorm.logs).flatten().exp()
        return (scale[:, None] * self.invconv.inverse_matrix)[:, :, None, None], -self.actnorm.bias.flatten()


def linear_log_density(steps: Sequence[FlowStep], pixels: int) -> Tensor:
    """What normalisations and convolutions of steps with as many channels add to ln p of a sample; a scalar."""
    scales = torch.stack([step.actnorm.logs for step in steps]).sum()
    return (scales + log_determinant([step.invconv for step in steps])) * pixels


class Split(nn.Module):
    """Takes the last channels away; they are normally distributed, with a mean and a deviation that follow from the others.

    Args:
        channels: of what comes in.
        taken: how many are taken away.

    Source: Dinh et al., "Density Estimation using Real NVP", ICLR 2017 (arXiv:1605.08803), section 3.6; with a learned prior as
    in Glow's code.
    """

    def __init__(self, channels: int, taken: int) -> None:
        super().__init__()
        self.passed, self.taken = channels - taken, taken
        self.conv = ZeroConv(self.passed, 2 * taken)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, channels, H, W) -> what passes, (B, channels - taken, H, W); standardised, what is taken; its ln p(x), (B,)."""
        passed, taken = x[:, : self.passed], x[:, self.passed :]
        mean, logs = self.conv(passed)
        latent = (taken - mean) * (-logs).exp()
        return passed, latent, standard_normal_log_density(latent) - _by_sample(logs)

    def decode(self, passed: Tensor, latent: Tensor) -> Tensor:
        """The inverse of `encode`."""
        mean, logs = self.conv(passed)
        return torch.cat((passed, mean + latent * logs.exp()), dim=1)


def standard_normal_log_density(z: Tensor) -> Tensor:
    """ln N(z; 0, 1) of each sample: (B, ...) -> (B,)."""
    return -0.5 * _by_sample(z.square() + math.log(2 * math.pi))


def _by_sample(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)
