"""Comments of a YAML file, by the line that they belong to."""

from __future__ import annotations

_FOR_EDITORS = "# yaml-language-server:"


class Comments:
    """Finds comments line by line: one behind a key belongs to it, and so do the lines of comments right above.

    Args:
        text: the file.
    """

    def __init__(self, text: str) -> None:
        self.behind: dict[int, str] = {}
        self.above: dict[int, list[str]] = {}
        waiting: list[str] = []
        for number, line in enumerate(text.splitlines(), start=1):
            content, comment = split_comment(line)
            if comment and not content.strip():
                if not comment.startswith(_FOR_EDITORS):  # it names the schema of the other program
                    waiting.append(comment)
                continue
            if content.strip():
                if comment:
                    self.behind[number] = comment
                if waiting:
                    self.above[number] = waiting
                waiting = []
        self.end = waiting

    def take(self, line: int) -> tuple[list[str], str]:
        """The comments above and behind a line; each is given once."""
        return self.above.pop(line, []), self.behind.pop(line, "")

    def left(self) -> list[tuple[int, str]]:
        """Comments of lines that were not carried."""
        above = [(line, comment) for line, comments in self.above.items() for comment in comments]
        behind = list(self.behind.items())
        return sorted([*above, *behind], key=lambda each: each[0]) + [(0, comment) for comment in self.end]


def split_comment(line: str) -> tuple[str, str]:
    """A line without its comment, and the comment from its `#` on. A `#` within quotes or a word begins none."""
    quote = ""
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (position == 0 or line[position - 1] in " [{,:-"):
            quote = character
        elif character == "#" and (position == 0 or line[position - 1] in " \t"):
            return line[:position], line[position:].rstrip()
    return line, ""
