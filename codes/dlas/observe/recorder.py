"""metrics.jsonl is the record of a run; TensorBoard is a view of it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dlas.observe import disk
from dlas.observe.console import LOGGER
from dlas.observe.row_file import RowFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_PAUSE = 60.0  # seconds for which TensorBoard is left alone after an error


class Recorder:
    """Writes rows to metrics.jsonl and, unless `tensorboard` is None, to TensorBoard.

    Disks that fail end no run here: rows wait in memory, TensorBoard goes without.

    Args:
        metrics: the JSON-lines file; rows are appended at once.
        tensorboard: folder of the event files.
        start_step: TensorBoard forgets what it was told of later steps (the run goes on from a checkpoint, or from nothing).
        check: raises OSError where the folder is not the run's any more.
    """

    def __init__(
        self, metrics: Path, tensorboard: Path | None, start_step: int = 0, check: Callable[[], None] = lambda: None
    ) -> None:
        self._rows = RowFile(metrics, check)
        self.folder = tensorboard
        self._start_step = start_step
        self._check = check
        self._opened: SummaryWriter | None = None
        self._closed_until = 0.0
        self._told = False

    def train(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """One row of training figures: {"phase": "train", "step", "samples", "seconds", ...values}."""
        self._row({"phase": "train", "step": step, "samples": samples, "seconds": round(seconds, 3)}, "", values)

    def validation(self, step: int, samples: int, seconds: float, set_name: str, values: Mapping[str, float]) -> None:
        """One row of a data set's mean figures: {"phase": "val", ..., "set": its name, ...values}."""
        head = {"phase": "val", "step": step, "samples": samples, "seconds": round(seconds, 3), "set": set_name}
        self._row(head, f"val/{set_name}/", values)

    def _row(self, head: dict[str, Any], tag: str, values: Mapping[str, float]) -> None:
        # JSON has no NaN or infinity: null stands for them.
        line = {**head, **{key: value if math.isfinite(value) else None for key, value in values.items()}}
        self._rows.add(json.dumps(line))

        def scalars(writer: SummaryWriter) -> None:
            for key, value in values.items():
                group = "speed/" if not tag and "/" not in key else tag  # rates and memory beside the losses of the steps
                writer.add_scalar(group + key, value, head["step"])

        self._tell(scalars)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        """A picture, (3, H, W) in [0, 1]."""
        self._tell(lambda writer: writer.add_image(tag, image, step))

    def sound(self, tag: str, sound: Tensor, rate: int, step: int) -> None:
        """Sound, (N,) in [-1, 1], of `rate` Hz."""
        self._tell(lambda writer: writer.add_audio(tag, sound.clamp(-1, 1), step, sample_rate=rate))

    def text(self, tag: str, text: str) -> None:
        """Preformatted text."""
        indented = "    " + text.replace("\n", "\n    ")  # an indented block keeps its line breaks
        self._tell(lambda writer: writer.add_text(tag, indented))

    def sync(self) -> None:
        """Returns when every row so far is on the disk.

        Raises:
            OSError: they are not; they stay in memory.
        """
        self._rows.sync()

    def flush(self) -> None:
        """Writes what TensorBoard holds in memory. A checkpoint comes after it: a restart from there does not tell it again."""
        if self._opened is not None:
            self._tell(lambda writer: writer.flush())

    def close(self) -> None:
        """Flushes and closes the files."""
        self._rows.close()
        self._close_tensorboard()

    def _tell(self, what: Callable[[SummaryWriter], None]) -> None:
        if self.folder is None or time.monotonic() < self._closed_until:
            return
        try:
            if self._opened is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import: not before the first step is done

                self._check()
                _keep_threads_quiet()
                earlier = any(self.folder.glob("events.*"))
                self._opened = SummaryWriter(str(self.folder), purge_step=self._start_step + 1 if earlier else None)
            what(self._opened)
        except OSError as error:
            if not self._told:
                LOGGER.warning("TensorBoard's files cannot be written: %s; training goes on without", disk.reason(error))
            self._told = True
            self._closed_until = time.monotonic() + _PAUSE
            self._close_tensorboard()

    def _close_tensorboard(self) -> None:
        writer, self._opened = self._opened, None
        if writer is not None:
            with suppress(OSError):  # told of already, or at the end and of no use
                writer.close()


def _keep_threads_quiet() -> None:
    """TensorBoard writes in a thread, raises its error again where we see it, and would print a traceback as well."""
    before = threading.excepthook
    if getattr(before, "of_recorder", False):
        return

    def hook(arguments: threading.ExceptHookArgs) -> None:
        ours = type(arguments.thread).__module__.startswith("tensorboard")
        if not (ours and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    hook.of_recorder = True  # type: ignore[attr-defined]
    threading.excepthook = hook
