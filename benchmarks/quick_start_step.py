"""The quick start through the command line, ended right behind its first step, for start_up.py to time."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Trains; never comes back."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from dlas.cli.main import main as command_line

    folder = tempfile.TemporaryDirectory()

    def end(*_: object) -> None:
        folder.cleanup()
        os._exit(0)

    register_optimizer_step_post_hook(end)
    command_line(["train", "-opt", str(ROOT / "options/train_x.yml"), "--set", f"path.experiments={folder.name}"])
    sys.exit("there was no step")


if __name__ == "__main__":
    main()
