"""PatchGAN, a discriminator that judges overlapping patches of a picture, of one size or of several.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (arXiv:1611.07004), section 3.2.2
and appendix 6.1.2 (the 70x70 PatchGAN). At several scales: Wang et al., "High-Resolution Image Synthesis and Semantic
Manipulation with Conditional GANs", CVPR 2018 (arXiv:1711.11585), section 3.2.

The layers have the names of the authors' checkpoints: ``model.<i>``, where convolutions, normalisations and activations
follow each other. The form with spectral normalisation is that of traiNNer-redux and neosr, which have no other normalisation.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.spectral_norm import convolution
from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""


class _PatchGAN(nn.Module):
    """All registered forms, given which normalisation: `batch`, `instance`, `spectral` or `none`."""

    def __init__(self, norm: str, *, in_nc: int, ndf: int, n_layers: int, padding: int = 1) -> None:
        super().__init__()
        if norm not in ("batch", "instance", "spectral", "none"):
            raise ValueError(f"norm must be batch, instance, spectral or none, got {norm!r}")
        self.n_layers = n_layers
        spectral = norm == "spectral"
        widest = 512 if spectral else 8 * ndf
        layers: list[nn.Module] = [
            convolution(in_nc, ndf, 4, stride=2, padding=padding, spectral=spectral),
            nn.LeakyReLU(LEAK, inplace=True),
        ]
        channels = ndf
        for number in range(1, n_layers + 1):
            width = min(channels * 2, widest)
            stride = 2 if number < n_layers else 1
            # A bias before a batch normalisation is without effect. So is one before that of instances, but theirs have it.
            bias = norm != "batch"
            layers.append(convolution(channels, width, 4, stride=stride, padding=padding, bias=bias, spectral=spectral))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width))
            elif norm == "instance":
                layers.append(nn.InstanceNorm2d(width))
            layers.append(nn.LeakyReLU(LEAK, inplace=True))
            channels = width
        layers.append(convolution(channels, 1, 4, padding=padding, spectral=spectral))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, channels, height, width), of any size that leaves a patch: 24 pixels and more with 3 layers.

        Returns:
            One logit a patch, (batch, 1, about height / 2^n_layers - 2, ...); higher is more real.

        Raises:
            ValueError: the pictures are too small.
        """
        # Each side loses a pixel in each of the two last convolutions.
        least = 3 * 2**self.n_layers
        if min(x.shape[-2:]) < least:
            height, width = x.shape[-2:]
            raise ValueError(
                f"pictures of {height}x{width} are too small for {self.n_layers} layers, which need {least} pixels"
            )
        return self.model(x)


@ARCHS.register("NLayerDiscriminator", "patchgan")
class NLayerDiscriminator(_PatchGAN):
    """The discriminator of pix2pix (batch) and CycleGAN (instance); with 3 layers each logit is of a patch of 70x70 pixels.

    Args:
        input_nc: input channels; twice those of a picture where input and output of a generator are judged together.
        ndf: channels of the first layer; they double with each, up to 8 times.
        n_layers: layers that are normalised; all but the last of them halve the picture, as does the one before.
        norm: normalisation: `batch`, `instance` or `none`.

    Raises:
        ValueError: `norm` is another.
    """

    def __init__(
        self,
        *,
        input_nc: PositiveInt = 3,
        ndf: PositiveInt = 64,
        n_layers: PositiveInt = 3,
        norm: Literal["batch", "instance", "none"] = "batch",
    ) -> None:
        super().__init__(norm, in_nc=input_nc, ndf=ndf, n_layers=n_layers)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"ndf": 8}, (torch.rand(2, 3, 33, 32),)


@ARCHS.register("PatchGANDiscriminatorSN", "patchgan_sn")
class PatchGANDiscriminatorSN(_PatchGAN):
    """PatchGAN with spectral normalisation of all layers.

    Args:
        input_nc: input channels.
        ndf: channels of the first layer; they double with each, up to 512.
        n_layers: layers between the first and the last; all but the last of them halve the picture, as does the first.
    """

    def __init__(self, *, input_nc: PositiveInt = 3, ndf: PositiveInt = 64, n_layers: PositiveInt = 3) -> None:
        super().__init__("spectral", in_nc=input_nc, ndf=ndf, n_layers=n_layers)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"ndf": 8}, (torch.rand(2, 3, 33, 32),)


@ARCHS.register("MultiscaleDiscriminator", "patchgan_multiscale")
class MultiscaleDiscriminator(nn.Module):
    """Equal PatchGANs for the picture, for half of it, and so on (pix2pixHD): the coarse ones see what goes together from afar.

    The losses `generator_gan` and `discriminator_gan` take the mean over the scales. As with the authors, ``layer0`` is the
    network of the smallest picture, and convolutions pad by two pixels.

    Args:
        input_nc: input channels.
        ndf: channels of the first layer of each network; they double with each, up to 8 times (with `spectral`, to 512).
        n_layers: layers that are normalised; all but the last of them halve the picture, as does the one before.
        num_scales: number of networks (`num_D` there); each sees half the size of the one before.
        norm: normalisation: `instance` (pix2pixHD), `batch`, `spectral` or `none`.

    Raises:
        ValueError: `norm` is another.
    """

    def __init__(
        self,
        *,
        input_nc: PositiveInt = 3,
        ndf: PositiveInt = 64,
        n_layers: PositiveInt = 3,
        num_scales: PositiveInt = 3,
        norm: Literal["batch", "instance", "spectral", "none"] = "instance",
    ) -> None:
        super().__init__()
        self.scales = num_scales
        self.least = 3 * 2 ** (n_layers + num_scales - 1)
        for scale in range(num_scales):
            judge = _PatchGAN(norm, in_nc=input_nc, ndf=ndf, n_layers=n_layers, padding=2)
            self.add_module(f"layer{scale}", judge.model)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Judges pictures.

        Args:
            x: (batch, channels, height, width), of 96 pixels and more each way with 3 layers and 3 scales.

        Returns:
            For each scale, the finest first, one logit a patch, (batch, 1, h, w); higher is more real.

        Raises:
            ValueError: the pictures are too small.
        """
        if min(x.shape[-2:]) < self.least:
            height, width = x.shape[-2:]
            raise ValueError(
                f"pictures of {height}x{width} are too small for {self.scales} scales, which need {self.least} pixels; "
                "lower num_scales or n_layers"
            )
        logits = []
        for scale in reversed(range(self.scales)):
            logits.append(self.get_submodule(f"layer{scale}")(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False) if scale else x
        return logits

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Counts the layers of each scale through: the authors' networks for feature matching have them in groups."""
        kept = re.compile(r"scale(\d+)_layer(\d+)\.(.+)")
        renamed = {}
        for key, value in state_dict.items():
            found = kept.fullmatch(key)
            # The first group is a convolution and an activation, the others have a normalisation without weights between.
            first = max(3 * int(found[2]) - 1, 0) if found else 0
            renamed[f"layer{found[1]}.{first}.{found[3].partition('.')[2]}" if found else key] = value
        return renamed

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"ndf": 8, "n_layers": 2, "num_scales": 2}, (torch.rand(2, 3, 33, 32),)
