"""WaveGlow: noise to sound by an invertible network that reads a spectrogram.

Prenger et al., "WaveGlow: A Flow-based Generative Network for Speech Synthesis", ICASSP 2019 (arXiv:1811.00002). Tensors have
the names of NVIDIA's published weights (the form with one layer ``cond_layer`` in each coupling).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.weight_norm import WeightNormConv1d
from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt

HOP = 256
"""Samples a frame of the spectrogram."""

UPSAMPLING_KERNEL = 1024
"""Of the transposed convolution that brings frames to samples."""


class InvertibleConvolution(nn.Module):
    """A matrix over channels, the same at all places.

    Args:
        channels: of the sequence.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)
        rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
        rotation[:, 0] *= torch.linalg.det(rotation).sign()  # its determinant is 1
        self.conv.weight.data.copy_(rotation[..., None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T) -> (B, C, T), and the logarithm of the matrix's determinant, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            logarithm = torch.linalg.slogdet(self._matrix()).logabsdet
        return self.conv(x), logarithm

    def inverse(self, x: Tensor) -> Tensor:
        """The other way."""
        return F.conv1d(x, torch.linalg.inv_ex(self._matrix()).inverse[..., None].to(x.dtype))

    def _matrix(self) -> Tensor:
        """(C, C), in float32 where the network is in half precision: there are no inverses in it."""
        weight = self.conv.weight[..., 0]
        return weight.to(torch.promote_types(weight.dtype, torch.float32))


class WN(nn.Module):
    """Gated dilated convolutions that read a spectrogram, as in WaveNet but in both directions; begins as zero.

    Args:
        inputs: channels that it reads; it writes twice as many.
        conditions: channels of the spectrogram.
        n_layers: how many; dilations are powers of two.
        n_channels: width, even.
        kernel_size: odd.
    """

    def __init__(self, inputs: int, conditions: int, n_layers: int, n_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.start = WeightNormConv1d(inputs, n_channels, 1)
        self.cond_layer = WeightNormConv1d(conditions, 2 * n_channels * n_layers, 1)
        self.in_layers = nn.ModuleList(
            WeightNormConv1d(
                n_channels, 2 * n_channels, kernel_size, dilation=2**layer, padding=(kernel_size - 1) * 2**layer // 2
            )
            for layer in range(n_layers)
        )
        self.res_skip_layers = nn.ModuleList(
            WeightNormConv1d(n_channels, n_channels * (2 if layer < n_layers - 1 else 1), 1) for layer in range(n_layers)
        )
        self.end = nn.Conv1d(n_channels, 2 * inputs, 1)
        for weight in self.end.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, T), (B, conditions, T) -> shift and logarithm of the scale, (B, inputs, T) each."""
        x = self.start(x)
        conditions = self.cond_layer(spectrogram).chunk(len(self.in_layers), 1)
        total = torch.zeros_like(x)
        for layer, mix, condition in zip(self.in_layers, self.res_skip_layers, conditions, strict=True):
            value, gate = (layer(x) + condition).chunk(2, 1)
            mixed: Tensor = mix(value.tanh() * gate.sigmoid())
            if mixed.shape[1] > self.n_channels:
                x = x + mixed[:, : self.n_channels]
            total = total + mixed[:, -self.n_channels :]
        shift, log_scale = self.end(total).chunk(2, 1)
        return shift, log_scale


@ARCHS.register("nv_waveglow")
class WaveGlow(nn.Module):
    """WaveGlow in NVIDIA's form; the defaults are the published one with 256 channels, for 22.05 kHz and 80 bins.

    Args:
        n_mel_channels: of spectrograms, of `HOP` samples a frame.
        n_flows: invertible steps.
        n_group: neighbouring samples that are channels of one place, even; divides `HOP`.
        n_early_every: steps after which some channels are done.
        n_early_size: how many, even.
        WN_config: of the network in each step: n_layers, n_channels, kernel_size.

    Raises:
        ValueError: channels do not come out, or `WN_config` lacks something or has more.
    """

    def __init__(
        self,
        *,
        n_mel_channels: PositiveInt = 80,
        n_flows: PositiveInt = 12,
        n_group: PositiveInt = 8,
        n_early_every: PositiveInt = 4,
        n_early_size: NonNegativeInt = 2,
        WN_config: dict[str, int] | None = None,  # noqa: N803 as upstream's files spell it
    ) -> None:
        super().__init__()
        layers = {"n_layers": 8, "n_channels": 256, "kernel_size": 3} if WN_config is None else dict(WN_config)
        if sorted(layers) != ["kernel_size", "n_channels", "n_layers"] or layers["kernel_size"] % 2 == 0:
            raise ValueError(f"WN_config has n_layers, n_channels and an odd kernel_size, not {layers}")
        left = n_group - n_early_size * ((n_flows - 1) // n_early_every)
        if n_group % 2 or n_early_size % 2 or left < 2 or HOP % n_group:
            raise ValueError(
                f"n_group {n_group} and n_early_size {n_early_size} must be even, n_group must divide {HOP}, and {n_flows} "
                f"steps leave {left} channels, where 2 are needed"
            )
        self.upsample = nn.ConvTranspose1d(n_mel_channels, n_mel_channels, UPSAMPLING_KERNEL, HOP)
        self.n_group, self.n_early_size, self.left = n_group, n_early_size, left
        self.early = [step > 0 and step % n_early_every == 0 for step in range(n_flows)]
        self.WN = nn.ModuleList()
        self.convinv = nn.ModuleList()
        channels = n_group
        for early in self.early:
            channels -= n_early_size * early
            self.convinv.append(InvertibleConvolution(channels))
            self.WN.append(WN(channels // 2, n_mel_channels * n_group, **layers))

    def forward(self, mel: Tensor, audio: Tensor, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
        """Sound to noise.

        Args:
            mel: log-mel spectrograms (B, n_mel_channels, T).
            audio: (B, N) or (B, 1, N), at most T * `HOP` samples, a multiple of `n_group`.
            sigma: standard deviation of the noise.

        Returns:
            Noise (B, n_group, N / n_group), and the negative log-likelihood of each sample without its constant, per number,
            (B,), float32; its mean is what training minimises (loss `direct`).

        Raises:
            ValueError: the audio is longer than the spectrogram, or no multiple of `n_group`.
        """
        audio = audio.flatten(1)
        conditions = self._conditions(self.upsample(mel))
        if audio.shape[-1] % self.n_group or audio.shape[-1] > conditions.shape[-1] * self.n_group:
            raise ValueError(
                f"audio of {audio.shape[-1]} samples does not fit {mel.shape[-1]} frames of {HOP}: cut it to a multiple of "
                f"{self.n_group} within them"
            )
        x = audio.unflatten(-1, (-1, self.n_group)).mT
        conditions = conditions[..., : x.shape[-1]]
        places = x.shape[-1]
        done = []
        likelihood = torch.zeros(len(x), device=x.device)
        for early, mix, couple in zip(self.early, self.convinv, self.WN, strict=True):
            if early:
                done.append(x[:, : self.n_early_size])
                x = x[:, self.n_early_size :]
            x, determinant = mix(x)
            kept, changed = x.chunk(2, 1)
            shift, log_scale = couple(kept, conditions)
            x = torch.cat([kept, log_scale.exp() * changed + shift], 1)
            likelihood = likelihood + log_scale.float().sum((1, 2)) + places * determinant
        noise = torch.cat([*done, x], 1)
        likelihood = likelihood - noise.float().square().sum((1, 2)) / (2 * sigma**2)
        return noise, -likelihood / noise[0].numel()

    @torch.inference_mode()
    def infer(self, mel: Tensor, sigma: float = 1.0, noise: Tensor | None = None) -> Tensor:
        """Noise to sound.

        Args:
            mel: log-mel spectrograms (B, n_mel_channels, T).
            sigma: standard deviation of the noise; 0.6 to 1 is usual, less is less rough.
            noise: (B, n_group, T * `HOP` / n_group) standard normal; drawn if not given.

        Returns:
            Sound (B, T * `HOP`).
        """
        spread = self.upsample(mel)[..., : mel.shape[-1] * HOP]
        conditions = self._conditions(spread)
        if noise is None:
            noise = torch.randn(len(mel), self.n_group, conditions.shape[-1], device=mel.device)
        parts = list((sigma * noise).to(spread.dtype).split(self._sizes(), 1))
        x = parts.pop()
        for early, mix, couple in reversed(list(zip(self.early, self.convinv, self.WN, strict=True))):
            kept, changed = x.chunk(2, 1)
            shift, log_scale = couple(kept, conditions)
            assert isinstance(mix, InvertibleConvolution)
            x = mix.inverse(torch.cat([kept, (changed - shift) * (-log_scale).exp()], 1))
            if early:
                x = torch.cat([parts.pop(), x], 1)
        return x.mT.flatten(1)

    def _sizes(self) -> list[int]:
        """Channels in the order in which they are done."""
        return [self.n_early_size] * sum(self.early) + [self.left]

    def _conditions(self, spread: Tensor) -> Tensor:
        """The spectrogram at the rate of samples, (B, C, N), as channels of groups, (B, C * n_group, N // n_group)."""
        groups = spread.shape[-1] // self.n_group
        return spread[..., : groups * self.n_group].unflatten(-1, (groups, self.n_group)).transpose(2, 3).flatten(1, 2)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {
            "n_mel_channels": 2,
            "n_flows": 3,
            "n_group": 4,
            "n_early_every": 2,
            "n_early_size": 2,
            "WN_config": {"n_layers": 2, "n_channels": 4, "kernel_size": 3},
        }
        return options, (torch.randn(2, 2, 1), torch.randn(2, 1, 96) * 0.1)
