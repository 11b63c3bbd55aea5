"""Deliberate damage to images, for training networks that undo it.

Each corruption has a severity r in [0, 1]: 0 is nothing (or the least), 1 the most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from dlas.errors import ConfigurationError
from dlas.registry import nearest

FloatImage = NDArray[np.float32]
"""(H, W, 3), RGB in [0, 1]."""

Corruption = Callable[[FloatImage, float, np.random.Generator, float], FloatImage]
"""(image, severity, randomness, blur scale) -> image."""


class Corruptor:
    """Applies random corruptions, then fixed ones, in the order of their names.

    Args:
        fixed: names of corruptions that every image gets.
        random: names to draw from.
        count: how many are drawn for a sample, with replacement.
        blur_scale: factor on the width of `gaussian_blur`.
        cosine_bias: severity is 1 - cos(u pi / 2), mostly mild, in place of u, with u uniform in [0, 1).

    Raises:
        ConfigurationError: a name is not known, or there is none to draw from.
    """

    def __init__(self, fixed: Sequence[str], random: Sequence[str], count: int, blur_scale: float, cosine_bias: bool) -> None:
        for name in (*fixed, *random):
            if name not in CORRUPTIONS:
                close = nearest(name, CORRUPTIONS)
                hint = f"did you mean '{close}'?" if close else f"known: {', '.join(CORRUPTIONS)}"
                raise ConfigurationError(f"no corruption is called '{name}'; {hint}")
        if count and not random:
            raise ConfigurationError(f"num_corrupts_per_image is {count}, but random_corruptions names none to draw from")
        self.fixed = list(fixed)
        self.random = list(random)
        self.count = count
        self.blur_scale = blur_scale
        self.cosine_bias = cosine_bias

    def plan(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Names and severities for one sample; the fixed ones last."""
        drawn = [self.random[i] for i in rng.integers(len(self.random), size=self.count)] if self.count else []
        return [(name, self._severity(rng)) for name in (*drawn, *self.fixed)]

    def entropy(self, plan: Sequence[tuple[str, float]]) -> list[float]:
        """The severities of the fixed corruptions of a plan: what a network is told of the damage."""
        return [severity for _, severity in plan[len(plan) - len(self.fixed) :]]

    def apply(self, image: FloatImage, plan: Sequence[tuple[str, float]], rng: np.random.Generator) -> FloatImage:
        """A damaged copy of an image, of the same size, clipped to [0, 1]."""
        height, width = image.shape[:2]
        for name, severity in plan:
            image = CORRUPTIONS[name](image, severity, rng, self.blur_scale)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        return np.clip(image, 0, 1).astype(np.float32)

    def _severity(self, rng: np.random.Generator) -> float:
        uniform = float(rng.random())
        return 1 - math.cos(uniform * math.pi / 2) if self.cosine_bias else uniform


def _nothing(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return image


def _quantise(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    divisor = 2 ** (int(severity * 10 / 3) + 2)
    return (np.floor(image * 255 / divisor) * divisor / 255).astype(np.float32)


def _blur(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    sigma = 1.5 * severity * blur_scale
    return cv2.GaussianBlur(image, (0, 0), sigma).astype(np.float32) if sigma > 0.01 else image


def _resample(image: FloatImage, factor: int, rng: np.random.Generator) -> FloatImage:
    """Fewer pixels, by one of four interpolations; `Corruptor.apply` brings them back at its end."""
    methods = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC)
    size = (max(image.shape[1] // factor, 1), max(image.shape[0] // factor, 1))
    return cv2.resize(image, size, interpolation=methods[int(rng.integers(len(methods)))]).astype(np.float32)


def _resampling(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    factor = 1 if severity < 0.3 else 2 if severity < 0.7 else 4
    return image if factor == 1 else _resample(image, factor, rng)


def _resampling_by_four(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return _resample(image, 4, rng)


def _noise(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return image + rng.random(image.shape, dtype=np.float32) * np.float32(6 * severity / 255)


def _noise_of_five(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return image + rng.random(image.shape, dtype=np.float32) * np.float32(5 / 255)


def _saturation(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return np.clip(image + np.float32(0.3 * severity), 0, 1)


def _greyscale(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    return np.repeat(image.mean(axis=2, keepdims=True, dtype=np.float32), 3, axis=2)


def _jitter(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Brightness, contrast, saturation and hue, each by up to a fifth."""
    brightness, contrast, saturation = rng.uniform(1 - 0.2 * severity, 1 + 0.2 * severity, 3).tolist()
    hue = float(rng.uniform(-0.2, 0.2)) * severity
    image = np.clip(image * np.float32(brightness), 0, 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    image = np.clip((image - grey.mean()) * np.float32(contrast) + grey.mean(), 0, 1).astype(np.float32)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[:, :, 0] = (hsv[:, :, 0] + 360 * hue) % 360
    hsv[:, :, 1] = np.clip(hsv[:, :, 1] * saturation, 0, 1)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)


def _motion_blur(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Along a line of up to 15 pixels (times the blur scale) in any direction."""
    length = 1 + 2 * round(7 * severity * blur_scale)
    angle = float(rng.uniform(0, 180))
    if length == 1:
        return image
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length // 2, length // 2), angle, 1.0)
    kernel = np.asarray(cv2.warpAffine(line, turn, (length, length), flags=cv2.INTER_LINEAR))
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101).astype(np.float32)


def _block_noise(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Up to a tenth of the blocks of 8 x 8 pixels lose their detail, as where a video's data are lost."""
    image = image.copy()
    rows, columns = -(-image.shape[0] // 8), -(-image.shape[1] // 8)
    for row, column in np.argwhere(rng.random((rows, columns)) < 0.1 * severity):
        block = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        block[:] = block.mean(axis=(0, 1))
    return image


def _color_shift(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Each channel brighter or darker by up to a tenth."""
    return np.clip(image + (rng.uniform(-0.1, 0.1, 3) * severity).astype(np.float32), 0, 1)


def _interlacing(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Every other row up to four pixels to the left or right, as in interlaced video of something that moves."""
    shift = round(4 * severity) * (1 if rng.random() < 0.5 else -1)
    image = image.copy()
    image[1::2] = np.roll(image[1::2], shift, axis=1)
    return image


def _aberration(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
    """Red larger and blue smaller by up to 1 %, about the middle."""
    height, width = image.shape[:2]
    channels = []
    for channel, factor in zip(cv2.split(image), (1 + 0.01 * severity, 1.0, 1 - 0.01 * severity), strict=True):
        matrix = np.array(
            [[factor, 0, (1 - factor) * (width - 1) / 2], [0, factor, (1 - factor) * (height - 1) / 2]], np.float32
        )
        channels.append(cv2.warpAffine(channel, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101))
    return cv2.merge(channels).astype(np.float32)


def _jpeg(least: int, span: int) -> Corruption:
    """JPEG compression with a quality from `least + span` (severity 0) down to `least`."""

    def corrupt(image: FloatImage, severity: float, rng: np.random.Generator, blur_scale: float) -> FloatImage:
        quality = int((1 - severity) * span) + least
        pixels = np.clip(image[:, :, ::-1] * 255, 0, 255).round().astype(np.uint8)
        done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        return (decoded[:, :, ::-1].astype(np.float32) / 255).astype(np.float32)

    return corrupt


CORRUPTIONS: dict[str, Corruption] = {
    "none": _nothing,
    "color_quantization": _quantise,
    "color_jitter": _jitter,
    "color_shift": _color_shift,
    "gaussian_blur": _blur,
    "motion_blur": _motion_blur,
    "block_noise": _block_noise,
    "interlacing": _interlacing,
    "chromatic_aberration": _aberration,
    "lq_resampling": _resampling,
    "lq_resampling4x": _resampling_by_four,
    "noise": _noise,
    "noise-5": _noise_of_five,
    "jpeg": _jpeg(10, 20),
    "jpeg-low": _jpeg(15, 10),
    "jpeg-medium": _jpeg(23, 25),
    "jpeg-broad": _jpeg(15, 60),
    "jpeg-normal": _jpeg(47, 35),
    "saturation": _saturation,
    "greyscale": _greyscale,
}
"""By name, as DL-Art-School's files call them; motion_blur, block_noise, color_shift, interlacing and chromatic_aberration did
nothing or failed there."""
