"""Pictures made for looking at: comparison sheets and grids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def comparison_sheet(pictures: list[Tensor], gap: int = 4) -> Tensor:
    """Pictures side by side with white gaps; smaller ones are enlarged pixel by pixel to the last one's height.

    Args:
        pictures: each (3, h, w) in [0, 1]; the last one sets the height.
        gap: pixels between them.

    Returns:
        (3, H, W) in [0, 1].
    """
    height = pictures[-1].shape[-2]
    columns = []
    for picture in pictures:
        picture = picture.detach().float().cpu().clamp(0, 1)
        if picture.shape[-2] != height:
            width = round(picture.shape[-1] * height / picture.shape[-2])
            picture = F.interpolate(picture[None], size=(height, width), mode="nearest")[0]
        columns += [picture, torch.ones(3, height, gap)]
    return torch.cat(columns[:-1], dim=-1)


def grid(batch: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """A batch of images (B, C, h, w) in [0, 1] as one picture (3, H, W).

    One channel is shown as grey; of more than three the first three are shown.
    """
    images = batch.detach().float().cpu().clamp(0, 1)
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
