"""How good an output is: per-sample image metrics and what accumulates them over a set."""

from dlas.metrics.average import Average
from dlas.metrics.base import Metric, create_metric, higher_is_better
from dlas.metrics.images import quantize_8bit
from dlas.metrics.psnr import psnr
from dlas.metrics.ssim import ms_ssim, ssim

__all__ = ["Average", "Metric", "create_metric", "higher_is_better", "ms_ssim", "psnr", "quantize_8bit", "ssim"]
