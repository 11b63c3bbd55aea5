"""One step of the smallest training, for start_up.py and guard.py to time."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from step_overhead import trainer_loop

logging.getLogger("dlas").setLevel(logging.ERROR)
with tempfile.TemporaryDirectory() as folder:
    trainer_loop(folder, "{which_model_G: bench_conv}", 8, 1, "fp32", "contiguous")(1)
