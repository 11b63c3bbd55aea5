"""Lets what was written for an older torchvision, or for one with a GPU, import it beside torch for CPUs."""

from __future__ import annotations

import importlib
import sys

import torch

_LIBRARIES: list[torch.library.Library] = []


def prepare() -> None:
    """Imports torchvision.

    Where its binary wants CUDA and does not load, its parts in Python need no more of it than the names of two operators. What
    was the module `torchvision.transforms.functional_tensor` is in `functional` now.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))  # names live as long as this does
        for name in ("nms", "qnms"):
            _LIBRARIES[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    functional = importlib.import_module("torchvision.transforms.functional")
    sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)
