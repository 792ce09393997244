#!/usr/bin/env bash
# What docs/benchmarks/small-model.md reports of a small model, in its main parts, on one GPU; then `python scripts/report.py` makes the tables.
#
#   bash scripts/measure_tiny.sh MODEL NAME      NAME as in docs/results/tiny-NAME.json; rerun the same command to resume
#
# SAMPLES (500): needles per length and ratio. Every FILES-th (25; 0: none) goes through an mp4 file, which needs PyAV,
# as VNBench does. LENGTHS: video lengths in frames. RESULTS: output folder (docs/results). WORKERS: drawing processes.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
model=$1 name=$2
results=${RESULTS:-$root/docs/results} samples=${SAMPLES:-500} lengths=${LENGTHS:-64 128 256 512 1024 2048 4096}
python=${PYTHON:-python3}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

score() {
    "$python" -m videoxl.synth.evaluate "$model" --output "$results/tiny-$name.json" --workers "${WORKERS:-8}" "$@"
}
few=$((samples / 5 > 0 ? samples / 5 : 1))
# shellcheck disable=SC2086  # a list of lengths
score --frames $lengths --ratios 8 16 --samples "$samples" --files "${FILES:-25}"
first=${lengths%% *}
score --frames "$first" --ratios 8 16 --samples "$few" --reductions none drop mean "no video"
for task in ordering counting advertisement; do
    score --frames "$first" --ratios 8 --samples "$few" --task "$task"
done
longest=${lengths##* }
called=$name
[ "$name" = bundle ] && called=videoxl-tiny
for ratio in 2 4 8 16; do
    "$python" -m NIAH.run --model_path "$model" --model_name "$called" --result_dir "$results/niah-r$ratio" \
        --ratio "$ratio" --context_lengths_max $((longest < 2048 ? longest : 2048)) --batch_size 5
done
if "$python" -c 'import av' 2>/dev/null; then
    world=$(mktemp -d)
    "$python" -m videoxl.synth.vnbench "$world" --videos "$few" --frames "$first"
    "$python" "$root/eval/eval_vnbench.py" --annotations "$world/annotations.json" --videos "$world" --model "$model" \
        --output "$results/tiny-vnbench.jsonl" --max-new-tokens 16
    rm -r "$world"
else
    echo "no PyAV here: VNBench, whose videos are files, is left out" >&2
fi
