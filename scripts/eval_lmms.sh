#!/usr/bin/env bash
# One benchmark of lmms-eval by its recipe in configs/eval, then its score beside the published one.
#
#   bash scripts/eval_lmms.sh NAME CHECKPOINT [--output DIR] [flags of lmms_eval]      PROCESSES=8 for eight GPUs
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m videoxl.benchmarks.recipes "$@"
