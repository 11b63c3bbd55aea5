"""One process per run folder: a lock that ends with its holder, however that ends, and names it meanwhile."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from dlas.errors import TrainingError

HEARTBEAT = 30.0
"""Seconds between signs of life, where the file system has no locks."""
_STALE = 6 * HEARTBEAT


@contextmanager
def locked(file: Path, purpose: str, elsewhere: str = "give this run another 'name'") -> Iterator[None]:
    """Holds a lock while it is open.

    Args:
        file: the lock's file; it stays when the lock ends.
        purpose: what the holder does, for the message: `training in experiments/x`.
        elsewhere: what to do instead of waiting.

    Raises:
        TrainingError: another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as opened:
        # The lock belongs to whoever has the file open. Data workers outlive a killed run by seconds; they must not keep it.
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=partial(_close_quietly, weakref.ref(opened)))
        with _named_in(opened) if _flock(opened, purpose, elsewhere) else _signs_of_life(file, purpose, elsewhere):
            yield


def _flock(opened: TextIO, purpose: str, elsewhere: str) -> bool:
    """Takes the lock; False where there are none: on Windows, and on some network file systems."""
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refusal(_parse(_read(opened)), purpose, elsewhere) from error
    except (ImportError, OSError):
        return False
    return True


@contextmanager
def _named_in(opened: TextIO) -> Iterator[None]:
    _write(opened, _this_process())
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # closed: in a process that the holder has forked
            _write(opened, {})


@contextmanager
def _signs_of_life(file: Path, purpose: str, elsewhere: str) -> Iterator[None]:
    """In place of a lock: a second file that its holder touches again and again."""
    claim = file.with_name(f"{file.name}.holder")
    mine = _this_process()
    for _ in range(3):
        try:
            with claim.open("x", encoding="utf-8") as opened:
                _write(opened, mine)
            break
        except FileExistsError as error:
            with suppress(FileNotFoundError):
                holder = _parse(claim.read_text(encoding="utf-8"))
                if not _is_stale(claim, file, holder):
                    raise _refusal(holder, purpose, elsewhere) from error
                claim.unlink()
    else:
        raise _refusal({}, purpose, elsewhere)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(claim, ended), name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(OSError):
            if _parse(claim.read_text(encoding="utf-8")) == mine:
                claim.unlink()


def _beat(claim: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(claim)


def _is_stale(claim: Path, clock: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") == _host() and not _is_alive(holder):
        return True
    os.utime(clock)  # now by the clock of the file system, which other hosts' signs are dated by
    return clock.stat().st_mtime - claim.stat().st_mtime > _STALE


def _is_alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if os.name == "nt":  # where asking would be a Ctrl-C; its signs of life tell
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return holder.get("started") in (None, _started(pid))


def _refusal(holder: dict[str, Any], purpose: str, elsewhere: str) -> TrainingError:
    advice = f"wait for its end, or {elsewhere}"
    if "pid" not in holder:
        return TrainingError(f"another process is {purpose}; {advice}")
    who = f"process {holder['pid']} on {str(holder.get('host', '?')).split()[0]}"
    if holder.get("host") == _host() and not _is_alive(holder):
        return TrainingError(
            f"{who}, which was {purpose} since {holder['since']}, has ended, but a process that it started still holds the "
            "lock; end that one, or wait a moment"
        )
    return TrainingError(f"{who} has been {purpose} since {holder['since']}; {advice}")


def _this_process() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": _host(), "since": since, "started": _started(os.getpid())}


def _host() -> str:
    """The host, and the space in which its process numbers count: containers on one host have their own."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()


def _started(pid: int) -> str | None:
    """When a process started, as far as the system tells: numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(opened: TextIO) -> str:
    opened.seek(0)
    return opened.read()


def _write(opened: TextIO, holder: dict[str, Any]) -> None:
    opened.seek(0)
    opened.truncate()
    opened.write(json.dumps(holder) if holder else "")
    opened.flush()


def _parse(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _close_quietly(reference: weakref.ref[TextIO]) -> None:
    file = reference()
    if file is not None:
        file.close()
