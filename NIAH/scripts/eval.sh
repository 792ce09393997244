#!/usr/bin/env bash
# Needle in a haystack on the published grid (12 lengths to 2048 frames, 5 depths, 5 needles, ratio 16).
#
#   MODEL=CHECKPOINT [RESULTS=results] [PROCESSES=8] [PYTHON=python3] bash NIAH/scripts/eval.sh [flags of NIAH.run]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
launch=("$python" -m)
[ "${PROCESSES:-1}" -gt 1 ] && launch=("$python" -m torch.distributed.run --nproc_per_node "$PROCESSES" -m)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${launch[@]}" NIAH.run --model_path "${MODEL:?name the checkpoint folder}" --result_dir "${RESULTS:-results}" "$@"
