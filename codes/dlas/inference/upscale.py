"""Pictures through a network: whatever they are, they come out the same, but larger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dlas.engine.passes.ensemble import self_ensemble
from dlas.engine.passes.reach import EXACT, INVISIBLE
from dlas.engine.passes.tiling import Tiler
from dlas.engine.precision import Precision
from dlas.inference.model import Model
from dlas.inference.pictures import Picture
from dlas.layers.resize import imresize

Alpha = Literal["network", "bicubic", "drop"]


class Upscaler:
    """Enlarges pictures.

    Args:
        model: the network.
        device: where it computes.
        precision: fp32, bf16, fp16, or `auto`: fp16 on CUDA, else fp32. What is not finite at the lower precision is computed
            again in fp32.
        tile: see `Tiler`.
        exact: tiles are as in the whole picture to 1e-5; if not, to less than can be seen in 8 bits, which is faster.
        ensemble: take the mean over eight ways of turning and mirroring each picture.
        outscale: enlargement of the result, to which the network's is resized; the network's own if None.
        alpha: how alpha is enlarged: by the `network`, as a grey picture, or `bicubic`; or `drop`.
        on_tile: called with the number of tiles done, and of all.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        *,
        precision: str = "auto",
        tile: int | Literal["auto"] = "auto",
        exact: bool = False,
        ensemble: bool = False,
        outscale: float | None = None,
        alpha: Alpha = "network",
        on_tile: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model.to(device)
        if precision == "auto":
            precision = "fp16" if device.type == "cuda" else "fp32"
        self.precision = Precision(precision, device)
        self.ensemble = ensemble
        self.outscale = outscale
        self.alpha = alpha
        self.tiler = Tiler(
            self._forward,
            self._in_fp32,
            model,
            channels=model.channels,
            scale=model.scale,
            device=device,
            tile=tile,
            grid=model.grid,
            tolerance=EXACT if exact else INVISIBLE,
            on_tile=on_tile,
        )

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> Picture:
        """The picture, enlarged; its kind (grey, alpha, bits, profile) as it was."""
        color = self._enlarge(picture.color)
        alpha = picture.alpha
        if self.alpha == "drop" or alpha is None:
            alpha = None
        elif bool((alpha == alpha.flatten()[0]).all()):
            alpha = alpha.flatten()[0].expand(1, *color.shape[-2:])
        elif self.alpha == "network":
            alpha = self._enlarge(alpha)
        else:
            alpha = imresize(alpha, size=(color.shape[-2], color.shape[-1]))
        return replace(picture, color=color.clamp(0, 1), alpha=None if alpha is None else alpha.clamp(0, 1))

    def _enlarge(self, color: Tensor) -> Tensor:
        channels = color.shape[0]
        if self.model.channels == channels:
            output = self._run(color[None])[0]
        elif channels == 1:
            output = self._run(color.expand(self.model.channels, -1, -1)[None])[0].mean(0, keepdim=True)
        else:  # a network for grey sees each channel by itself
            output = torch.cat([self._run(channel[None, None])[0] for channel in color])
        size = tuple(round(length * (self.outscale or self.model.scale)) for length in color.shape[-2:])
        size = (max(size[0], 1), max(size[1], 1))
        return output if tuple(output.shape[-2:]) == size else imresize(output.clamp(0, 1), size=size)

    def _run(self, x: Tensor) -> Tensor:
        return self_ensemble(self.tiler, x) if self.ensemble else self.tiler(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.precision.name == "fp32":
            return self._in_fp32(x)
        with self.precision.autocast():
            output: Tensor = self.model(x).float()
        # Networks that compute in [0, 255] may leave the range of fp16.
        return output if bool(output.isfinite().all()) else self._in_fp32(x)

    def _in_fp32(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = self.model(x)
        return output
