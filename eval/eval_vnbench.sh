#!/usr/bin/env bash
# VNBench of a checkpoint, then its score. MODEL, ANNOTATIONS and VIDEOS name the three; PROCESSES the number of GPUs.
#
#   MODEL=VideoXL_weight_8 ANNOTATIONS=VNBench-main-4try.json VIDEOS=VNBench/video bash eval/eval_vnbench.sh [flags]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
launch=("$python")
[ "${PROCESSES:-1}" -gt 1 ] && launch=("$python" -m torch.distributed.run --nproc_per_node "$PROCESSES")
exec "${launch[@]}" "$root/eval/eval_vnbench.py" --model "${MODEL:?name the checkpoint folder}" \
    --annotations "${ANNOTATIONS:?name VNBench-main-4try.json}" --videos "${VIDEOS:?name the folder of the videos}" \
    --output "${OUTPUT:-submit/vnbench.jsonl}" "$@"
