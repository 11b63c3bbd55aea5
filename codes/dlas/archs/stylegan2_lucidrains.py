"""StyleGAN2 in the form of lucidrains' implementation, as DL-Art-School has it: smaller, and without filtered convolutions.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (arXiv:1912.04958). Layers have
DL-Art-School's names. Its attention layers (`attn_layers`), codebooks (`quantize`) and structural input are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.augment import AUGMENTATIONS
from dlas.layers.fixed_size import check_size
from dlas.layers.recompute import recompute
from dlas.layers.stylegan2 import LEAK
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

MAPPING_RATE = 0.1
"""Factor on weights and biases of the mapping network where they are used."""

MIXED = 0.9
"""Chance that a picture has two styles."""

DEMODULATION_EPS = 1e-8

FIRST_WIDTH = 64
"""Channels of the discriminator's first block."""


class Blur(nn.Module):
    """A filter of taps 1, 2, 1; pictures are mirrored at their borders."""

    f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.tensor([1.0, 2.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        kernel = torch.outer(self.f, self.f) / self.f.sum().square()
        weight = kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, groups=x.shape[1])


class Modulated(nn.Module):
    """A convolution without bias whose input channels each picture's style scales, by 1 + style."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight, nonlinearity="leaky_relu")

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: (batch, in_channels, height, width), style: (batch, in_channels) -> (batch, out_channels, height, width)."""
        factors = style + 1
        x = F.conv2d(x * factors[:, :, None, None].to(x.dtype), self.weight, padding=self.weight.shape[-1] // 2)
        if not self.demodulate:
            return x
        with torch.autocast(x.device.type, enabled=False):
            power = F.linear(factors.float().square(), self.weight.float().square().sum((2, 3)))
            norms = torch.rsqrt(power + DEMODULATION_EPS)
        return x * norms[:, :, None, None].to(x.dtype)


class Mapping(nn.Module):
    """Layers from latents to styles."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(layer for _ in range(depth) for layer in (_SlowLinear(dim), nn.LeakyReLU(LEAK))))

    def forward(self, z: Tensor) -> Tensor:
        """(batch, dim) -> the same shape."""
        return self.net(F.normalize(z, dim=1))


class _SlowLinear(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * MAPPING_RATE, self.bias * MAPPING_RATE)


class ToPicture(nn.Module):
    """A picture from features, added to the one before; enlarged unless it is the last."""

    def __init__(self, latent_dim: int, channels: int, *, enlarge: bool) -> None:
        super().__init__()
        self.to_style = nn.Linear(latent_dim, channels)
        self.conv = Modulated(channels, 3, 1, demodulate=False)
        self.upsample = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), Blur()) if enlarge else None

    def forward(self, x: Tensor, style: Tensor, before: Tensor | None) -> Tensor:
        """x: (batch, channels, side, side) -> (batch, 3, side, side), or of twice the side."""
        picture = self.conv(x, self.to_style(style))
        picture = picture if before is None else picture + before
        return picture if self.upsample is None else self.upsample(picture)


class Block(nn.Module):
    """Features of one size, and the picture so far."""

    def __init__(self, latent_dim: int, in_channels: int, channels: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.upsample = None if first else nn.Upsample(scale_factor=2, mode="bilinear")
        self.to_style1 = nn.Linear(latent_dim, in_channels)
        self.to_noise1 = nn.Linear(1, channels)
        self.conv1 = Modulated(in_channels, channels, 3)
        self.to_style2 = nn.Linear(latent_dim, channels)
        self.to_noise2 = nn.Linear(1, channels)
        self.conv2 = Modulated(channels, channels, 3)
        self.to_rgb = ToPicture(latent_dim, channels, enlarge=not last)

    def forward(self, x: Tensor, before: Tensor | None, style: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the picture with what they add.

        Args:
            x: (batch, in_channels, side, side).
            before: the picture so far, at the size of the result.
            style: (batch, latent_dim).
            noise: (batch, height, width, 1), at least of the size of the result.
        """
        x = x if self.upsample is None else self.upsample(x)
        noise = noise[:, : x.shape[2], : x.shape[3]]
        for to_style, to_noise, conv in (
            (self.to_style1, self.to_noise1, self.conv1),
            (self.to_style2, self.to_noise2, self.conv2),
        ):
            x = F.leaky_relu(conv(x, to_style(style)) + to_noise(noise).permute(0, 3, 2, 1), LEAK)
        return x, self.to_rgb(x, style, before)


class Synthesis(nn.Module):
    """Pictures from styles."""

    def __init__(self, image_size: int, latent_dim: int, network_capacity: int, fmap_max: int) -> None:
        super().__init__()
        self.num_layers = image_size.bit_length() - 2
        widths = [min(network_capacity * 2**level, fmap_max) for level in range(self.num_layers, 0, -1)]
        self.initial_block = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.initial_conv = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        last = self.num_layers - 1
        self.blocks = nn.ModuleList(
            Block(latent_dim, before, width, first=level == 0, last=level == last)
            for level, (before, width) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True))
        )

    def forward(self, styles: Tensor, noise: Tensor, recomputing: bool) -> Tensor:
        """(batch, num_layers, latent_dim) -> (batch, 3, image_size, image_size)."""
        x = self.initial_conv(self.initial_block.expand(len(styles), -1, -1, -1))
        picture: Tensor | None = None
        for level, block in enumerate(self.blocks):
            made: Any = recompute(block, x, picture, styles[:, level], noise, when=recomputing)
            x, picture = made
        assert picture is not None
        return picture


@ARCHS.register("stylegan2_lucidrains")
class StyleGAN2Lucidrains(nn.Module):
    """The generator: `{type: generator, generator: gen, in: noise, out: [fake, styles]}`; `noise` has the pictures' size.

    Args:
        image_size: height and width of the pictures it makes, in pixels: a power of 2, 8 at least.
        latent_dim: size of latents and styles.
        style_depth: layers of the mapping network.
        network_capacity: channels of the largest features are twice this; they double with each halving of the size.
        fmap_max: the most channels of any layer.

    Raises:
        ValueError: `image_size` is not such a power.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt,
        latent_dim: PositiveInt,
        style_depth: PositiveInt,
        network_capacity: PositiveInt = 16,
        fmap_max: PositiveInt = 512,
    ) -> None:
        super().__init__()
        _check_power(image_size)
        self.image_size = image_size
        self.latent_dim = latent_dim
        self.checkpointing = False
        self.vectorizer = Mapping(latent_dim, style_depth)
        self.gen = Synthesis(image_size, latent_dim, network_capacity, fmap_max)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
        for block in self.gen.blocks:
            assert isinstance(block, Block)
            for layer in (block.to_noise1, block.to_noise2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Makes pictures.

        Args:
            x: noise that is uniform in [0, 1), (batch, channels, image_size, image_size), of which the first channel is used.
            latents: standard normal, (batch, latent_dim); without them they are drawn, and most pictures have two, the first
                for the coarse layers and the second for the fine ones.

        Returns:
            Pictures (batch, 3, image_size, image_size), and each layer's style (batch, layers, latent_dim).
        """
        check_size(x, self.image_size)
        layers = self.gen.num_layers
        if latents is not None:
            styles = self.vectorizer(latents)[:, None].expand(-1, layers, -1)
        else:
            drawn = torch.randn(2 * len(x), self.latent_dim, device=x.device, dtype=self.gen.initial_block.dtype)
            first, second = self.vectorizer(drawn)[:, None].expand(-1, layers, -1).chunk(2)
            mixed = torch.rand(len(x), 1, device=x.device) < MIXED
            change = (torch.rand(len(x), 1, device=x.device) * layers).floor()
            fine = (torch.arange(layers, device=x.device) >= change) & mixed
            styles = torch.where(fine[:, :, None], second, first)
        return self.gen(styles, x[:, 0, :, :, None], self.checkpointing and self.training), styles

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 16, "latent_dim": 8, "style_depth": 2, "fmap_max": 8}
        return options, (torch.rand(2, 1, 16, 16), torch.randn(2, 8))


class HalvingBlock(nn.Module):
    """Two convolutions beside a 1x1 one; both ways halve the picture, unless it is the last block."""

    def __init__(self, in_channels: int, channels: int, *, halve: bool) -> None:
        super().__init__()
        self.conv_res = nn.Conv2d(in_channels, channels, 1, stride=2 if halve else 1)
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(LEAK),
        )
        self.downsample = nn.Sequential(Blur(), nn.Conv2d(channels, channels, 3, padding=1, stride=2)) if halve else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, side, side) -> (batch, channels, side / 2, side / 2)."""
        own = self.net(x)
        own = own if self.downsample is None else self.downsample(own)
        return (own + self.conv_res(x)) / math.sqrt(2)


class Judge(nn.Module):
    """The discriminator itself."""

    def __init__(self, image_size: int, in_nc: int, fmap_max: int) -> None:
        super().__init__()
        halvings = image_size.bit_length() - 2
        widths = [min(FIRST_WIDTH * 2**level, fmap_max) for level in range(halvings + 1)]
        self.blocks = nn.ModuleList(
            HalvingBlock(before, width, halve=level < halvings)
            for level, (before, width) in enumerate(zip([in_nc, *widths[:-1]], widths, strict=True))
        )
        self.final_conv = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.to_logit = nn.Linear(widths[-1] * 2 * 2, 1)

    def forward(self, x: Tensor, recomputing: bool) -> Tensor:
        """(batch, in_nc, image_size, image_size) -> (batch, 1)."""
        for block in self.blocks:
            x = recompute(block, x, when=recomputing)
        return self.to_logit(self.final_conv(x).flatten(1))


@ARCHS.register("stylegan2_discriminator")
class StyleGAN2LucidrainsDiscriminator(nn.Module):
    """The discriminator, which in training sees augmented pictures.

    To have augmentations adapt, or others, use `augmented_discriminator` around this one.

    Args:
        image_size: height and width of the pictures it judges, in pixels: a power of 2, 8 at least.
        in_nc: channels of the pictures.
        augmentation_types: of DiffAugment, in this order: `color`, `translation`, `cutout`. Pictures are also mirrored.
        augmentation_probability: chance of each of them, for each picture.
        do_checkpointing: recompute activations in the backward pass, whatever the trainer's own setting.
        fmap_max: the most channels of any layer.

    Raises:
        ValueError: `image_size` is not such a power, or there is no such type.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt,
        in_nc: PositiveInt = 3,
        augmentation_types: Sequence[str] = (),
        augmentation_probability: Fraction = 0.0,
        do_checkpointing: bool = False,
        fmap_max: PositiveInt = 512,
    ) -> None:
        super().__init__()
        _check_power(image_size)
        unknown = [name for name in augmentation_types if f"diff_{name}" not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f"augmentation_types: there is no '{unknown[0]}'; known: color, translation, cutout")
        self.image_size = image_size
        self.checkpointing = False
        self.do_checkpointing = do_checkpointing
        self.augmentations = [AUGMENTATIONS[f"diff_{name}"] for name in augmentation_types]
        self.probability = augmentation_probability
        self.D = Judge(image_size, in_nc, fmap_max)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, in_nc, image_size, image_size).

        Returns:
            One logit a picture, (batch, 1).
        """
        check_size(x, self.image_size)
        if self.training and self.probability:
            p = torch.full((), self.probability, device=x.device)
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < p / 2, x.flip(-1), x)
            for augment in self.augmentations:
                x = augment(x, p)
        return self.D(x, self.training and (self.checkpointing or self.do_checkpointing))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        types = ["color", "translation", "cutout"]
        options = {"image_size": 16, "fmap_max": 8, "augmentation_types": types, "augmentation_probability": 0.5}
        return options, (torch.rand(2, 3, 16, 16),)


def _check_power(size: int) -> None:
    if size < 8 or size & (size - 1):
        raise ValueError(f"image_size must be a power of 2, 8 at least, got {size}")
