"""Whether an output could have had its input."""

from __future__ import annotations

from torch import Tensor

from dlas.layers.resize import imresize
from dlas.metrics.base import Against, SampleMetric
from dlas.metrics.images import quantize_8bit
from dlas.metrics.psnr import psnr
from dlas.registry import METRICS
from dlas.types import NonNegativeInt


@METRICS.register("lr_psnr")
class LRPSNR(SampleMetric):
    """PSNR in dB between the input and the output made small by MATLAB's bicubic, both in 8 bits; higher is better.

    It needs no true picture. Above about 45 dB an output is consistent with its input.

    Args:
        border: pixels of the small picture left out at each side; 0 as in the paper.

    Source: Lugmayr et al., "SRFlow: Learning the Super-Resolution Space with Normalizing Flow", ECCV 2020, section 5.
    """

    against: Against = "input"

    def __init__(self, *, border: NonNegativeInt = 0) -> None:
        super().__init__()
        self.border = border

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        height, width = target.shape[-2:]
        rows, columns = prediction.shape[-2:]
        if rows * width != columns * height or rows < height:
            raise ValueError(f"lr_psnr: one factor must lead from the {height}x{width} input to the {rows}x{columns} output")
        small = imresize(prediction.double(), size=(height, width))
        return psnr(quantize_8bit(small), quantize_8bit(target.double()), self.border)
