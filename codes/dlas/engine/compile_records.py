"""What torch.compile did, from the records that torch keeps of it: the only module that reads what torch does not document."""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo import exc, utils

_KEPT = 1000  # records that torch keeps until they are taken
_SHOWN = 240  # characters of a reason
_LOGGERS = ("torch._dynamo.symbolic_convert", "torch._dynamo.convert_frame")
_LIMIT = re.compile(r"(recompile|cache_size)[_ ]limit", re.I)
_PLACE = re.compile(r"in user code at (.+?):(\d+)\n")
_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_REASON = re.compile(r"Reason: (.*?)(?:\n+User code traceback|\Z)", re.S)
_EXPLAINED = re.compile(r"^(.*)\n\s*Explanation: (.*)", re.M)


@dataclass(frozen=True)
class Compiled:
    """A function, or what follows a graph break in it, that was compiled.

    Args:
        number: torch's own; a backward pass that is compiled later has that of its forward pass.
        code: the function and where it stands; empty for a backward pass.
        seconds: that it took, backward pass and all where that was compiled with it.
        is_graph: there was something to compute in it.
        guard: what earlier code for it took for granted and was not so any more; empty if there was none.
        gave_up: it was not compiled: torch's limit of versions is reached, and it runs as it is from now on.
    """

    number: str
    code: str
    seconds: float
    is_graph: bool
    guard: str
    gave_up: bool


@dataclass(frozen=True)
class Break:
    """Where a graph ends because torch cannot trace what comes next: `file:line`, and why."""

    place: str
    reason: str


_breaks: list[Break] = []


class _Reader(logging.Filter):
    """Reads the records of a logger; shows those that it would show anyway."""

    def __init__(self, shows: bool) -> None:
        super().__init__()
        self._shows = shows

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        found = _PLACE.search(text)
        frames = _FRAME.findall(text)
        place = found.groups() if found else frames[-1] if frames else ("", "")
        given = _REASON.search(text)
        reason = _shortened(given[1] if given else str(error or text))
        if not _LIMIT.search(reason):  # that is told by the records of compilations
            _breaks.append(Break(":".join(place), reason))
        return self._shows


def listen() -> None:
    """Has torch keep records from now on; may be called again."""
    utils.set_compilation_metrics_limit(_KEPT)
    for name in _LOGGERS:
        logger = torch._logging.getArtifactLogger(name, "graph_breaks")
        if not any(isinstance(each, _Reader) for each in logger.filters):
            logger.addFilter(_Reader(logger.isEnabledFor(logging.DEBUG)))
            logger.setLevel(logging.DEBUG)


def frames() -> int:
    """How many functions torch has tried to compile so far; cheap."""
    return utils.counters["frames"]["total"]


def take() -> tuple[list[Compiled], list[Break]]:
    """What was compiled, and where graphs broke, since the last call; each break once."""
    records = [_compiled(each) for each in utils.get_compilation_metrics()]
    utils.clear_compilation_metrics()
    breaks = list(dict.fromkeys(_breaks))
    _breaks.clear()
    return records, breaks


def own_limit() -> dict[str, Any]:
    """Arguments for torch.compile by which networks of one class do not share versions of their code, and the limit of them."""
    return {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


def may_be_its_own(error: BaseException) -> bool:
    """Whether an operation of the network was refused while it was traced: for its inputs' shapes, as a rule."""
    return isinstance(error, exc.TorchRuntimeError)


def reason_of(error: BaseException) -> str | None:
    """Why a network cannot be compiled, in a line; None if the error is another one: of the network itself, say."""
    kinds = [exc.TorchDynamoException]
    kinds += [kind for name in ("FailOnRecompileLimitHit", "CacheLimitExceeded") if (kind := getattr(exc, name, None))]
    if not isinstance(error, tuple(kinds)) and not type(error).__module__.startswith("torch._inductor"):
        return None
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].endswith("raised:"):
        lines = lines[1:] or lines
    _, _, user_code = text.partition("from user code:")
    places = _FRAME.findall(user_code)
    where = f" (at {':'.join(places[-1])})" if places else ""
    return (_shortened(text) if _EXPLAINED.search(text) else lines[0][:_SHOWN]) + where


def _compiled(record: Any) -> Compiled:
    name, file, line = (getattr(record, key, None) for key in ("co_name", "co_filename", "co_firstlineno"))
    microseconds = getattr(record, "duration_us", None)
    seconds = microseconds / 1e6 if microseconds is not None else getattr(record, "entire_frame_compile_time_s", None)
    failure = getattr(record, "fail_reason", None) or ""
    guard = (getattr(record, "recompile_reason", None) or "").splitlines()
    return Compiled(
        str(getattr(record, "compile_id", "")),
        f"{name} at {file}:{line}" if name else "",
        float(seconds or 0.0),
        bool(getattr(record, "graph_op_count", None)),
        re.sub(r"^\d+/\d+: ", "", re.sub(r"\s+", " ", guard[0])).strip()[:_SHOWN] if guard else "",
        bool(_LIMIT.search(failure)),
    )


def _shortened(text: str) -> str:
    """What broke and why, without hints and context."""
    found = _EXPLAINED.search(text)
    words = f"{found[1].strip()}: {found[2].strip()}" if found else text.strip().partition("\n")[0]
    return words[:_SHOWN]
