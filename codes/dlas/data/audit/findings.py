"""The kinds of fault that an audit finds, and how each is mended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        severity: errors end or spoil a training run; warnings may be meant; notes are good to know.
        title: what is the case, for a number of files.
        fix: what to do.
    """

    severity: Severity
    title: str
    fix: str


KINDS = {
    "unusable": Kind("error", "the data set cannot be used", "correct its options, or put the files where they are looked for"),
    "unreadable": Kind(
        "error",
        "cannot be read",
        "fetch them again or remove them (`on_bad_file: skip` leaves them out in training)",
    ),
    "alone": Kind(
        "error", "without a partner", "add or remove files, or correct filename_template; training stops at the start"
    ),
    "size": Kind("error", "low-quality image of the wrong size", "correct `scale`, or make the low-quality images again"),
    "too_small": Kind(
        "error",
        "smaller than the crop",
        "lower target_size or remove them (`on_bad_file: skip` leaves them out in training)",
    ),
    "unlike": Kind("error", "low-quality image shows something else", "pair each image with its own low-quality version"),
    "shifted": Kind(
        "error",
        "low-quality image is shifted against the high-quality one",
        "align them, or make them again by a resize that keeps the picture in place (antialiased bicubic)",
    ),
    "leak": Kind("error", "also in the training set", "remove them from the training set: figures on them mean nothing"),
    "near_leak": Kind(
        "warning", "nearly the same as an image of the training set", "look at both; if they show the same, remove one"
    ),
    "slightly_shifted": Kind(
        "warning",
        "low-quality image is slightly shifted",
        "see how the low-quality images were made; a resize that keeps the picture in place gives shifts below 0.1",
    ),
    "duplicate": Kind("warning", "the same pixels as another image of the set", "remove all but one, or they count twice"),
    "near_duplicate": Kind(
        "warning", "nearly the same as another image of the set", "look at both; if they show the same, remove one"
    ),
    "listed_twice": Kind(
        "warning", "listed more than once", "name each folder once; for a larger share take `weights` where there are"
    ),
    "blank": Kind("warning", "of one colour, or almost", "remove them: there is nothing to learn or to measure"),
    "transparent": Kind(
        "warning", "with transparent pixels", "alpha is dropped; if what it hides should not be seen, flatten them"
    ),
    "profile": Kind("warning", "with a colour profile other than sRGB", "profiles are not applied; convert the pixels to sRGB"),
    "enlarged": Kind("warning", "smaller than target_size, so enlarged", "lower target_size or remove them"),
    "animated": Kind(
        "warning", "of more than one picture", "only the first is read; export the others as files if they are meant"
    ),
    "depth": Kind(
        "warning", "partners of different bit depth", "use the same bit depth for both, or the error never goes below rounding"
    ),
    "not_audited": Kind("note", "not audited", "this data set does not list its files (Dataset.inventory)"),
    "grey": Kind("note", "stored as grey", "the value is repeated in all three channels"),
    "converted": Kind(
        "note", "in a colour space that is converted to RGB", "colours are those of Pillow's formulas, without a profile"
    ),
    "turned": Kind(
        "note", "turned as their EXIF orientation says", "their sides may be swapped in programs that do not look at it"
    ),
    "ending": Kind("note", "with the ending of another format", "they are read by content; other programs may refuse them"),
}
"""In the order in which they are told."""


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        kind: a key of `KINDS`.
        dataset: key of the data set in the YAML file.
        files: the file, and those it is at odds with.
        detail: what was found and what was expected.
    """

    kind: str
    dataset: str
    files: tuple[Path, ...]
    detail: str

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return KINDS[self.kind].severity
