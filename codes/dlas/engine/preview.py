"""The first samples of training as the networks will see them, on one sheet to look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dlas.config import Config
from dlas.context import Context
from dlas.data.loader import build_loader
from dlas.data.sampler import SampleOrder
from dlas.engine.build import build_dataset
from dlas.engine.options import with_scale
from dlas.errors import ConfigurationError
from dlas.injectors.degrade import DegradeInjector
from dlas.registry import INJECTORS

_GAP = 6
_TEXT_SIZE = 13
_MARGIN = 12
_WIDEST = 1600
_NARROWEST = 300  # room for a caption


@dataclass
class Preview:
    """What was drawn.

    Args:
        lq: low-quality images, (B, 3, h, w).
        hq: the high-quality ones, (B, 3, H, W).
        captions: for each sample: its place in the order, its file, and what was done to it where that is known.
        notes: what the pictures do not show.
    """

    lq: Tensor
    hq: Tensor
    captions: list[str]
    notes: list[str] = field(default_factory=list)


def draw_samples(config: Config, count: int) -> Preview:
    """The first `count` samples of the run's order, with its seed; `degrade` injectors of the first step are carried out.

    Raises:
        ConfigurationError: there is no data set to train on, or its samples are no pairs of images.
        DataError: a file is missing or unusable.
    """
    if "train" not in config.datasets:
        raise ConfigurationError("the file has no datasets.train, so there is nothing to draw")
    dataset = build_dataset(config, "train")
    order = SampleOrder(len(dataset), config.seed)
    with build_loader(dataset, batch_size=count, order=order, n_workers=0, pin_memory=False) as loader:
        state = next(loader)
    context = Context({}, seed=config.seed, positions=state["positions"])
    words = list(state.get("recipe", [""] * count))
    low, high, notes = "lq", "hq", []
    step, section = next(iter(config.steps.items()), ("", None))
    for name, entry in section.injectors.items() if section is not None else ():
        if INJECTORS.get(entry.type) is not DegradeInjector:
            break  # from here on networks, or what they need, take over
        injector: DegradeInjector = INJECTORS.create(entry.type, with_scale(entry, config.scale))
        if injector.source not in state:
            notes.append(f"the injector {name} of step {step} is not shown: '{injector.source}' is not in a sample")
            break
        recipes = injector.recipes(state[injector.source], context)[1]
        words = [" | ".join(map(str, recipe)) for recipe in recipes]
        low, high = injector.out, injector.out_hq or injector.source
        state.update(injector(state, context))
    missing = [key for key in (low, high) if not isinstance(state.get(key), Tensor) or state[key].ndim != 4]
    if missing:
        raise ConfigurationError(
            f"datasets.train (mode {config.datasets['train'].mode}) has no pictures {', '.join(missing)}; a sheet needs "
            "pairs of 'lq' and 'hq', or a `degrade` injector first in the first step"
        )
    paths = state.get("path", [""] * count)
    captions = [
        f"{position}: {str(path).rpartition('/')[2]}{f' | {done}' if done else ''}"
        for position, path, done in zip(state["positions"], paths, words, strict=True)
    ]
    return Preview(state[low].float().cpu(), state[high].float().cpu(), captions, notes)


def render(preview: Preview) -> Image.Image:
    """Pairs in a grid: the low-quality image enlarged pixel by pixel, the other beside it, the caption below."""
    height, width = preview.hq.shape[-2:]
    cell = max(2 * width + _GAP, _NARROWEST)
    columns = max(1, min(_WIDEST // (cell + _MARGIN), len(preview.captions)))
    font = ImageFont.load_default(_TEXT_SIZE)
    wrapped = [_wrap(caption, cell, font) for caption in preview.captions]
    line = _TEXT_SIZE + 4
    rows = [slice(start, start + columns) for start in range(0, len(wrapped), columns)]
    depths = [height + max(map(len, wrapped[row])) * line + _MARGIN + 4 for row in rows]
    sheet = Image.new("RGB", (columns * (cell + _MARGIN) + _MARGIN, sum(depths) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, depth in zip(rows, depths, strict=True):
        for column, number in enumerate(range(len(wrapped))[row]):
            left = _MARGIN + column * (cell + _MARGIN)
            sheet.paste(_picture(preview.lq[number]).resize((width, height), Image.Resampling.NEAREST), (left, top))
            sheet.paste(_picture(preview.hq[number]), (left + width + _GAP, top))
            for place, text in enumerate(wrapped[number]):
                pen.text((left, top + height + 4 + place * line), text, fill="black", font=font)
        top += depth
    return sheet


def _wrap(caption: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most `width` pixels, broken between operations."""
    lines: list[str] = []
    for part in caption.split(" | "):
        longer = f"{lines[-1]} | {part}" if lines else part
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _picture(image: Tensor) -> Image.Image:
    values = image[:3].expand(3, -1, -1).clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()
    return Image.fromarray(values.astype(np.uint8))
