"""UnivNet: a spectrogram as sound.

Jang et al., "UnivNet: A Neural Vocoder with Multi-Resolution Spectrogram Discriminators for High-Fidelity Waveform Generation",
Interspeech 2021 (arXiv:2106.07889); location-variable convolutions: Zeng et al., "LVCNet", ICASSP 2021 (arXiv:2102.10815).
TorToiSe's ``vocoder.pth`` (the public UnivNet-c32) loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.packed_linear import packed
from dlas.layers.recompute import recompute
from dlas.layers.weight_norm import WeightNormConv1d, WeightNormConvTranspose1d, fold_weight_norm
from dlas.registry import ARCHS
from dlas.types import NonNegativeFloat, PositiveInt

PREDICTOR_WIDTH = 64
"""Channels within the networks that predict kernels."""

PREDICTOR_SLOPE = 0.2

SILENCE = math.log(1e-5)
"""Of a log-mel spectrogram."""

TAIL = 10
"""Frames of silence that are appended for inference, and cut off as sound: the last ones are poor."""


class KernelPredictor(nn.Module):
    """The kernels and biases of a block's convolutions, for each frame of a spectrogram.

    Args:
        mel_channels: of the spectrogram.
        channels: that the convolutions read; they write twice as many.
        layers: convolutions of the block.
        kernel_size: of the convolutions.
        predictor_kernel: of the predictor's own.
    """

    def __init__(self, mel_channels: int, channels: int, layers: int, kernel_size: int, predictor_kernel: int) -> None:
        super().__init__()
        self.shape = (layers, channels, 2 * channels, kernel_size)
        width, pad = PREDICTOR_WIDTH, predictor_kernel // 2

        def conv(out_channels: int) -> WeightNormConv1d:
            return WeightNormConv1d(width, out_channels, predictor_kernel, padding=pad)

        self.input_conv = nn.Sequential(WeightNormConv1d(mel_channels, width, 5, padding=2), nn.LeakyReLU(PREDICTOR_SLOPE))
        self.residual_convs = nn.ModuleList(
            nn.Sequential(nn.Identity(), conv(width), nn.LeakyReLU(PREDICTOR_SLOPE), conv(width), nn.LeakyReLU(PREDICTOR_SLOPE))
            for _ in range(3)
        )
        self.kernel_conv: nn.Module = conv(math.prod(self.shape))
        self.bias_conv = conv(layers * 2 * channels)

    def forward(self, mel: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Spectrograms (B, mel_channels, T) -> for each layer kernels (B, T, out, in, size); biases (B, layers, out, T)."""
        features = self.input_conv(mel)
        for block in self.residual_convs:
            features = features + block(features)
        layers, channels, out, size = self.shape
        biases = self.bias_conv(features).unflatten(1, (layers, out))
        if isinstance(self.kernel_conv, FoldedKernels):
            return [kernels.unflatten(2, (out, channels, size)) for kernels in self.kernel_conv(features)], biases
        return self.kernel_conv(features).unflatten(1, self.shape).permute(1, 0, 5, 3, 2, 4).unbind(), biases

    def fold(self) -> None:
        """Lays out the convolution that makes kernels for inference; its weight norm has been folded."""
        assert isinstance(self.kernel_conv, WeightNormConv1d)
        self.kernel_conv = FoldedKernels(self.kernel_conv, self.shape)


class FoldedKernels(nn.Module):
    """Makes kernels as the location-variable convolution reads them, by one product of matrices for each layer.

    Args:
        conv: makes kernels in the order (layers, in, out, size).
        shape: (layers, in, out, size).
    """

    def __init__(self, conv: WeightNormConv1d, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        assert conv.bias is not None
        weight, bias = (part.unflatten(0, shape).transpose(1, 2).flatten(1, 3) for part in (conv.normed_weight, conv.bias))
        self.size = weight.shape[-1]
        self.layers = nn.ModuleList(packed(w.flatten(1), b) for w, b in zip(weight, bias, strict=True))

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, T) -> for each layer (B, T, out * in * size)."""
        windows = F.pad(features, (self.size // 2, self.size // 2)).unfold(2, self.size, 1)  # (B, C, T, size)
        columns = windows.transpose(1, 2).flatten(2)
        return [layer(columns) for layer in self.layers]


def location_variable_convolution(x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """Convolves each stretch of a sequence with its own kernel, as one convolution whose groups are the stretches.

    Args:
        x: (B, in, T * hop).
        kernels: (B, T, out, in, size), of odd size.
        biases: (B, out, T).

    Returns:
        (B, out, T * hop); beyond the ends is zero.
    """
    batch, frames, out, channels, size = kernels.shape
    hop = x.shape[-1] // frames
    windows = F.pad(x, (size // 2, size // 2)).unfold(2, hop + size - 1, hop)  # (B, in, T, hop + size - 1)
    stretches = windows.transpose(1, 2).reshape(1, batch * frames * channels, hop + size - 1)
    weight = kernels.reshape(batch * frames * out, channels, size)
    found = F.conv1d(stretches, weight, biases.transpose(1, 2).flatten(), groups=batch * frames)
    return found.view(batch, frames, out, hop).transpose(1, 2).reshape(batch, out, frames * hop)


class Block(nn.Module):
    """Enlarges a sequence, and passes it through convolutions whose kernels follow a spectrogram.

    Args:
        channels: of the sequence.
        mel_channels: of the spectrogram.
        stride: of the enlargement.
        dilations: of the convolutions before each location-variable one.
        slope: of leaky ReLUs.
        predictor_kernel: see `KernelPredictor`.
    """

    def __init__(
        self, channels: int, mel_channels: int, stride: int, dilations: Sequence[int], slope: float, predictor_kernel: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_predictor = KernelPredictor(mel_channels, channels, len(dilations), 3, predictor_kernel)
        odd = stride % 2
        self.convt_pre = nn.Sequential(
            nn.LeakyReLU(slope),
            WeightNormConvTranspose1d(channels, channels, 2 * stride, stride, padding=stride // 2 + odd, output_padding=odd),
        )
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(slope),
                WeightNormConv1d(channels, channels, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(slope),
            )
            for dilation in dilations
        )

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        """(B, channels, L), (B, mel_channels, T) -> (B, channels, L * stride)."""
        kernels, biases = self.kernel_predictor(mel)
        x = self.convt_pre(x)
        for index, conv in enumerate(self.conv_blocks):
            gate, value = location_variable_convolution(conv(x), kernels[index], biases[:, index]).chunk(2, dim=1)
            x = torch.addcmul(x, gate.sigmoid(), _tanh(value))
        return x


def _tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent; on the CPU by way of the sigmoid, which is several times as fast there."""
    return (2 * x).sigmoid() * 2 - 1 if x.device.type == "cpu" else x.tanh()


@ARCHS.register("univnet")
class UnivNet(nn.Module):
    """The generator; the defaults are the published one of 32 channels, for 24 kHz.

    Args:
        noise_dim: channels of the noise it begins with.
        channel_size: width.
        dilations: of the convolutions in each block.
        strides: of the enlargement in each block; their product must be `hop_length`.
        lReLU_slope: of leaky ReLUs.
        kpnet_conv_size: kernel size within the networks that predict kernels, odd.
        hop_length: samples of sound a frame.
        n_mel_channels: of spectrograms.

    Raises:
        ValueError: the strides do not make the hop length.
    """

    def __init__(
        self,
        *,
        noise_dim: PositiveInt = 64,
        channel_size: PositiveInt = 32,
        dilations: Sequence[int] = (1, 3, 9, 27),
        strides: Sequence[int] = (8, 8, 4),
        lReLU_slope: NonNegativeFloat = 0.2,  # noqa: N803 as upstream's files spell it
        kpnet_conv_size: PositiveInt = 3,
        hop_length: PositiveInt = 256,
        n_mel_channels: PositiveInt = 100,
    ) -> None:
        super().__init__()
        if (factor := math.prod(strides)) != hop_length:
            raise ValueError(f"strides {list(strides)} enlarge {factor} times and hop_length is {hop_length}: make them equal")
        self.checkpointing = False
        self.noise_dim, self.hop_length = noise_dim, hop_length
        self.conv_pre = WeightNormConv1d(noise_dim, channel_size, 7, padding=3, padding_mode="reflect")
        self.res_stack = nn.ModuleList(
            Block(channel_size, n_mel_channels, stride, dilations, lReLU_slope, kpnet_conv_size) for stride in strides
        )
        self.conv_post = nn.Sequential(
            nn.LeakyReLU(lReLU_slope), WeightNormConv1d(channel_size, 1, 7, padding=3, padding_mode="reflect"), nn.Tanh()
        )

    def forward(self, c: Tensor, z: Tensor) -> Tensor:
        """Sound.

        Args:
            c: log-mel spectrograms (B, n_mel_channels, T).
            z: noise (B, noise_dim, T), standard normal.

        Returns:
            (B, 1, T * hop_length), in [-1, 1].
        """
        x = self.conv_pre(z)
        for block in self.res_stack:
            x = recompute(block, x, c, when=self.checkpointing and self.training)
        return self.conv_post(x)

    def fold(self) -> UnivNet:
        """Makes the network ready for inference, in place: no weight is computed at each use, and all lie as they are read."""
        fold_weight_norm(self)
        for module in self.modules():
            if isinstance(module, KernelPredictor):
                module.fold()
        return self

    @torch.inference_mode()
    def inference(self, mel: Tensor, z: Tensor) -> Tensor:
        """Sound with a good end.

        Args:
            mel: log-mel spectrograms (B, n_mel_channels, T).
            z: noise (B, noise_dim, T + `TAIL`), standard normal.

        Returns:
            (B, 1, T * hop_length), in [-1, 1].
        """
        sound = self(F.pad(mel, (0, TAIL), value=SILENCE), z)
        return sound[..., : -TAIL * self.hop_length].clamp(-1, 1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {
            "noise_dim": 3,
            "channel_size": 2,
            "dilations": [1, 3],
            "strides": [3, 2],
            "hop_length": 6,
            "n_mel_channels": 4,
        }
        return options, (torch.randn(2, 4, 7), torch.randn(2, 3, 7))
