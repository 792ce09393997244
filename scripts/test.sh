#!/usr/bin/env bash
# Set up and test.
#
#   bash scripts/test.sh               the quick tests: lint, types, and everything that takes no more than a few seconds
#   bash scripts/test.sh --all         the gate: also what starts many processes, lmms-eval and other libraries, and the
#                                      oldest declared versions; makes two more environments
#   bash scripts/test.sh --quality     how well the bundled model does on this machine (half an hour)
#   bash scripts/test.sh OPTIONS...    pytest with these options in the first environment
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

make_environment .venv requirements.txt
# Two files at a time, each on one core: half of the tests wait for processes that import torch.
together=(-n 2 --dist loadfile --no-loadscope-reorder --durations 5)
case ${1:-} in
    "" | --all) ;;
    --quality) OMP_NUM_THREADS=1 exec .venv/bin/python -m pytest "${together[@]}" -m quality tests/quality ;;
    *) exec .venv/bin/python -m pytest "$@" ;;
esac
export OMP_NUM_THREADS=1

echo "== lint and types" >&2
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet .
.venv/bin/mypy
echo "== tests" >&2
if [ -z "${1:-}" ]; then
    exec .venv/bin/python -m pytest "${together[@]}"
fi
.venv/bin/python -m pytest "${together[@]}" -m "not quality"

# lmms-eval, and what needs torchvision, Triton, torchcodec, the newest torch or an older PyAV: OpenCLIP towers, kernels,
# the other decoders, and the model once more.
make_environment .venv-eval requirements-eval.txt
echo "== tests in the second environment" >&2
.venv-eval/bin/python -m pytest "${together[@]}" -m "not quality" tests/benchmarks/test_lmms.py \
    tests/benchmarks/test_recipes.py tests/media/test_video.py tests/media/test_faults.py tests/media/test_nvdec.py tests/media/test_subtitles.py tests/test_golden.py tests/model/test_vision_tower.py \
    tests/kernels tests/model/test_decode_graph.py

# The recorded cases, the quick start and training steps on the oldest versions that pyproject.toml declares.
make_environment .venv-oldest requirements-oldest.txt
echo "== tests with the oldest versions" >&2
.venv-oldest/bin/python -m pytest "${together[@]}" -m "not quality" tests/test_golden.py tests/train/test_trainer.py \
    tests/session tests/media/test_video.py tests/media/test_faults.py tests/media/test_nvdec.py tests/media/test_subtitles.py tests/cache tests/model/test_loading.py tests/test_repository.py -k "not made_by_their_scripts"
