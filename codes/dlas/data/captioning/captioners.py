"""Functions that caption images: the one that is here, and those of users."""

from __future__ import annotations

import colorsys
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dlas.data.images.files import ImageArray
from dlas.data.plugin import load_function, plugin_file
from dlas.errors import ConfigurationError, DataError, printable

Captioner = Callable[[Sequence[ImageArray], Sequence[Path]], list[str]]
"""Images (H, W, 3), uint8 or uint16, and their paths relative to the folder; a caption for each."""

DEFAULT_TEMPLATE = "{folder}, {tone}, {colour}, {shape}"
FIELDS = ("folder", "name", "tone", "colour", "shape")
_HUES = ((0.04, "red"), (0.11, "orange"), (0.19, "yellow"), (0.45, "green"), (0.54, "cyan"), (0.72, "blue"), (0.86, "purple"))


def template_captioner(template: str) -> Captioner:
    """Fills in what is measured of an image and what its path says. It does not look at what is shown.

    ``{folder}`` is the image's folder and ``{name}`` its file name, with spaces for signs; ``{tone}`` is dark, bright or
    medium, ``{colour}`` the mean colour, ``{shape}`` wide, tall or square.

    Raises:
        ConfigurationError: the template has another field.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigurationError(f"template '{template}': {error}; a brace that is meant is written twice") from error
    if not fields <= set(FIELDS):
        unknown = ", ".join(sorted(fields - set(FIELDS)))
        raise ConfigurationError(f"template '{template}': unknown field {unknown}; there are: {', '.join(FIELDS)}")

    def caption(images: Sequence[ImageArray], paths: Sequence[Path]) -> list[str]:
        return [template.format(**attributes(image, path)) for image, path in zip(images, paths, strict=True)]

    return caption


def attributes(image: ImageArray, path: Path) -> dict[str, str]:
    """What a template can say of an image."""
    mean = image.reshape(-1, 3).mean(axis=0) / np.iinfo(image.dtype).max
    height, width = image.shape[:2]
    brightness = float(mean.mean())
    return {
        "folder": _words(path.parent.name) or "a picture",
        "name": _words(path.stem),
        "tone": "dark" if brightness < 0.3 else "bright" if brightness > 0.65 else "medium",
        "colour": _colour(*map(float, mean)),
        "shape": "wide" if width > 1.1 * height else "tall" if height > 1.1 * width else "square",
    }


def _words(text: str) -> str:
    return " ".join(text.replace("_", " ").replace("-", " ").replace(".", " ").split())


def _colour(red: float, green: float, blue: float) -> str:
    hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
    if saturation < 0.12:
        return "grey"
    return next((name for end, name in _HUES if hue < end), "pink" if hue < 0.96 else "red")


def plugin_captioner(reference: str) -> Captioner:
    """A user's function `caption(images) -> list[str]`.

    Args:
        reference: a Python file; `file.py:function` for a function of another name.

    Raises:
        ConfigurationError: there is no such file or function, or it cannot be imported.
    """
    function = load_function(
        reference, kind="captioner", name="caption", gives="(images)' that gives a list of texts", or_else="'template'"
    )
    file, name = plugin_file(reference)

    def caption(images: Sequence[ImageArray], paths: Sequence[Path]) -> list[str]:
        found = function(images)
        if not isinstance(found, list) or len(found) != len(images) or not all(isinstance(e, str) and e.strip() for e in found):
            raise DataError(
                f"captioner {printable(file)}: '{name or 'caption'}' gave {type(found).__name__} for {len(images)} images; "
                "expected a list of as many texts, none of them empty"
            )
        return found

    return caption
