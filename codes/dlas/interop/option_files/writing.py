"""The YAML text of a converted file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlas.config.source import MarkedDict
from dlas.interop.option_files.carry import Target, Uncarried, as_yaml
from dlas.interop.option_files.comments import Comments

_SECTIONS = ("datasets", "networks", "path", "steps", "train", "eval", "logger")


def write_text(target: Target, comments: Comments, uncarried: Sequence[Uncarried], unneeded: Sequence[Uncarried]) -> str:
    """The file's text.

    Args:
        target: the file.
        comments: of the original; those of carried keys stand with these keys.
        uncarried: listed as comments at the end.
        unneeded: likewise.
    """
    lines = list(_mapping(target.tree, 0, comments))
    for title, entries in (
        ("Not carried: these have no counterpart here, and leaving them out may change the result.", uncarried),
        ("Not needed here.", unneeded),
    ):
        if entries:
            lines += ["", f"# {title}", *(f"#   {entry}" for entry in entries)]
    left = comments.left()
    if left:
        lines += ["", "# Comments of lines that were not carried."]
        lines += [f"#   line {line}: {text}" if line else f"#   at the end: {text}" for line, text in left]
    return "\n".join(lines) + "\n"


def _mapping(node: MarkedDict, depth: int, comments: Comments) -> Iterator[str]:
    indent = "  " * depth
    for key, value in node.items():
        if depth == 0 and key in _SECTIONS:
            yield ""
        above, behind = comments.take(node.key_marks[key].line)
        yield from (indent + comment for comment in above)
        behind = f"  {behind}" if behind else ""
        if isinstance(value, MarkedDict) and value:
            yield f"{indent}{key}:{behind}"
            yield from _mapping(value, depth + 1, comments)
        else:
            yield f"{indent}{key}: {as_yaml(value)}{behind}"
