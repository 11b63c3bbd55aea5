#!/usr/bin/env bash
# Sets everything up and trains the quick start; further arguments go to train.py (`--set train.niter=100`).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
make_environment
exec .venv/bin/python train.py -opt options/train_x.yml "$@"
