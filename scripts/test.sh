#!/usr/bin/env bash
# Sets everything up and runs every check: formatting, lint, types, tests. Arguments go to pytest; `-m slow` are the long tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment test
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
export OMP_NUM_THREADS=1       # tests run in parallel processes
unset PYTHONDONTWRITEBYTECODE # or each of the processes that tests start would compile the project anew
exec .venv/bin/python -m pytest -n auto --dist loadfile "$@"
