"""What DL-Art-School's discrete autoencoders share: convolutions that make the input smaller, codes, and enlarging ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.layers.vector_quantizer import Quantized, Quantizer, as_picture

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
NORM_GROUPS = 8


class ResidualBlock(nn.Module):
    """Two convolutions 3 wide and one 1 wide, beside which the input passes."""

    def __init__(self, dims: int, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.net = nn.Sequential(
            conv(channels, channels, 3, padding=1),
            activation(),
            conv(channels, channels, 3, padding=1),
            activation(),
            conv(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, ...) -> the same shape."""
        return x + self.net(x)


class EnlargingConvolution(nn.Module):
    """Every value repeated, then a convolution."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = CONVOLUTIONS[dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L, ...) -> (B, out_channels, L * factor, ...)."""
        return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))


@dataclass(frozen=True)
class Architecture:
    """Sizes of encoder and decoder.

    Args:
        dims: 1 for sequences, 2 for pictures.
        channels: of the input.
        code_channels: of what is replaced by codes.
        layers: strided convolutions; the width doubles with each after the first. 0: one convolution 1 wide.
        blocks: residual blocks of encoder and decoder each.
        width: of the first convolution.
        stride: of each convolution.
        kernel_size: of each convolution.
        activation: behind convolutions.
        transposed: the decoder enlarges by transposed convolutions.
        encoder_norm: groups of channels are normalised behind each strided convolution.

    Raises:
        ValueError: sizes do not go together.
    """

    dims: int
    channels: int
    code_channels: int
    layers: int
    blocks: int
    width: int
    stride: int
    kernel_size: int
    activation: str
    transposed: bool = False
    encoder_norm: bool = False

    def __post_init__(self) -> None:
        if self.dims not in CONVOLUTIONS:
            raise ValueError(f"positional_dims must be 1 or 2, got {self.dims}")
        if not self.transposed and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.transposed and self.layers and self.kernel_size - 2 * self._padding != self.stride:
            raise ValueError(
                f"transposed convolutions of kernel_size {self.kernel_size} do not enlarge by exactly the stride "
                f"{self.stride}; give {self.stride + 2} for an even stride, or use_transposed_convs: false and an odd one"
            )
        if self.layers == 0 and self.blocks == 0:
            raise ValueError("num_layers 0 needs num_resnet_blocks of 1 or more")

    @property
    def factor(self) -> int:
        """How much smaller codes are than the input."""
        return self.stride**self.layers

    @property
    def _padding(self) -> int:
        return (self.kernel_size - 1) // 2

    @property
    def _widths(self) -> list[int]:
        return [self.width * 2**level for level in range(self.layers)] or [self.width]

    def encoder(self) -> nn.Sequential:
        """(B, channels, ...) -> (B, code_channels, ...), `factor` times smaller."""
        conv, act = CONVOLUTIONS[self.dims], ACTIVATIONS[self.activation]
        layers: list[nn.Module] = []
        if not self.layers:
            layers.append(nn.Sequential(conv(self.channels, self.width, 1), act()))
        for width, wider in pairwise([self.channels, *self._widths] if self.layers else []):
            strided = conv(width, wider, self.kernel_size, stride=self.stride, padding=self._padding)
            layers.append(nn.Sequential(strided, act()))
            layers += [nn.GroupNorm(NORM_GROUPS, wider)] if self.encoder_norm else []
        inner = self._widths[-1]
        layers += [ResidualBlock(self.dims, inner, act) for _ in range(self.blocks)]
        return nn.Sequential(*layers, conv(inner, self.code_channels, 1))

    def decoder(self) -> nn.Sequential:
        """(B, code_channels, ...) -> (B, channels, ...), `factor` times larger."""
        conv, act = CONVOLUTIONS[self.dims], ACTIVATIONS[self.activation]
        inner = self._widths[-1]
        layers: list[nn.Module] = [conv(self.code_channels, inner, 1)] if self.blocks else []
        layers += [ResidualBlock(self.dims, inner, act) for _ in range(self.blocks)]
        widths = [inner if self.blocks else self.code_channels, *reversed(self._widths)] if self.layers else []
        layers += [nn.Sequential(self._enlarging(width, narrower), act()) for width, narrower in pairwise(widths)]
        return nn.Sequential(*layers, conv(self.width, self.channels, 1))

    def _enlarging(self, width: int, narrower: int) -> nn.Module:
        if self.transposed:
            return TRANSPOSED[self.dims](width, narrower, self.kernel_size, stride=self.stride, padding=self._padding)
        return EnlargingConvolution(self.dims, width, narrower, self.kernel_size, self.stride)


class DiscreteAutoencoder(nn.Module):
    """Pictures or sequences to codes of one level and back. A subclass says where its quantiser is.

    Args:
        architecture: of encoder and decoder.
        smooth_l1: errors are those of the smooth L1 loss in place of squares.
        normalization: means and standard deviations by channel, which inputs are freed of.

    Raises:
        ValueError: `normalization` is not two lists with a number for each channel.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, architecture: Architecture, smooth_l1: bool = False, normalization: Sequence[Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        self.error = F.smooth_l1_loss if smooth_l1 else F.mse_loss
        self.normalized = normalization is not None
        if normalization is not None:
            if [len(each) for each in normalization] != [architecture.channels] * 2:
                raise ValueError(
                    f"normalization is the channels' means and their standard deviations, [[0.5], [0.5]] for one channel; "
                    f"for {architecture.channels} channels got {normalization}"
                )
            for name, values in zip(("mean", "deviation"), normalization, strict=True):
                shaped = torch.tensor(values, dtype=torch.float32).view(-1, *[1] * architecture.dims)
                self.register_buffer(name, shaped, persistent=False)
        self.checkpointing = False
        self.dims, self.factor = architecture.dims, architecture.factor
        self.encoder = architecture.encoder()
        self.decoder = architecture.decoder()

    def codes(self) -> Quantizer:
        """What replaces vectors by codes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Reconstructs inputs from codes.

        Args:
            x: (B, channels, H, W) or (B, channels, L), sides multiples of `factor`.

        Returns:
            Errors, shape of `x`; the codes' loss, for instance how far vectors are from them, a scalar; both in float32. The
            reconstruction, of the normalised input; how many codes are in use (perplexity), and the share of them that is used
            at all, scalars.

        Raises:
            ValueError: a side is no multiple of `factor`.
        """
        codes = self.encode(x)
        found, _ = self.decoded(codes.vectors)
        errors = self.error(found.float(), self.normalize(x).float(), reduction="none")
        return errors, codes.loss, found, codes.perplexity, codes.usage

    def normalize(self, x: Tensor) -> Tensor:
        """Inputs as the encoder takes them; the same shape."""
        return ((x - self.mean) / self.deviation).to(x.dtype) if self.normalized else x

    def encode(self, x: Tensor) -> Quantized:
        """Codes of inputs, `factor` times smaller. Arguments and errors as of `forward`."""
        for side in x.shape[-self.dims :]:
            if side % self.factor:
                raise ValueError(f"a side of {side} is no multiple of {self.factor}, by which the DVAE makes its input smaller")
        return self.codes()(recompute(self.encoder, self.normalize(x), when=self.checkpointing and self.training))

    @torch.no_grad()
    def get_codebook_indices(self, x: Tensor) -> Tensor:
        """Which codes stand for inputs, (B, ...), int64; the codebook stays. Arguments and errors as of `forward`."""
        return self.encode(x).indices

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, ...), for pictures also (B, N) of a square row by row, -> (B, codebook_dim, ...).

        Raises:
            ValueError: N is no square.
        """
        return self.codes().lookup(as_picture(indices) if self.dims == 2 else indices)

    def decode(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions of codes, shaped as for `lookup`, and the features that the last convolution made them of."""
        return self.decoded(self.lookup(indices))

    def decoded(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the codes' vectors."""
        features = recompute(self.decoder[:-1], vectors, when=self.checkpointing and self.training)
        return self.decoder[-1](features), features
