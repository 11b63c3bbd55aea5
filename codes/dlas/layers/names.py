"""Parts of a network meant by patterns of their names."""

from __future__ import annotations

import re

_PIECES = {"**": ".*", "*": "[^.]*", "?": "[^.]"}


def expression(pattern: str) -> re.Pattern[str]:
    """What `fullmatch`es the names that a pattern means.

    Args:
        pattern: a name, in which ``*`` stands for a part between dots, ``**`` for any number of parts, ``?`` for a letter.
    """
    return re.compile("".join(_PIECES.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*?|\?)", pattern)))
