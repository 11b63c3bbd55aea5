"""Forks sittings of train.py, so that each of them does without the seconds that importing torch takes.

Reads lines of JSON from standard input: `arguments` of train.py (or of another `script`), a file for its output (`log`), one
for its standard error if that goes elsewhere (`errors`), and one for its stacks (`seen`). Answers each with the sitting's
process id at its start and with its exit status (minus the signal that ended it) at its end. Nothing is run here but imports.
A sitting writes its stacks when it gets SIGUSR2: from C, at once, and without a trace in its state.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "codes"), str(ROOT / "tests")]


def import_everything() -> None:
    """All that a sitting imports. Components register when they are looked up, which is left to it."""
    import cv2  # noqa: F401
    import torch._dynamo  # as every optimiser does when it is made
    import torch.utils.data
    import torch.utils.tensorboard  # noqa: F401

    import dlas.cli.train
    import dlas.engine.trainer  # noqa: F401


def answer(**values: Any) -> None:
    """One line to whoever asked."""
    print(json.dumps(values), flush=True)


def sitting(request: dict[str, Any]) -> None:
    """Becomes `python train.py ARGUMENTS`; does not return."""
    os.setsid()
    for stream, name in ((1, request["log"]), (2, request.get("errors", request["log"]))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [str(ROOT / request.get("script", "train.py")), *request["arguments"]]
    runpy.run_path(sys.argv[0], run_name="__main__")  # ends with SystemExit


def serve() -> None:
    """Answers until the input ends."""
    import_everything()
    answer(ready=True)
    gc.collect()
    gc.freeze()  # or the first collection in every sitting would copy all pages
    for line in sys.stdin:
        request = json.loads(line)
        # The handler is there before the fork: until then, the signal would end a sitting.
        with Path(request["seen"]).open("a") as seen:
            faulthandler.register(signal.SIGUSR2, seen, all_threads=True)
            process = os.fork()
            if process == 0:
                sitting(request)
            answer(process=process)
            _, status = os.waitpid(process, 0)
        answer(status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
