"""Reading Google-style docstrings: the summary, the meaning of each argument, the source, an example."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Sources?|Examples?|Note|Notes):\s*(.*)$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)(?: ?\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True)
class Docstring:
    """The parts of a docstring.

    Args:
        summary: its first paragraph, on one line.
        body: what follows, up to the first section; line breaks kept.
        arguments: meaning of each argument, on one line, by the name it has in YAML (`in_` is `in`).
        source: the paper.
        example: YAML, line breaks kept; empty where the docstring has none.
    """

    summary: str
    body: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    source: str = ""
    example: str = ""


def parse_docstring(text: str) -> Docstring:
    """The parts of a docstring.

    A section begins with its name and a colon at the left margin and holds the indented lines below. A long argument goes on in
    lines that are indented further than its name. Several sections of one name are joined.
    """
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in inspect.cleandoc(text).splitlines():
        head = _SECTION.match(line)
        if head:
            current = head[1].rstrip("s") if head[1] not in ("Args", "Raises") else head[1]
            sections.setdefault(current, [])
            if head[2]:
                sections[current].append(head[2])
        elif current and line and not line.startswith(" ") and sections[current][-1:] != [""]:
            sections[current].append(line)  # a section written as a paragraph goes on at the margin
        elif current and line and not line.startswith(" "):
            current = ""
            sections[""].append(line)
        else:
            sections[current].append(line)
    summary, _, body = "\n".join(sections[""]).strip().partition("\n\n")
    return Docstring(
        _joined(summary),
        re.sub(r"\n{3,}", "\n\n", body).strip(),
        _arguments(sections.get("Args", [])),
        _joined("\n".join(sections.get("Source", []))),
        inspect.cleandoc("\n" + "\n".join(sections.get("Example", []))).strip(),
    )


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    margin: int | None = None
    name = ""
    for line in lines:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        head = _ARGUMENT.match(line.strip()) if indent <= margin else None
        if head:
            name = head[1].rstrip("_")
            found[name] = head[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())
