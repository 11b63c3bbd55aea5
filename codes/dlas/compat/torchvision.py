"""Lets torchvision be imported beside a PyTorch that has no CUDA.

The torchvision wheels on PyPI are made for CUDA. Beside a CPU build of PyTorch their compiled library does not load, and the
import fails at the first operator that it would have defined. With the signatures of these operators declared, everything in
torchvision that is written in Python works: networks, transforms, utils. The operators themselves (non-maximum suppression,
deformable convolution, reading of images) do not.
"""

from __future__ import annotations

import torch

_SIGNATURES = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_declared: list[torch.library.Library] = []


def prepare_torchvision() -> None:
    """Call before the first import of torchvision, or of a package that imports it. Does nothing where PyTorch has CUDA."""
    if torch.version.cuda is not None or torch.version.hip is not None or _declared:
        return
    if hasattr(torch.ops.torchvision, "nms"):  # loaded already, or declared by another library
        return
    library = torch.library.Library("torchvision", "DEF")
    for name, signature in _SIGNATURES.items():
        library.define(name + signature)
    _declared.append(library)  # what it declares goes when it does
