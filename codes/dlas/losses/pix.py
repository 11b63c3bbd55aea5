"""Distance between two tensors, value by value."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.criteria import CHARBONNIER_EPS, distance
from dlas.registry import LOSSES
from dlas.types import PositiveFloat, StateIn

_KNOWN = ("l1", "l2", "charbonnier", "huber", "smooth_l1")
_OWNERS = {"eps": ("charbonnier",), "delta": ("huber", "smooth_l1")}


@LOSSES.register("pix")
class PixelLoss(Loss):
    """Mean distance of `fake` from `real * real_scale + real_offset`, in float32.

    Args:
        criterion: with d the difference: `l1` |d|; `l2` d^2; `charbonnier` sqrt(d^2 + eps) (Charbonnier et al., 1994);
            `huber` d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2) (Huber, 1964); `smooth_l1` huber / delta, whose
            slope far away is 1 whatever delta is (Girshick, 2015).
        real: key of the target.
        fake: key of the prediction, same shape.
        real_scale: factor on the target.
        real_offset: added to the target after the factor.
        eps: of `charbonnier`, in squared units of the images: the loss of two equal images is sqrt(eps). Not given: 1e-6, the
            square of the 1e-3 of LapSRN (Lai et al., 2017); BasicSR has 1e-12.
        delta: of `huber` and `smooth_l1`, in units of the images. Not given: 1.
    """

    def __init__(
        self,
        *,
        criterion: Literal["l1", "l2", "charbonnier", "huber", "smooth_l1"],
        real: StateIn,
        fake: StateIn,
        real_scale: float = 1.0,
        real_offset: float = 0.0,
        eps: PositiveFloat | None = None,
        delta: PositiveFloat | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("eps", eps), ("delta", delta)):
            if value is not None and criterion not in _OWNERS[name]:
                owners = " or ".join(_OWNERS[name])
                raise ConfigurationError(f"pix: '{name}' belongs to criterion: {owners}, but the criterion is {criterion}")
        if criterion not in _KNOWN:
            raise ConfigurationError(f"pix: no criterion is called '{criterion}'; known: {', '.join(_KNOWN)}")
        self.criterion = criterion
        self.real = real
        self.fake = fake
        self.real_scale = real_scale
        self.real_offset = real_offset
        self.eps = CHARBONNIER_EPS if eps is None else eps
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
        if self.criterion == "huber":
            return F.huber_loss(fake.float(), target, delta=self.delta)
        if self.criterion == "smooth_l1":
            return F.smooth_l1_loss(fake.float(), target, beta=self.delta)
        return distance(self.criterion, fake, target, self.eps)
