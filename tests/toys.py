"""Small components for tests: usable in this process (import) and in a subprocess (`plugins:`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.data.base import Dataset, Request, Sample
from dlas.injectors.base import Injector, State
from dlas.losses.base import Loss
from dlas.registry import ARCHS, DATASETS, INJECTORS, LOSSES
from dlas.types import PositiveInt, StateIn, StateOut

NEED_APEX = {"fused_novograd"}
"""Registered optimisers that cannot be had without NVIDIA's apex."""


@DATASETS.register("toy_pairs")
class ToyPairs(Dataset):
    """Random smooth pictures, a function of the index, with noise that is a function of the position."""

    provides = ("lq", "hq", "path", "name")

    def __init__(self, phase: str, /, *, scale: PositiveInt = 2, size: PositiveInt = 16, length: PositiveInt = 10) -> None:
        self.training = phase == "train"
        self.scale = scale
        self.size = size
        self.length = length

    def __len__(self) -> int:
        return self.length if self.training else 2

    def __getitem__(self, request: Request) -> Sample:
        generator = torch.Generator().manual_seed(request.index + 1000 * (not self.training))
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        hq = nn.functional.interpolate(coarse, size=self.size, mode="bilinear")[0]
        lq = nn.functional.avg_pool2d(hq, self.scale)
        if self.training:
            lq = lq + 0.01 * torch.from_numpy(request.rng().standard_normal(lq.shape)).float()
        return {"lq": lq, "hq": hq, "path": f"toy/{request.index}.png", "name": f"picture{request.index}"}


@ARCHS.register("ToyGenerator")
class ToyGenerator(nn.Module):
    """Upsampling by one convolution and dropout; has a parameter that the dropout touches and a buffer."""

    def __init__(self, *, width: PositiveInt = 4, scale: PositiveInt = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.dropout = dropout
        self.scale = scale
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h * scale, w * scale)."""
        if self.training:
            self.calls += 1
        features = nn.functional.dropout(torch.tanh(self.norm(self.first(x))), self.dropout, self.training)
        detail = nn.functional.pixel_shuffle(self.last(features), self.scale)
        return detail + nn.functional.interpolate(x, scale_factor=self.scale, mode="nearest")

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


@ARCHS.register("ToyDiscriminator")
class ToyDiscriminator(nn.Module):
    """One logit per picture."""

    def __init__(self, *, width: PositiveInt = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1)."""
        return self.layers(x).mean(dim=(2, 3))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


@LOSSES.register("toy_forbidden")
class ForbiddenLoss(Loss):
    """Fails when it is computed."""

    def forward(self, state: State, context: Context) -> Tensor:
        """Never returns."""
        raise AssertionError("a loss that is off was computed")


@LOSSES.register("toy_root")
class RootLoss(Loss):
    """Mean of sqrt(a * b^2): nan where a is negative, and without a gradient where it is 0."""

    def __init__(self, *, in_: StateIn, of: StateIn) -> None:
        super().__init__()
        self.a = in_
        self.b = of

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        return torch.sqrt(state[self.a].float() * state[self.b].float() ** 2).mean()


@LOSSES.register("toy_memory")
class MemoryLoss(Loss):
    """Mean of its input, and of what it remembers."""

    def __init__(self, *, in_: StateIn) -> None:
        super().__init__()
        self.source = in_
        self.register_buffer("memory", torch.zeros(()))

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        return state[self.source].float().mean() + self.memory


@ARCHS.register("ToyNormalised")
class ToyNormalised(nn.Module):
    """Upsampling with batch normalisation, whose statistics each forward pass in training moves."""

    def __init__(self, *, scale: PositiveInt = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h * scale, w * scale)."""
        return nn.functional.interpolate(
            nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training), scale_factor=self.scale
        )

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


@INJECTORS.register("toy_exponential")
class Exponential(Injector):
    """out = exp(in)."""

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.source = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.exp(state[self.source])}


@INJECTORS.register("toy_passing_noise")
class PassingNoise(Injector):
    """out = in + addressable noise."""

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.source = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x = state[self.source]
        return {self.out: x + 0.1 * context.randn(x.shape[1:], self.out, x.device)}


PSNR = """\
name: toy
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4}
  val: {mode: toy_pairs}
networks:
  generator: {which_model_G: ToyGenerator, dropout: 0.1}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      noisy: {type: toy_passing_noise, in: lq, out: noisy, train: true}
      clean: {type: direct, in: lq, out: noisy, eval: true}
      gen: {type: generator, generator: generator, in: noisy, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
train:
  niter: 8
  val_freq: 4
  lr_scheme: {type: one_cycle}
  ema: {rate: 0.9}
eval: {metrics: [psnr, ssim_y], crop_border: 2}
logger: {print_freq: 2, save_checkpoint_freq: 3, tensorboard: false}
"""

GAN = """\
name: gan
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4}
  val: {mode: toy_pairs}
networks:
  generator: {which_model_G: ToyGenerator}
  discriminator: {type: discriminator, which_model_D: ToyDiscriminator}
steps:
  discriminator:
    training: discriminator
    optimizer: sgd
    optimizer_params: {lr: 1e-2, momentum: 0.9}
    injectors:
      dgen: {type: generator, generator: generator, in: lq, out: dgen, no_grad: true}
    losses:
      gan: {type: discriminator_gan, gan_type: gan, weight: 1, noise: 0.01, real: hq, fake: dgen}
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1e-3}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
      gan: {type: generator_gan, gan_type: gan, weight: 0.1, noise: 0.01, discriminator: discriminator, real: hq, fake: gen}
train: {niter: 8}
eval: {metrics: [psnr], crop_border: 2}
logger: {print_freq: 2, save_checkpoint_freq: 3, tensorboard: false}
"""


@ARCHS.register("ToyDenoiser")
class ToyDenoiser(nn.Module):
    """Sees a noisy picture, its time and a smaller picture."""

    def __init__(self, *, width: PositiveInt = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(7, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor, low: Tensor) -> Tensor:
        """(B, 3, H, W), (B,), (B, 3, h, w) -> (B, 3, H, W)."""
        shown = nn.functional.interpolate(low, size=x.shape[-2:])
        time = (times / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        return self.last(torch.tanh(self.first(torch.cat((x, shown, time.to(x)), dim=1))))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8), torch.rand(2), torch.rand(2, 3, 4, 4))
