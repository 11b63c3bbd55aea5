"""Distance between two tensors, value by value."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import PositiveFloat, StateIn


@LOSSES.register("pix")
class PixelLoss(Loss):
    """Mean distance of `fake` from `real * real_scale + real_offset`, in float32.

    Args:
        criterion: with d the difference: `l1` |d|; `l2` d^2; `charbonnier` sqrt(d^2 + eps) (Charbonnier et al., 1994);
            `huber` d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2) (Huber, 1964).
        real: key of the target.
        fake: key of the prediction, same shape.
        real_scale: factor on the target.
        real_offset: added to the target after the factor.
        eps: of `charbonnier`, in squared units of the images: the loss of two equal images is sqrt(eps). Not given: 1e-6.
        delta: of `huber`, in units of the images. Not given: 1.
    """

    def __init__(
        self,
        *,
        criterion: Literal["l1", "l2", "charbonnier", "huber"],
        real: StateIn,
        fake: StateIn,
        real_scale: float = 1.0,
        real_offset: float = 0.0,
        eps: PositiveFloat | None = None,
        delta: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        for name, value, owner in (("eps", eps, "charbonnier"), ("delta", delta, "huber")):
            if value is not None and criterion != owner:
                raise ConfigurationError(f"pix: '{name}' belongs to criterion: {owner}, but the criterion is {criterion}")
        if criterion not in ("l1", "l2", "charbonnier", "huber"):
            raise ConfigurationError(f"pix: no criterion is called '{criterion}'; known: l1, l2, charbonnier, huber")
        self.criterion = criterion
        self.real = real
        self.fake = fake
        self.real_scale = real_scale
        self.real_offset = real_offset
        self.eps = 1e-6 if eps is None else eps
        self.delta = 1.0 if delta is None else delta

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = state[self.real], state[self.fake]
        if real.shape != fake.shape:
            raise ValueError(
                f"pix: real '{self.real}' {tuple(real.shape)} and fake '{self.fake}' {tuple(fake.shape)} must have the same "
                "shape; check the scale of the network, and that both keys are of the same crop"
            )
        target = real.float()
        if self.real_scale != 1.0 or self.real_offset != 0.0:
            target = target * self.real_scale + self.real_offset
        prediction = fake.float()
        if self.criterion == "l1":
            return F.l1_loss(prediction, target)
        if self.criterion == "l2":
            return F.mse_loss(prediction, target)
        if self.criterion == "huber":
            return F.huber_loss(prediction, target, delta=self.delta)
        return ((prediction - target).square() + self.eps).sqrt().mean()
