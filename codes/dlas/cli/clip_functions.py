"""Users' functions of clips in commands: as arguments, and how far they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dlas.errors import ConfigurationError

if TYPE_CHECKING:
    from dlas.data.corpus.functions import ClipFunction, Kind

    Result = TypeVar("Result")


def add_function(parser: Any, name: str, words: str) -> None:
    """Declares `--NAME` and `--NAME-option`.

    Args:
        parser: or a group of arguments.
        name: title of the function's kind.
        words: its call and what it gives.
    """
    parser.add_argument(f"--{name}", metavar="FILE.py[:FUNCTION]", help=words)
    parser.add_argument(
        f"--{name}-option", action="append", default=[], metavar="KEY=VALUE", help=f"an argument of the {name}'s function"
    )


def function_of(arguments: argparse.Namespace, kind: Kind[Result]) -> ClipFunction[Result] | None:
    """The function that the arguments name; None if they name none.

    Raises:
        ConfigurationError: it cannot be imported, or an option is none.
    """
    from dlas.data.corpus.functions import ClipFunction

    reference, given = getattr(arguments, kind.title), getattr(arguments, f"{kind.title}_option")
    if reference is None:
        if given:
            raise ConfigurationError(f"--{kind.title}-option {given[0]}: name the function with --{kind.title}")
        return None
    options = [tuple(each.split("=", 1)) for each in given]
    if wrong := [each for each, pair in zip(given, options, strict=True) if len(pair) != 2 or not pair[0].isidentifier()]:
        raise ConfigurationError(f"--{kind.title}-option {wrong[0]}: expected KEY=VALUE")
    function = ClipFunction(kind, reference, tuple((key, value) for key, value in options))
    function.check()
    return function


@contextmanager
def stages_shown() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Gives a function that is told a stage's name and number of clips; what it gives is told how many more are done."""
    from dlas.observe.console import progress_bar

    with ExitStack() as bars:

        def begin(what: str, clips: int) -> Callable[[int], None]:
            print(f"{what} of {clips} clips", file=sys.stderr)
            bar = bars.enter_context(progress_bar(clips, 0))
            return lambda more: bar.update(more) and None

        yield begin
