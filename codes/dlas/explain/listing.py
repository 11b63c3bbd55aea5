"""What `dlas list` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from dlas.config.schema import Section
from dlas.explain.catalogue import KINDS, Option, documentation, find_section, keys_of, options_of, section_places, source_of
from dlas.explain.examples import example
from dlas.registry import Entry, Registry

SECTIONS_KIND = "sections"
_NARROWEST_MEANING = 24


def list_kind(kind: str, width: int) -> str:
    """One aligned line for each component of a kind (`archs`), or for each section of a file (`sections`)."""
    if kind == SECTIONS_KIND:
        rows = [(p.name, f"{p.path or 'the whole file'}: {section_summary(p.cls)}") for p in section_places().values()]
    else:
        rows = [
            (" / ".join([name, *entry.aliases]), documentation(entry).summary) for name, entry in KINDS[kind].entries().items()
        ]
    return aligned(rows, width, one_line=True)


def list_name(kind: str, name: str, width: int) -> str:
    """A component with its options, paper and an example, or a section with its keys.

    Raises:
        ConfigurationError: there is nothing of this name; the nearest one is given.
    """
    if kind == SECTIONS_KIND:
        place = find_section(name)
        text = "\n\n".join(paragraphs_of(place.cls))
        return f"{place.path or 'the whole file'}\n\n{_filled(text, width)}\n\n{option_table(keys_of(place.cls), width)}"
    registry = KINDS[kind]
    return _component(registry.find(name), registry, width)


def _component(entry: Entry, registry: Registry, width: int) -> str:
    doc = documentation(entry)
    also = f" (also: {', '.join(entry.aliases)})" if entry.aliases else ""
    parts = [f"{registry.kind} {entry.name}{also}", _filled(doc.summary, width)]
    if doc.body:
        parts.append(doc.body)
    options = options_of(entry)
    parts.append(option_table(options, width) if options else "It has no options.")
    if entry.accepts_any:
        parts.append("Further options are handed on.")
    if source := source_of(entry):
        parts.append(_filled(f"Source: {source}", width))
    parts.append("Example:\n" + textwrap.indent(example(entry, registry), "  "))
    parts.append(f"Defined in {entry.source}:{entry.attribute}.")
    return "\n\n".join(parts)


def paragraphs_of(cls: type[Section]) -> list[str]:
    """What a section's docstring says."""
    return [" ".join(paragraph.split()) for paragraph in (cls.__doc__ or "").split("\n\n")]


def section_summary(cls: type[Section]) -> str:
    """The first sentence of it."""
    return paragraphs_of(cls)[0]


def option_table(options: Iterable[Option], width: int) -> str:
    """Name, type, default and meaning in aligned columns; long cells go on in the next line."""
    rows = [("option", "type", "default", "meaning")]
    rows += [(option.name, option.type_words, option.default_words, option.meaning) for option in options]
    first = max(len(row[0]) for row in rows)
    limits = (first, 30, 18)
    sizes = [min(limit, max(len(row[i]) for row in rows)) for i, limit in enumerate(limits)]
    rest = max(_NARROWEST_MEANING, width - sum(sizes) - 2 * len(sizes))
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, size) or [""] for cell, size in zip(row, (*sizes, rest), strict=True)]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, (*sizes, rest), strict=True)).rstrip())
    return "\n".join(lines)


def aligned(rows: Sequence[tuple[str, str]], width: int, one_line: bool = False) -> str:
    """Two columns; what is too long for its line is cut (`one_line`) or goes on in the next."""
    first = max((len(name) for name, _ in rows), default=0)
    rest = max(_NARROWEST_MEANING, width - first - 2)
    lines = []
    for name, words in rows:
        words = words.replace("``", "`")
        cells = [textwrap.shorten(words, rest, placeholder=" ...")] if one_line else textwrap.wrap(words, rest) or [""]
        for number, cell in enumerate(cells):
            lines.append(f"{name if number == 0 else '':<{first}}  {cell}".rstrip())
    return "\n".join(lines)


def _filled(text: str, width: int) -> str:
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))
