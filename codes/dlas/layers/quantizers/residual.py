"""Several codes a vector, each for what those before it leave open."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlas.errors import ConfigurationError
from dlas.layers.quantizers.codebook import CodebookQuantizer
from dlas.layers.vector_quantizer import Quantized, Quantizer
from dlas.registry import QUANTIZERS
from dlas.types import PositiveInt, QuantizerOptions


@QUANTIZERS.register("residual")
class ResidualQuantizer(Quantizer):
    """A vector is the sum of one code from each of several codebooks.

    Which codes has one more axis behind the batch's, (B, stages, ...). The loss is the stages' sum; figures are their means.

    Args:
        stages: codes a vector.
        stage: options of `vq` for each of them, for instance `{threshold_ema_dead_code: 0.1}`; not `codebook_dim`.

    Raises:
        ConfigurationError: `stage` is something else.

    Source: Zeghidour et al. 2021, "SoundStream" (arXiv:2107.03312), section III-C; Lee et al. 2022, "Autoregressive Image
    Generation using Residual Quantization" (arXiv:2203.01941), section 3.1.
    """

    def __init__(self, codes: int, channels: int, /, *, stages: PositiveInt = 4, stage: QuantizerOptions | None = None) -> None:
        super().__init__()
        options = dict(stage or {})
        if options.pop("type", "vq") != "vq" or options.get("codebook_dim") is not None:
            raise ConfigurationError(f"residual: 'stage' must be {{type: vq, ...}} without codebook_dim, got {stage}")
        self.stages = nn.ModuleList(QUANTIZERS.create("vq", options, codes, channels) for _ in range(stages))

    def forward(self, z: Tensor) -> Quantized:
        """(B, channels, ...) -> codes."""
        rest, found = z, []
        for stage in self.stages:
            found.append(stage(rest))
            rest = rest - found[-1].vectors.detach()
        total = torch.stack([each.vectors.detach() for each in found]).sum(0)
        return Quantized(
            z + (total - z).detach(),
            torch.stack([each.loss for each in found]).sum(),
            torch.stack([each.indices for each in found], dim=1),
            torch.stack([each.perplexity for each in found]).mean(),
            torch.stack([each.usage for each in found]).mean(),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors of codes: (B, stages, ...) -> (B, channels, ...)."""
        quantizers: Sequence[CodebookQuantizer] = list(self.stages)  # type: ignore[arg-type]
        return torch.stack([each.lookup(own) for each, own in zip(quantizers, indices.unbind(1), strict=True)]).sum(0)
