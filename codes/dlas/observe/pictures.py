"""Pictures made for looking at: comparison sheets and grids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def comparison_sheet(pictures: list[Tensor], size: int = 256, gap: int = 4) -> Tensor:
    """The middle of pictures side by side, cut so that single pixels can be seen; smaller pictures are enlarged pixel by pixel.

    Args:
        pictures: the same view in different resolutions, each (3, h, w) or (1, h, w) in [0, 1]; the last one sets the scale.
        size: height and width of the part that is shown, in pixels of the last one.
        gap: white pixels between them.

    Returns:
        (3, H, W) in [0, 1].
    """
    height, width = (min(size, side) for side in pictures[-1].shape[-2:])
    share = (height / pictures[-1].shape[-2], width / pictures[-1].shape[-1])
    columns = []
    for picture in pictures:
        part = _middle(picture.detach().float().cpu().clamp(0, 1), share)
        if part.shape[-2:] != (height, width):
            part = F.interpolate(part[None], size=(height, width), mode="nearest")[0]
        columns += [part.expand(3, -1, -1), torch.ones(3, height, gap)]
    return torch.cat(columns[:-1], dim=-1)


def _middle(picture: Tensor, share: tuple[float, float]) -> Tensor:
    sides = picture.shape[-2:]
    extent = [max(1, round(side * part)) for side, part in zip(sides, share, strict=True)]
    top, left = ((side - length) // 2 for side, length in zip(sides, extent, strict=True))
    return picture[:, top : top + extent[0], left : left + extent[1]]


def grid(batch: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """A batch of images (B, C, h, w) in [0, 1] as one picture (3, H, W).

    Of more than three channels the first three are shown, of fewer than three the first one, in grey.
    """
    images = batch.detach().float().cpu().clamp(0, 1)
    images = images[:, :1].expand(-1, 3, -1, -1) if images.shape[1] < 3 else images[:, :3]
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
