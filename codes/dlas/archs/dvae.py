"""A discrete autoencoder: one level of codes between strided convolutions and enlarging ones.

Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021 (arXiv:2102.12092), section 2.1, with a vector quantiser in the
place of the Gumbel softmax, as in DL-Art-School, whose names the layers have: ``encoder.<i>``, ``quantizer``, ``decoder.<i>``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from dlas.layers.discrete_autoencoder import Architecture, DiscreteAutoencoder
from dlas.layers.quantizers import create_quantizer
from dlas.layers.vector_quantizer import ExpiringVectorQuantizer, Quantizer
from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt, QuantizerOptions


@ARCHS.register("dvae")
class DiscreteVAE(DiscreteAutoencoder):
    """Pictures or sequences to codes and back, with one codebook.

    Train it with `direct` of the first two outputs:
    `{type: generator, generator: dvae, in: hq, out: [mse, commitment, gen, perplexity, usage]}`.

    Args:
        positional_dims: 2 for pictures, 1 for sequences.
        num_tokens: codes.
        codebook_dim: channels of what is replaced by codes.
        num_layers: strided convolutions; the width doubles with each after the first.
        num_resnet_blocks: residual blocks of encoder and decoder each.
        hidden_dim: width of the first convolution.
        channels: of the input.
        stride: of each convolution.
        kernel_size: of each convolution, odd.
        activation: behind convolutions.
        quantizer_use_cosine_sim: codes are compared by their direction in place of their distance.
        quantizer_codebook_misses_to_expiration: steps without any use after which a code is replaced by a vector of the batch.
        quantizer_codebook_embedding_compression: channels of codes, to and from which linear layers lead; None: `codebook_dim`.
        quantizer: another quantiser than the published network's, which the three options above are about.

    Raises:
        ValueError: `positional_dims` is neither 1 nor 2, or `kernel_size` is even.
    """

    def __init__(
        self,
        *,
        positional_dims: PositiveInt = 2,
        num_tokens: PositiveInt = 512,
        codebook_dim: PositiveInt = 512,
        num_layers: PositiveInt = 3,
        num_resnet_blocks: NonNegativeInt = 0,
        hidden_dim: PositiveInt = 64,
        channels: PositiveInt = 3,
        stride: PositiveInt = 2,
        kernel_size: PositiveInt = 3,
        activation: Literal["relu", "silu"] = "relu",
        quantizer_use_cosine_sim: bool = True,
        quantizer_codebook_misses_to_expiration: PositiveInt = 40,
        quantizer_codebook_embedding_compression: PositiveInt | None = None,
        quantizer: QuantizerOptions | None = None,
    ) -> None:
        super().__init__(
            Architecture(
                dims=positional_dims,
                channels=channels,
                code_channels=codebook_dim,
                layers=num_layers,
                blocks=num_resnet_blocks,
                width=hidden_dim,
                stride=stride,
                kernel_size=kernel_size,
                activation=activation,
            )
        )
        self.quantizer: Quantizer
        if quantizer is not None:
            self.quantizer = create_quantizer(quantizer, num_tokens, codebook_dim)
        else:
            self.quantizer = ExpiringVectorQuantizer(
                num_tokens,
                codebook_dim,
                cosine=quantizer_use_cosine_sim,
                patience=quantizer_codebook_misses_to_expiration,
                compression=quantizer_codebook_embedding_compression,
            )

    def codes(self) -> Quantizer:
        """What replaces vectors by codes."""
        return self.quantizer

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"num_tokens": 6, "codebook_dim": 4, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 4}
        return options | {"quantizer_codebook_embedding_compression": 2}, (torch.randn(2, 3, 8, 12),)
