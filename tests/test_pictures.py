"""Pictures for looking at."""

from __future__ import annotations

import torch

from dlas.observe.pictures import comparison_sheet, grid


def ramp(height: int, width: int) -> torch.Tensor:
    rows = torch.linspace(0, 1, height).view(1, -1, 1).expand(3, height, width)
    return rows.contiguous()


def test_a_sheet_shows_the_same_view_of_every_picture():
    sheet = comparison_sheet([ramp(32, 48), ramp(128, 192)], size=64, gap=2)
    assert sheet.shape == (3, 64, 64 + 2 + 64)
    small, large = sheet[:, :, :64], sheet[:, :, -64:]
    assert (small - large).abs().max() < 0.03  # a low-resolution pixel covers 4 rows of a ramp over 128
    assert sheet[:, :, 64:66].min() == 1


def test_a_sheet_of_pictures_smaller_than_its_size_shows_them_whole():
    assert comparison_sheet([ramp(8, 6), ramp(16, 12)]).shape == (3, 16, 12 + 4 + 12)


def test_a_grid_holds_every_image_in_order():
    batch = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 3, 4) / 10
    sheet = grid(batch, columns=3, gap=1)
    assert sheet.shape == (3, 3 + 1 + 3, 4 * 3 + 2)
    assert [float(sheet[0, row * 4, column * 5]) for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))] == [
        float(value) for value in torch.arange(5.0) / 10
    ]
    assert sheet[:, 4:, 10:].min() == 1  # the free place
