#!/usr/bin/env bash
# Set up and ask: makes .venv, then asks the bundled model a question about the bundled video.
#
#   bash scripts/quickstart.sh [VIDEO] [QUESTION] [options of `videoxl ask`, such as --model DIR or --frames 64]
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."
root=$PWD
. scripts/environment.sh

video=$root/assets/sample.mp4
question="Does this video contain any inserted advertisement? If yes, which is the content of the ad?"
if [ $# -gt 0 ] && [[ $1 != -* ]]; then video=$1; shift; fi
if [ $# -gt 0 ] && [[ $1 != -* ]]; then question=$1; shift; fi

make_environment .venv requirements.txt
if [ "$video" = "$root/assets/sample.mp4" ] && [ ! -f "$video" ]; then
    .venv/bin/python scripts/make_sample_video.py "$video"
fi
echo "== $video: $question" >&2
cd "$called_from"
exec "$root/.venv/bin/videoxl" ask "$video" "$question" --max-new-tokens 64 "$@"
