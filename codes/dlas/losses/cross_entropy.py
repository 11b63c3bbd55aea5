"""Cross-entropy of classes: of samples, of steps of a sequence, or of places of a map."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import Fraction, StateIn


@LOSSES.register("crossentropy", "cross_entropy")
class CrossEntropyLoss(Loss):
    """Cross-entropy of logits and labels, in float32, and for `ce` the accuracy beside it in the log.

    Args:
        logits: key of the logits; classes are their last dimension: (B, classes), (B, L, classes), ...
        labels: key of the labels. For `ce` classes, int64, in the shape of the logits without the last dimension; for `bce` and
            `soft_ce` numbers in the shape of the logits.
        subtype: `ce`: one class; `bce`: each class for itself, labels in [0, 1]; `soft_ce`: a distribution, the softmax of the
            labels over the classes.
        rescale: bring labels (and the mask) to the height and width of the logits by the nearest pixel.
        mask: key of a mask, in the shape of `ce`'s labels; places where it is 0 are left out of the mean. (DL-Art-School
            multiplied logits by it, so that such places counted as if every class were equally probable.)
        swap_channels: logits, and labels of `bce` and `soft_ce`, are (B, classes, H, W).
        label_smoothing: `ce`: share of each label that is spread over all classes.

    Raises:
        ConfigurationError: `label_smoothing` without `ce`.
    """

    def __init__(
        self,
        *,
        logits: StateIn,
        labels: StateIn,
        subtype: Literal["ce", "bce", "soft_ce"] = "ce",
        rescale: bool = False,
        mask: StateIn | None = None,
        swap_channels: bool = False,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if label_smoothing and subtype != "ce":
            raise ConfigurationError(f"cross_entropy: label_smoothing belongs to subtype: ce, and it is {subtype}")
        self.logits, self.labels, self.mask = logits, labels, mask
        self.subtype, self.rescale, self.swap, self.smoothing = subtype, rescale, swap_channels, label_smoothing

    def forward(self, state: State, context: Context) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        logits, labels = state[self.logits].float(), state[self.labels]
        hard = self.subtype == "ce"
        mask = None if self.mask is None else state[self.mask]
        if self.rescale:
            size = logits.shape[-2:] if self.swap else logits.shape[-3:-1]
            labels = _resized(labels, size, channels_last=not hard and not self.swap)
            mask = None if mask is None else _resized(mask, size, channels_last=False)
        if self.swap:
            logits = logits.movedim(1, -1)
            labels = labels if hard else labels.movedim(1, -1)
        expected = logits.shape[:-1] if hard else logits.shape
        for key, value, shape in ((self.labels, labels, expected), (self.mask, mask, logits.shape[:-1])):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"cross_entropy ({self.subtype}): '{key}' must have the shape {tuple(shape)} for logits "
                    f"{tuple(logits.shape)}, and has {tuple(value.shape)}; see 'swap_channels' and 'rescale'"
                )
        losses = self._each(logits, labels)
        counted = torch.ones_like(losses) if mask is None else mask.float()
        total = counted.sum().clamp(min=1)
        loss = (losses * counted).sum() / total
        if not hard:
            return loss
        right = (logits.detach().argmax(-1) == labels).float()
        return loss, {"accuracy": (right * counted).sum() / total}

    def _each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every place: the shape of the logits without their last dimension."""
        if self.subtype == "bce":
            return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(-1)
        if self.subtype == "soft_ce":
            return -(labels.float().softmax(-1) * logits.log_softmax(-1)).sum(-1)
        found = F.cross_entropy(
            logits.flatten(0, -2), labels.flatten().long(), reduction="none", label_smoothing=self.smoothing
        )
        return found.view(labels.shape)


def _resized(values: Tensor, size: torch.Size, channels_last: bool) -> Tensor:
    """(B, H, W), (B, C, H, W) or (B, H, W, C) at another height and width, by the nearest pixel."""
    if channels_last:
        return _resized(values.movedim(-1, 1), size, False).movedim(1, -1)
    maps = values[:, None] if values.dim() == 3 else values
    found = F.interpolate(maps.float(), size, mode="nearest").to(values.dtype)
    return found[:, 0] if values.dim() == 3 else found
