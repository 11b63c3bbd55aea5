"""Options of classes that are not registered: their keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from typing import Any

from dlas.errors import ConfigurationError
from dlas.registry import nearest


def keyword_parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """What a constructor takes after its first argument: the parameters of an optimiser, or the optimiser of a schedule."""
    return dict(list(inspect.signature(cls).parameters.items())[1:])


def check_keywords(what: str, cls: Any, options: Iterable[str], beside: Collection[str] = ()) -> None:
    """Refuses options that the constructor of `cls` does not take.

    Args:
        what: how the class is called in the message: "optimizer 'NAdam'".
        cls: the class.
        options: names of the options given.
        beside: further names that may be given, for the hint.

    Raises:
        ConfigurationError: an option is unknown; the nearest one is given.
    """
    parameters = keyword_parameters(cls)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            close = nearest(option, [*parameters, *beside])
            hint = f"did you mean '{close}'?" if close else f"it takes: {', '.join([*parameters, *beside])}"
            raise ConfigurationError(f"{what} has no option '{option}'; {hint}")
