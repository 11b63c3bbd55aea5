"""The discrete autoencoder of TorToiSe, whose codes of mel spectrograms its autoregressive model writes.

Betker, "Better speech synthesis through scaling", 2023 (arXiv:2305.07243), section 3; after Ramesh et al., "Zero-Shot
Text-to-Image Generation", ICML 2021 (arXiv:2102.12092), section 2.1, with a vector quantiser in the place of the Gumbel
softmax. Layers have the names of the published checkpoint: ``encoder.<i>``, ``codebook``, ``decoder.<i>``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from dlas.layers.discrete_autoencoder import Architecture, DiscreteAutoencoder
from dlas.layers.quantizers import create_quantizer
from dlas.layers.vector_quantizer import ColumnVectorQuantizer, Quantizer
from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt, QuantizerOptions

LR_DECAY = 0.8
"""Of the averages of `use_lr_quantizer`, where its arguments name no other."""


@ARCHS.register("lucidrains_dvae")
class LucidrainsDVAE(DiscreteAutoencoder):
    """Pictures or sequences to codes and back, with one codebook that follows averages.

    Train it with `direct` of the first two outputs:
    `{type: generator, generator: dvae, in: mel, out: [recon_loss, commitment_loss, gen, perplexity, usage]}`. The published
    network is `{positional_dims: 1, channels: 80, hidden_dim: 512, codebook_dim: 512, num_tokens: 8192, num_layers: 2,
    num_resnet_blocks: 3, kernel_size: 3, use_transposed_convs: false}`.

    Args:
        positional_dims: 2 for pictures, 1 for sequences.
        num_tokens: codes.
        codebook_dim: channels of codes.
        num_layers: strided convolutions; the width doubles with each after the first. 0: one convolution 1 wide.
        num_resnet_blocks: residual blocks of encoder and decoder each.
        hidden_dim: width of the first convolution.
        channels: of the input.
        stride: of each convolution.
        kernel_size: of each convolution.
        use_transposed_convs: the decoder enlarges by transposed convolutions, in place of repeating values before convolutions.
        encoder_norm: channels are normalised in 8 groups behind each strided convolution.
        activation: behind convolutions.
        smooth_l1_loss: the first output is the smooth L1 loss in place of squared errors.
        normalization: means and standard deviations by channel, which inputs are freed of: `[[0.5], [0.5]]`. What is
            reconstructed is the normalised input.
        use_lr_quantizer: the quantiser is `vq` with `lr_quantizer_args`, and a decay of 0.8 where they name no other.
        lr_quantizer_args: its options.
        quantizer: another quantiser than the published network's.

    Raises:
        ValueError: sizes do not go together, or two quantisers are asked for.
    """

    def __init__(
        self,
        *,
        positional_dims: PositiveInt = 2,
        num_tokens: PositiveInt = 512,
        codebook_dim: PositiveInt = 512,
        num_layers: NonNegativeInt = 3,
        num_resnet_blocks: NonNegativeInt = 0,
        hidden_dim: PositiveInt = 64,
        channels: PositiveInt = 3,
        stride: PositiveInt = 2,
        kernel_size: PositiveInt = 4,
        use_transposed_convs: bool = True,
        encoder_norm: bool = False,
        activation: Literal["relu", "silu"] = "relu",
        smooth_l1_loss: bool = False,
        normalization: list[list[float]] | None = None,
        use_lr_quantizer: bool = False,
        lr_quantizer_args: dict[str, Any] | None = None,
        quantizer: QuantizerOptions | None = None,
    ) -> None:
        architecture = Architecture(
            dims=positional_dims,
            channels=channels,
            code_channels=codebook_dim,
            layers=num_layers,
            blocks=num_resnet_blocks,
            width=hidden_dim,
            stride=stride,
            kernel_size=kernel_size,
            activation=activation,
            transposed=use_transposed_convs,
            encoder_norm=encoder_norm,
        )
        super().__init__(architecture, smooth_l1_loss, normalization)
        if use_lr_quantizer and quantizer is not None:
            raise ValueError("use_lr_quantizer and quantizer both choose a quantiser; give one of them")
        if lr_quantizer_args and not use_lr_quantizer:
            raise ValueError("lr_quantizer_args has no effect without 'use_lr_quantizer: true'")
        if use_lr_quantizer:
            quantizer = {"type": "vq", "decay": LR_DECAY, **(lr_quantizer_args or {})}
        self.codebook: Quantizer
        if quantizer is None:
            self.codebook = ColumnVectorQuantizer(num_tokens, codebook_dim)
        else:
            self.codebook = create_quantizer(quantizer, num_tokens, codebook_dim)

    def codes(self) -> Quantizer:
        """What replaces vectors by codes."""
        return self.codebook

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"num_tokens": 6, "codebook_dim": 4, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 8}
        return options | {"encoder_norm": True, "normalization": [[0.5] * 3, [0.25] * 3]}, (torch.randn(2, 3, 8, 12),)
