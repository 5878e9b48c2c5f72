#!/bin/sh
# The checks on a GPU, in under five minutes: its tests, and what Score-CAM and a whole look take there.
#   benchmarks/gpu.sh [FOLDER OF PHOTOS] [FILE OF SQUEEZENET'S WEIGHTS]
set -eu
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name --format=csv,noheader
date +%F
photos=${1:+--data $1}
weights=${2:+--weights $2}
python -m pytest tests/test_cuda.py -q -p no:cacheprovider || echo "tests failed: $?"
# shellcheck disable=SC2086  # two words each, or none
{
    python benchmarks/speed.py --models squeezenet1_1 --images 16 --rounds 3 --compile --no-peers $photos $weights
    python benchmarks/look.py --model resnet50 --precision bf16-mixed --images 512 --batch-size 128 $photos
}
