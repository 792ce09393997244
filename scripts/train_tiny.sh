#!/usr/bin/env bash
# Train the small model of assets/videoxl-tiny from nothing, evaluate it, and write its checkpoint and model card.
#
#   bash scripts/train_tiny.sh FOLDER [--seed N] [--cpu] [--workers N]
#
# One GPU, or --cpu for a much smaller model that takes the same steps in minutes. Rerun the same command to resume. PYTHON names
# the interpreter (default: that of .venv if there is one); it needs PyTorch, transformers and matplotlib, no more.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
exec "$PYTHON" -m videoxl.synth.train_tiny "$@"
