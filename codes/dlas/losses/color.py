"""Losses that compare colours and leave detail free, or the other way round."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.layers.color import rgb_to_y, rgb_to_ycbcr
from dlas.layers.resize import imresize
from dlas.losses.base import Loss, State
from dlas.losses.criteria import distance
from dlas.losses.pictures import check_choice, pictures
from dlas.registry import LOSSES
from dlas.types import PositiveFloat, PositiveInt, StateIn

_CRITERIA = ("l1", "l2", "charbonnier")


class _PictureDistance(Loss):
    """Distance between two pictures after both were changed by `view`.

    Attributes:
        name: of the loss, for messages.
        channels: that the pictures must have; None: any.
    """

    name: str
    channels: int | None = None

    def __init__(self, *, real: StateIn, fake: StateIn, criterion: Literal["l1", "l2", "charbonnier"] = "l1") -> None:
        super().__init__()
        check_choice(self.name, "criterion", criterion, _CRITERIA)
        self.real = real
        self.fake = fake
        self.criterion = criterion

    def view(self, image: Tensor) -> Tensor:
        """What is compared, from pictures (B, C, H, W) in float32."""
        raise NotImplementedError

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures(self.name, state, self.real, self.fake, self.channels)
        with torch.autocast(fake.device.type, enabled=False):
            return distance(self.criterion, self.view(fake), self.view(real))


class _AveragedDistance(_PictureDistance):
    """The same, of averages over squares."""

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        criterion: Literal["l1", "l2", "charbonnier"] = "l1",
        scale: PositiveInt = 4,
    ) -> None:
        super().__init__(real=real, fake=fake, criterion=criterion)
        self.scale = scale

    def view(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, self.scale)


@LOSSES.register("luma", "LumaLoss")
class LumaLoss(_PictureDistance):
    """Distance between lumas (BT.601, 16 to 235 over 255). In float32.

    Args:
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
    """

    name = "luma"
    channels = 3

    def view(self, image: Tensor) -> Tensor:
        return rgb_to_y(image)


@LOSSES.register("color", "ColorLoss")
class ColorLoss(_AveragedDistance):
    """Distance between chromas (Cb and Cr of BT.601, 16 to 240 over 255), each averaged over squares. In float32.

    Args:
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        scale: side of the squares in pixels; what is left at the right and lower edges is not compared.
    """

    name = "color"
    channels = 3

    def view(self, image: Tensor) -> Tensor:
        return super().view(rgb_to_ycbcr(image)[:, 1:])


@LOSSES.register("average", "AverageLoss")
class AverageLoss(_AveragedDistance):
    """Distance between averages over squares of pixels. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        scale: side of the squares in pixels; what is left at the right and lower edges is not compared.
    """

    name = "average"


@LOSSES.register("blurred_color")
class BlurredColorLoss(_PictureDistance):
    """Distance between pictures blurred by a Gaussian: their colours and brightness without their texture. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        sigma: of the Gaussian, in pixels; the window reaches 3 sigma to each side, and only places where it lies inside count.

    Source: Ignatov et al., "DSLR-Quality Photos on Mobile Devices with Deep Convolutional Networks", ICCV 2017, eq. 1 (there
    `l2`, sigma 3).
    """

    name = "blurred_color"

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        criterion: Literal["l1", "l2", "charbonnier"] = "l1",
        sigma: PositiveFloat = 3.0,
    ) -> None:
        super().__init__(real=real, fake=fake, criterion=criterion)
        self.sigma = sigma

    def view(self, image: Tensor) -> Tensor:
        reach = max(1, round(3 * self.sigma))
        if min(image.shape[-2:]) <= 2 * reach:
            raise ValueError(
                f"blurred_color: sigma {self.sigma} has a window of {2 * reach + 1} pixels, which does not fit into "
                f"{image.shape[-2]}x{image.shape[-1]}; use a smaller sigma or larger pictures"
            )
        places = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
        weights = torch.exp(-0.5 * (places / self.sigma) ** 2)
        kernel = (weights / weights.sum()).expand(image.shape[1], 1, 1, -1)
        return F.conv2d(F.conv2d(image, kernel, groups=image.shape[1]), kernel.mT, groups=image.shape[1])


@LOSSES.register("downscaled", "consistency")
class DownscaledLoss(Loss):
    """Distance between the generated pictures, made small as MATLAB's bicubic does it, and small true ones. In float32.

    With `real` the network's input it asks for what LR-PSNR measures: that the result is one that could have had this input.

    Args:
        real: key of the small pictures, (B, C, h, w): the input, for instance.
        fake: key of the generated pictures, (B, C, H, W), H / h = W / w.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).

    Source: as a constraint: Lugmayr et al., "SRFlow", ECCV 2020, section 4 (LR-PSNR).
    """

    def __init__(self, *, real: StateIn, fake: StateIn, criterion: Literal["l1", "l2", "charbonnier"] = "l1") -> None:
        super().__init__()
        check_choice("downscaled", "criterion", criterion, _CRITERIA)
        self.real = real
        self.fake = fake
        self.criterion = criterion

    def forward(self, state: State, context: Context) -> Tensor:
        small, fake = state[self.real].float(), state[self.fake].float()
        height, width = small.shape[-2:]
        if small.shape[:2] != fake.shape[:2] or fake.shape[-2] * width != fake.shape[-1] * height or fake.shape[-1] < width:
            raise ValueError(
                f"downscaled: '{self.fake}' {tuple(fake.shape)} cannot be made as small as '{self.real}' {tuple(small.shape)}: "
                "one factor must fit both sides"
            )
        with torch.autocast(fake.device.type, enabled=False):
            return distance(self.criterion, imresize(fake, size=(height, width)), small)
