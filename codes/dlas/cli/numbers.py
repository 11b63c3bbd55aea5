"""Numbers as arguments of commands."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number of 0 or more."""
    return _at_least(int(text), 0)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    return _at_least(int(text), 1)


def not_negative(text: str) -> float:
    """A finite number of 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _at_least(value: int, least: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"expected {least} or more, got {value}")
    return value
