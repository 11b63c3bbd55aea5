"""Random views of pictures: cut out, mirrored, with other colours, blurred. All of it linear in the pixels' values.

What is drawn is a function of numbers in [0, 1), `DRAWS` for each picture, so that the caller decides where randomness comes
from: a data set's own, or the device's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.host import constant, sent

DRAWS = 12
"""Random numbers that a view takes."""

_JITTER, _GREY, _BLUR = 5, 10, 11
"""Which of the numbers decide whether these are done; those behind the first say how much."""

_LUMA = (0.299, 0.587, 0.114)  # BT.601
_TO_YIQ = torch.tensor([_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)
_BLUR_SIDE = 3


def draw(*shape: int, device: torch.device, training: bool) -> Tensor:
    """Random numbers in [0, 1) from the device's generator; the same ones at every call where nothing is trained."""
    generator = None if training else torch.Generator(device).manual_seed(0)
    return torch.rand(shape, generator=generator, device=device)


@dataclass(frozen=True)
class ViewRules:
    """How views differ from their pictures.

    Args:
        least_area: share of the picture's area that a cut has at least; cuts have 3/4 to 4/3 of the picture's aspect.
        flip: probability of mirroring.
        jitter: probability of other brightness, contrast, saturation and hue.
        brightness: the first three change by up to this, relatively.
        contrast: see `brightness`.
        saturation: see `brightness`.
        hue: hue changes by up to this, in turns.
        grey: probability of grey.
        blur: probability of blur.
        blur_sigma: of the Gaussian of 3 x 3 pixels.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv:2006.07733), appendix B; numbers of DL-Art-School.
    """

    least_area: float = 0.08
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.1
    blur_sigma: float = 1.5

    def for_one(self, draws: Tensor) -> ViewRules:
        """The same for one picture's numbers (DRAWS,) on the CPU, without what is not done to it: for speed."""
        chosen = {"jitter": _JITTER, "grey": _GREY, "blur": _BLUR}
        return replace(self, **{name: 0.0 for name, place in chosen.items() if draws[place] >= getattr(self, name)})


GEOMETRY_ALONE = ViewRules(jitter=0.0, grey=0.0, blur=0.0)
"""Cut out and mirrored, no more."""


class Cuts(NamedTuple):
    """Where views lie in their pictures, as shares of their sides; all (B,).

    Args:
        left: of the cut.
        top: of the cut.
        width: of the cut.
        height: of the cut.
        flipped: 1 where the view is mirrored left to right, else 0.
    """

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    flipped: Tensor

    def to_view(self, points: Tensor) -> Tensor:
        """Where points of the pictures are in the views.

        Args:
            points: (B, P, 2), x and y as shares of the picture's sides.

        Returns:
            The same of the view's; outside [0, 1] for what it does not show.
        """
        x = (points[..., 0] - self.left[:, None]) / self.width[:, None]
        y = (points[..., 1] - self.top[:, None]) / self.height[:, None]
        mirrored = self.flipped[:, None]
        return torch.stack((x + mirrored * (1 - 2 * x), y), dim=-1)


def draw_cuts(draws: Tensor, rules: ViewRules) -> Cuts:
    """Cuts of (B, DRAWS) random numbers in [0, 1)."""
    area = rules.least_area + (1 - rules.least_area) * draws[:, 0]
    root = ((draws[:, 1] * 2 - 1) * (math.log(4 / 3) / 2)).exp()  # of the aspect, even in its logarithm
    width, height = (area.sqrt() * root).clamp(max=1), (area.sqrt() / root).clamp(max=1)
    flipped = (draws[:, 4] < rules.flip).to(draws.dtype)
    return Cuts(draws[:, 2] * (1 - width), draws[:, 3] * (1 - height), width, height, flipped)


def make_views(pictures: Tensor, draws: Tensor, rules: ViewRules, side: int | None = None) -> tuple[Tensor, Cuts]:
    """One view of each picture.

    Values that were in [0, 1] may leave it. Sizes are changed bilinearly, so pictures should not be much larger than views.

    Args:
        pictures: (B, 3, H, W), in any range in which 0 is a colour without light.
        draws: (B, DRAWS), in [0, 1).
        rules: how views differ.
        side: height and width of a view in pixels; None: those of the picture.

    Returns:
        The views (B, 3, side, side), and where they lie.
    """
    cuts = draw_cuts(draws, rules)
    size = tuple(pictures.shape[-2:]) if side is None else (side, side)
    views = _cut(pictures, cuts, size)
    changes: tuple[tuple[float, int, Callable[[Tensor], Tensor]], ...] = (
        (rules.jitter, _JITTER, lambda x: _jittered(x, draws[:, _JITTER + 1 : _GREY], rules)),
        (rules.grey, _GREY, lambda x: _luma(x).expand_as(x)),
        (rules.blur, _BLUR, lambda x: _blurred(x, rules.blur_sigma)),
    )
    for probability, place, change in changes:
        if probability:
            views = torch.where((draws[:, place] < probability)[:, None, None, None], change(views), views)
    return views, cuts


def _cut(pictures: Tensor, cuts: Cuts, size: tuple[int, ...]) -> Tensor:
    mirror = 1 - 2 * cuts.flipped
    zero = torch.zeros_like(cuts.left)
    across = torch.stack((mirror * cuts.width, zero, 2 * cuts.left + cuts.width - 1), dim=-1)
    down = torch.stack((zero, cuts.height, 2 * cuts.top + cuts.height - 1), dim=-1)
    grid = F.affine_grid(torch.stack((across, down), dim=1), [len(pictures), 3, *size], align_corners=False)
    return F.grid_sample(pictures, grid.to(pictures.dtype), padding_mode="border", align_corners=False)


def _jittered(views: Tensor, draws: Tensor, rules: ViewRules) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order."""
    spans = constant((rules.brightness, rules.contrast, rules.saturation), draws.device, draws.dtype)
    brightness, contrast, saturation = (1 + (2 * draws[:, :3] - 1) * spans).to(views.dtype)[..., None, None, None].unbind(1)
    views = views * brightness
    mean = _luma(views).mean((-2, -1), keepdim=True)
    views = mean + contrast * (views - mean)
    luma = _luma(views)
    return _turned(luma + saturation * (views - luma), (2 * draws[:, 3] - 1) * rules.hue)


def _turned(views: Tensor, turns: Tensor) -> Tensor:
    """Colours turned in the plane of equal luma (I and Q of NTSC), by shares of a whole turn (B,)."""
    forth, back = sent(_TO_YIQ, turns.device, turns.dtype), sent(_FROM_YIQ, turns.device, turns.dtype)
    angle = 2 * math.pi * turns
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    rows = ((one, zero, zero), (zero, angle.cos(), -angle.sin()), (zero, angle.sin(), angle.cos()))
    rotation = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.einsum("bij,bjhw->bihw", (back @ rotation @ forth).to(views.dtype), views)


def _luma(views: Tensor) -> Tensor:
    weights = constant(_LUMA, views.device, views.dtype)[:, None, None]
    return (views * weights).sum(1, keepdim=True)


def _blurred(views: Tensor, sigma: float) -> Tensor:
    places = torch.arange(_BLUR_SIDE, dtype=torch.float32, device=views.device) - _BLUR_SIDE // 2
    line = torch.softmax(-places.square() / (2 * sigma**2), dim=0)
    kernel = (line[:, None] * line).to(views.dtype).expand(3, 1, -1, -1)
    padded = F.pad(views, [_BLUR_SIDE // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=3)
