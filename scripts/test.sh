#!/usr/bin/env bash
# Set up and test: makes .venv and .venv-eval, and runs the tests in them.
#
#   bash scripts/test.sh [pytest options]     with options, only the first environment's tests run
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

make_environment .venv requirements.txt
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
echo "== lint" >&2
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
echo "== tests" >&2
# Two files at a time, each on one core: half of the tests wait for processes that import torch.
together=(-n 2 --dist loadfile --no-loadscope-reorder --durations 5)
export OMP_NUM_THREADS=1
.venv/bin/python -m pytest "${together[@]}"

# lmms-eval, and what needs torchvision, Triton, torchcodec or an older PyAV: OpenCLIP towers, kernels, the other
# decoders, and the model once more.
make_environment .venv-eval requirements-eval.txt
echo "== tests in the second environment" >&2
.venv-eval/bin/python -m pytest "${together[@]}" tests/evaluation/test_lmms.py tests/test_video.py \
    tests/test_golden.py tests/model/test_vision_tower.py tests/evaluation/test_recipes.py tests/kernels \
    tests/model/test_decode_graph.py
