"""GLEAN: super-resolution by the features of a StyleGAN2 generator that stays as it is, the latent bank.

Chan et al., "GLEAN: Generative Latent Bank for Large-Factor Image Super-Resolution", CVPR 2021 (arXiv:2012.00739), section 3,
in DL-Art-School's form: the encoder's trunk is of RRDBs, the decoder enlarges by repeating pixels, and both convolutions of a
size in the bank have one latent. The layers have its names: ``encoder``, ``latent_bank.bank``, ``latent_bank.fusion_blocks``,
``decoder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs.stylegan2_generator import StyleGAN2Generator
from dlas.errors import CheckpointError
from dlas.layers.classifiers.files import load_exactly
from dlas.layers.recompute import recompute
from dlas.layers.rrdb import LEAK, RRDB
from dlas.layers.stylegan2 import EqualLinear, width_at
from dlas.registry import ARCHS
from dlas.types import PositiveInt

WIDEST = 512
"""The most channels of the encoder's features."""

DENSE_GROWTH = 32
"""Channels that each convolution of the encoder's dense blocks adds."""

MAPPING_LAYERS = 8
"""Of the bank's mapping network, which the encoder stands in for."""


class Convolution(nn.Module):
    """A convolution that keeps the size, or with a stride divides it, with a leaky ReLU behind it if asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        activate: bool = True,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.activate = activate
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu" if activate else "linear")
        with torch.no_grad():
            self.conv.weight.mul_(gain)
            if self.conv.bias is not None:
                self.conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, ...)."""
        x = self.conv(x)
        return F.leaky_relu_(x, LEAK) if self.activate else x


class Reducer(nn.Module):
    """Half the size; and what the bank is given of features before that."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.structural_latent_conv = Convolution(in_channels, in_channels, 1, activate=False)
        self.process = nn.Sequential(
            Convolution(in_channels, out_channels, stride=2, bias=False), Convolution(out_channels, out_channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / 2, width / 2)."""
        return self.process(x)


class Encoder(nn.Module):
    """Features of a picture, at its size and at each half of it down to 4 pixels, and one latent for each size in the bank.

    Args:
        nf: channels of the first features; they double from size to size.
        nb: residual-in-residual blocks.
        side: height and width of the features, behind the first convolution.
        stride: of the first convolution.
        latents: how many there are.
        latent_dim: size of each.
    """

    def __init__(self, nf: int, nb: int, side: int, stride: int, latents: int, latent_dim: int) -> None:
        super().__init__()
        self.widths = [min(nf * 2**level, WIDEST) for level in range(_log2(side))]
        self.latents = latents
        self.checkpointing = False
        self.initial_conv = Convolution(3, nf, 7, stride=stride, activate=False)
        self.rrdb_blocks = nn.Sequential(*(RRDB(nf, DENSE_GROWTH) for _ in range(nb)))
        self.reducers = nn.ModuleList(Reducer(*pair) for pair in zip(self.widths[:-1], self.widths[1:], strict=True))
        self.latent_conv = Convolution(self.widths[-1], self.widths[-1], stride=2)
        self.latent_linear = EqualLinear(self.widths[-1], latent_dim * latents, activate=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Looks at pictures (batch, 3, height, width).

        Returns:
            The trunk's features (batch, nf, side, side); features for the bank, the largest first, the last 4 pixels wide; and
            latents (batch, latents, latent_dim).
        """
        again = self.checkpointing and self.training
        x = self.initial_conv(x)
        for block in self.rrdb_blocks:
            x = recompute(block, x, when=again)
        trunk, structure = x, []
        for reducer in self.reducers:
            assert isinstance(reducer, Reducer)
            structure.append(reducer.structural_latent_conv(x))
            x = recompute(reducer, x, when=again)
        latents = self.latent_linear(self.latent_conv(x).flatten(1))
        return trunk, structure, latents.view(len(x), self.latents, -1)


class LatentBank(nn.Module):
    """A trained generator, which stays as it is, and convolutions that mix an encoder's features into its own.

    Args:
        bank: the generator.
        widths: channels of the encoder's features, the largest picture's first.
        outputs: how many sizes above the encoder's are looked at.
    """

    def __init__(self, bank: StyleGAN2Generator, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.bank = bank.requires_grad_(False)
        self.outputs = outputs
        self.fusion_blocks = nn.ModuleList()
        for level, width in enumerate(reversed(widths)):
            own = bank.widths[level]
            self.fusion_blocks.append(Convolution(width + own, own))

    def forward(self, structure: Sequence[Tensor], latents: Tensor) -> list[Tensor]:
        """Features of the bank.

        Args:
            structure: (batch, channels, side, side) of the encoder, the largest first.
            latents: (batch, sizes, latent_dim), of 4 pixels first.

        Returns:
            (batch, channels, side, side) for each size above the encoder's, the smallest first.
        """
        x = self.bank.conv1(self.bank.input(len(latents)), latents[:, 0], self._noise(0))
        found = []
        for level in range(len(structure) + self.outputs - 1):
            if level < len(structure):
                x = self.fusion_blocks[level](torch.cat((structure[-level - 1], x), dim=1))
            for index in (2 * level, 2 * level + 1):
                x = self.bank.convs[index](x, latents[:, level], self._noise(index + 1))
            if level >= len(structure) - 1:
                found.append(x)
        return found

    def _noise(self, index: int) -> Tensor | None:
        """Of one of the bank's layers: drawn anew (None) in training; what it keeps in evaluation, so that results repeat."""
        return None if self.training else getattr(self.bank.noises, f"noise_{index}")


class Decoder(nn.Module):
    """A picture from the trunk's features and those of the bank, each of twice the size of the one before."""

    def __init__(self, nf: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.checkpointing = False
        self.initial_conv = Convolution(nf, nf, gain=0.1)
        pairs = zip([nf, *widths[:-1]], widths, strict=True)
        self.decoder_blocks = nn.ModuleList(Convolution(before + own, own, gain=0.1) for before, own in pairs)
        self.final_decode = Convolution(widths[-1], 3, activate=False, gain=0.1)

    def forward(self, trunk: Tensor, found: Sequence[Tensor]) -> Tensor:
        """(batch, nf, side, side) and features of twice, four times, ... that -> (batch, 3, height, width) of the last."""
        x = self.initial_conv(trunk)
        for block, features in zip(self.decoder_blocks, found, strict=True):
            x = torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), features), dim=1)
            x = recompute(block, x, when=self.checkpointing and self.training)
        return self.final_decode(x)


@ARCHS.register("glean")
class Glean(nn.Module):
    """Enlarges pictures of one size and subject by what a StyleGAN2 generator of that subject knows.

    The bank's weights are not trained, but are part of the network's checkpoint: with one of these (`path.pretrain`), the
    bank's own file is not needed again.

    Args:
        nf: channels of the encoder's first features and of the decoder's.
        latent_bank_pretrained_weights: file of a trained `stylegan2_rosinality_gen`, as it is or under `g_ema`: for faces
            NVIDIA's stylegan2-ffhq-config-f, converted by rosinality's script. Without it the bank is one that nobody trained.
        latent_bank_max_dim: height and width of the bank's own pictures, in pixels: a power of 2.
        gen_output_dim: height and width of the result: a power of 2, not above the bank's.
        encoder_rrdb_nb: residual-in-residual blocks of the encoder.
        latent_bank_latent_dim: size of the bank's latents.
        input_dim: height and width of low-resolution pictures: a power of 2.
        initial_stride: stride of the encoder's first convolution, a power of 2; its features are 4 pixels wide at least, and
            half of the result at most.
        latent_bank_max_channels: the most channels of the bank's layers.

    Raises:
        ValueError: sizes are not such powers or do not go together.
        CheckpointError: the bank's file is missing, or of another network.
    """

    def __init__(
        self,
        *,
        nf: PositiveInt,
        latent_bank_pretrained_weights: str | None = None,
        latent_bank_max_dim: PositiveInt = 1024,
        gen_output_dim: PositiveInt = 256,
        encoder_rrdb_nb: PositiveInt = 6,
        latent_bank_latent_dim: PositiveInt = 512,
        input_dim: PositiveInt = 32,
        initial_stride: PositiveInt = 1,
        latent_bank_max_channels: PositiveInt = 512,
    ) -> None:
        super().__init__()
        side = input_dim // initial_stride
        sizes = (input_dim, initial_stride, gen_output_dim, latent_bank_max_dim)
        if any(size & (size - 1) for size in sizes) or not 4 <= side < gen_output_dim <= latent_bank_max_dim:
            raise ValueError(
                f"input_dim ({input_dim}), initial_stride ({initial_stride}), gen_output_dim ({gen_output_dim}) and "
                f"latent_bank_max_dim ({latent_bank_max_dim}) must be powers of 2, with 4 <= input_dim / initial_stride < "
                "gen_output_dim <= latent_bank_max_dim"
            )
        self.input_dim = input_dim
        self.encoder = Encoder(nf, encoder_rrdb_nb, side, initial_stride, _log2(gen_output_dim), latent_bank_latent_dim)
        bank = StyleGAN2Generator(
            size=latent_bank_max_dim,
            style_dim=latent_bank_latent_dim,
            n_mlp=MAPPING_LAYERS,
            max_channels=latent_bank_max_channels,
        )
        if latent_bank_pretrained_weights is not None:
            _fill(bank, Path(latent_bank_pretrained_weights), latent_bank_max_dim)
        outputs = _log2(gen_output_dim // side)
        self.latent_bank = LatentBank(bank, self.encoder.widths[:-1], outputs)
        self.decoder = Decoder(nf, [width_at(side * 2**level, 2, latent_bank_max_channels) for level in range(1, outputs + 1)])

    @property
    def checkpointing(self) -> bool:
        """Whether activations of the encoder's and the decoder's blocks are recomputed in the backward pass."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = value

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, 3, input_dim, input_dim), RGB in [0, 1].

        Returns:
            (batch, 3, gen_output_dim, gen_output_dim), not clamped.

        Raises:
            ValueError: the pictures have another size.
        """
        if tuple(x.shape[-2:]) != (self.input_dim, self.input_dim):
            raise ValueError(
                f"glean was built for pictures of {self.input_dim}x{self.input_dim} and got {x.shape[-2]}x{x.shape[-1]}: set "
                "input_dim, or cut the pictures"
            )
        trunk, structure, latents = self.encoder(x)
        return self.decoder(trunk, self.latent_bank(structure, latents))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        sizes = {"latent_bank_max_dim": 16, "gen_output_dim": 16, "input_dim": 8, "latent_bank_latent_dim": 8}
        return {"nf": 4, "encoder_rrdb_nb": 1, "latent_bank_max_channels": 8, **sizes}, (torch.rand(2, 3, 8, 8),)


def _log2(number: int) -> int:
    return number.bit_length() - 1


def _fill(bank: StyleGAN2Generator, path: Path, side: int) -> None:
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"glean needs a trained StyleGAN2 generator for its latent bank, and there is no file {path.absolute()} "
            f"('latent_bank_pretrained_weights'). It must make pictures of {side} pixels ('latent_bank_max_dim') and have "
            "rosinality's names. For faces: fetch stylegan2-ffhq-config-f.pkl "
            "(https://nvlabs-fi-cdn.nvidia.com/stylegan2/networks/), convert it with convert_weight.py of "
            "https://github.com/rosinality/stylegan2-pytorch, and put the result there. Of your own pictures: train "
            "stylegan2_rosinality_gen and name its checkpoint"
        )
    load_exactly(bank, path, f"a StyleGAN2 generator of {side} pixels", containers=("g_ema",))
