"""Option files of BasicSR and traiNNer-redux, converted to files of this project. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlas.config.source import MarkedDict, read_yaml
from dlas.errors import ConfigurationError
from dlas.interop.option_files.basicsr import convert_tree
from dlas.interop.option_files.carry import Source, Uncarried
from dlas.interop.option_files.comments import Comments
from dlas.interop.option_files.writing import write_text

__all__ = ["Converted", "convert"]


@dataclass(frozen=True)
class Converted:
    """A converted file.

    Args:
        text: the YAML text, with what could not be carried as comments at its end.
        uncarried: what of the original has no counterpart and would have changed the result.
        unneeded: what of it is not needed here.
    """

    text: str
    uncarried: list[Uncarried]
    unneeded: list[Uncarried]


def convert(path: Path) -> Converted:
    """Converts an option file.

    Raises:
        ConfigurationError: it cannot be read, is not such a file, or names a network or data set that does not exist here.
    """
    tree, problems = read_yaml(path)
    if problems:
        raise ConfigurationError("\n".join(str(problem) for problem in problems))
    if not isinstance(tree, MarkedDict) or "network_g" not in tree:
        raise ConfigurationError(
            f"{path}: not an option file of BasicSR or traiNNer-redux: it has no key 'network_g' at its top"
            + ("; it has 'networks': a file of DL-Art-School is read as it is" if tree and "networks" in tree else "")
        )
    source = Source(tree)
    target = convert_tree(source)
    uncarried = [*source.uncarried, *source.rest()]
    uncarried.sort(key=lambda each: each.mark.line)
    comments = Comments(path.read_text(encoding="utf-8"))
    return Converted(write_text(target, comments, uncarried, source.unneeded), uncarried, source.unneeded)
