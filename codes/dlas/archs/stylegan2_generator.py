"""The generator of StyleGAN2: a mapping network, and layers that each take their style from its output.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (arXiv:1912.04958), figures 2d and 7b.

The layers have the names of rosinality's implementation: ``style.<i>``, ``input``, ``conv1``, ``to_rgb1``, ``convs.<i>``,
``to_rgbs.<i>``, ``noises.noise_<i>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.layers.stylegan2 import EqualLinear, StyledConv, ToRGB, width_at
from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt


class PixelNorm(nn.Module):
    """Scales vectors to a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels) -> the same shape."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ConstantInput(nn.Module):
    """The learned 4x4 features that every picture begins with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        """(batch, channels, 4, 4)."""
        return self.input.expand(batch, -1, -1, -1)


@ARCHS.register("stylegan2_rosinality_gen")
class StyleGAN2Generator(nn.Module):
    """StyleGAN2's generator with skip connections.

    A step with `stylegan2_noise` and `{type: generator, generator: gen, in: z, out: [fake, styles]}` has what
    `stylegan2_rosinality_disc`, `path_length` and the losses of GANs need. In training noise is drawn anew for each picture;
    in evaluation it is what the network keeps, so that latents alone decide about a picture.

    Args:
        size: height and width of the pictures it makes, in pixels: a power of 2, 8 at least.
        style_dim: size of latents and styles.
        n_mlp: layers of the mapping network.
        channel_multiplier: factor on the channels at 64 pixels and above.
        blur_kernel: taps of the filter behind each doubling.
        lr_mlp: how fast the mapping network learns, relative to the rest.
        max_channels: the most channels of any layer.

    Raises:
        ValueError: `size` is not such a power.
    """

    def __init__(
        self,
        *,
        size: PositiveInt,
        style_dim: PositiveInt,
        n_mlp: PositiveInt,
        channel_multiplier: PositiveInt = 2,
        blur_kernel: Sequence[int] = (1, 3, 3, 1),
        lr_mlp: PositiveFloat = 0.01,
        max_channels: PositiveInt = 512,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"size must be a power of 2, 8 at least, got {size}")
        self.size = size
        self.style_dim = style_dim
        self.checkpointing = False
        mapping = [EqualLinear(style_dim, style_dim, activate=True, lr_mul=lr_mlp) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        side = 4
        width = width_at(side, channel_multiplier, max_channels)
        self.input = ConstantInput(width)
        self.conv1 = StyledConv(width, width, style_dim)
        self.to_rgb1 = ToRGB(width, style_dim)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.widths = [width]
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, side, side))
        while side < size:
            side *= 2
            narrower = width_at(side, channel_multiplier, max_channels)
            for layer in (
                StyledConv(width, narrower, style_dim, taps=blur_kernel),
                StyledConv(narrower, narrower, style_dim),
            ):
                self.convs.append(layer)
                self.noises.register_buffer(f"noise_{len(self.convs)}", torch.randn(1, 1, side, side))
            self.to_rgbs.append(ToRGB(narrower, style_dim, taps=blur_kernel))
            self.widths.append(narrower)
            width = narrower
        self.n_latent = len(self.convs) + 2

    def forward(
        self,
        styles: Tensor | Sequence[Tensor],
        *,
        inject_index: int | None = None,
        truncation: float = 1.0,
        truncation_latent: Tensor | None = None,
        input_is_latent: bool = False,
        noise: Sequence[Tensor | None] | None = None,
        randomize_noise: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Makes pictures.

        Args:
            styles: latents (batch, style_dim), or a list of one or two of them; with two the first is for the coarse layers and
                the second for the fine ones (style mixing). With `input_is_latent`, (batch, n_latent, style_dim) too.
            inject_index: how many layers the first of two is for; None: drawn, from 1 to `n_latent` - 1.
            truncation: below 1, styles are drawn that much nearer to `truncation_latent`: less variety, fewer failures.
            truncation_latent: the middle, such as `mean_latent` tells.
            input_is_latent: `styles` are outputs of the mapping network.
            noise: of each layer, (batch or 1, 1, side, side); None among them: drawn.
            randomize_noise: where `noise` is not given, whether it is drawn or the network's own; None: drawn in training.

        Returns:
            Pictures (batch, 3, size, size), about [-1, 1], and each layer's style (batch, n_latent, style_dim).

        Raises:
            ValueError: there are more than two latents, or truncation has no middle.
        """
        given = [styles] if isinstance(styles, Tensor) else list(styles)
        if not 1 <= len(given) <= 2:
            raise ValueError(f"stylegan2_rosinality_gen: styles are one or two latents, got {len(given)}")
        mapped = given if input_is_latent else [self.style(each) for each in given]
        if truncation < 1:
            if truncation_latent is None:
                raise ValueError("stylegan2_rosinality_gen: truncation needs truncation_latent, for instance mean_latent(4096)")
            mapped = [truncation_latent + truncation * (each - truncation_latent) for each in mapped]
        latents = self._latents_of_layers(mapped, inject_index)
        if noise is None:
            drawn = self.training if randomize_noise is None else randomize_noise
            noise = [None if drawn else getattr(self.noises, f"noise_{index}") for index in range(self.n_latent - 1)]
        return self._synthesize(latents, noise), latents

    def _latents_of_layers(self, mapped: Sequence[Tensor], inject_index: int | None) -> Tensor:
        first, *second = (each if each.ndim == 3 else each[:, None].expand(-1, self.n_latent, -1) for each in mapped)
        if not second:
            return first
        if inject_index is None:
            inject_index = int(torch.randint(1, self.n_latent, (), device="cpu"))
        return torch.cat((first[:, :inject_index], second[0][:, inject_index:]), dim=1)

    def _synthesize(self, latents: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
        again = self.checkpointing and self.training
        x = self.conv1(self.input(len(latents)), latents[:, 0], noise[0])
        picture = self.to_rgb1(x, latents[:, 1])
        for index, layer in enumerate(self.convs):
            x = recompute(layer, x, latents[:, index + 1], noise[index + 1], when=again, random=noise[index + 1] is None)
            if index % 2:  # both layers of this size are done
                picture = self.to_rgbs[index // 2](x, latents[:, index + 2], picture)
        return picture

    @torch.no_grad()
    def mean_latent(self, count: int) -> Tensor:
        """The mean style (1, style_dim) of `count` random latents: the middle for truncation."""
        z = torch.randn(count, self.style_dim, device=self.input.input.device)
        return self.style(z).mean(0, keepdim=True)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"size": 16, "style_dim": 8, "n_mlp": 2, "max_channels": 8}, (torch.randn(2, 8),)
