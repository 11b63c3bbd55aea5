"""Run and measure trained networks: python test.py -opt options/eval.yml"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "codes"))

from dlas.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("test", program="test.py"))
