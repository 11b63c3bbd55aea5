"""Functions of users' own Python files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlas.errors import ConfigurationError, printable


def plugin_file(reference: str) -> tuple[Path, str]:
    """The file of `file.py` or `file.py:function`, and the function's name, which may be empty."""
    text, _, name = reference.partition(".py:")
    return (Path(f"{text}.py"), name) if name else (Path(reference), "")


def load_function(reference: str, *, kind: str, name: str, gives: str, or_else: str = "") -> Callable[..., Any]:
    """A function of a Python file.

    Args:
        reference: the file; `file.py:function` for a function of another name.
        kind: what it is for, for messages: `captioner`.
        name: of the function, where the reference names none.
        gives: its call and result, for messages.
        or_else: names that could be given in place of a file, for messages.

    Raises:
        ConfigurationError: there is no such file or function, or it cannot be imported.
    """
    file, given = plugin_file(reference)
    name = given or name
    if not file.expanduser().is_file():
        what = f"neither {or_else} nor a Python file" if or_else else "no such Python file"
        raise ConfigurationError(f"{kind} {printable(reference)}: {what}")
    spec = importlib.util.spec_from_file_location(f"dlas_{kind.replace(' ', '_')}", file.expanduser())
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{kind} {printable(file)}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigurationError(f"{kind} {printable(file)}: cannot be imported: {error}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(f"{kind} {printable(file)}: has no function '{name}{gives}")
    found: Callable[..., Any] = function
    return found
