"""metrics.jsonl is the record of a run; TensorBoard is a view of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Recorder:
    """Writes rows to metrics.jsonl and, unless `tensorboard` is None, to TensorBoard.

    Args:
        metrics: the JSON-lines file; rows are appended and flushed at once.
        tensorboard: folder of the event files.
        start_step: TensorBoard forgets what it was told of later steps (the run went back to a checkpoint).
    """

    def __init__(self, metrics: Path, tensorboard: Path | None, start_step: int = 0) -> None:
        self._file = metrics.open("a", encoding="utf-8")
        self.folder = tensorboard
        self._start_step = start_step
        self._opened: SummaryWriter | None = None

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
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if writer := self._writer():
            for key, value in values.items():
                group = "speed/" if not tag and "/" not in key else tag  # rates and memory beside the losses of the steps
                writer.add_scalar(group + key, value, head["step"])

    def image(self, tag: str, image: Tensor, step: int) -> None:
        """A picture, (3, H, W) in [0, 1]."""
        if writer := self._writer():
            writer.add_image(tag, image, step)

    def text(self, tag: str, text: str) -> None:
        """Preformatted text."""
        if writer := self._writer():
            writer.add_text(tag, "    " + text.replace("\n", "\n    "))  # an indented block keeps its line breaks

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        if self._opened is not None:
            self._opened.close()

    def _writer(self) -> SummaryWriter | None:
        if self.folder is not None and self._opened is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import: not before the first step is done

            self._opened = SummaryWriter(str(self.folder), purge_step=self._start_step + 1 if self._start_step else None)
        return self._opened
