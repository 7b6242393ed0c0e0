#!/usr/bin/env bash
# Prune the IWSLT'14 base model in two stages: embedding widths, then attention and feed-forward.
#
# Usage: iwslt_srp_two_staged_pruning.sh [ARGUMENT of src/pruning.py ...]
# Needs checkpoints/base (iwslt_srp.sh), writes checkpoints/stage1 and checkpoints/stage2.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

MAX_EPOCH=20  # of each stage: as long as the pruning period
find_python

step ../checkpoints/stage1 ../checkpoints/base/checkpoint_best.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/iwslt14.tokenized.de-en "${IWSLT[@]}" \
    --lr 5e-4 --dropout 0.3 \
    --max-epoch $MAX_EPOCH --weighted-layernorm \
    --compression-rate 0.2 --srp --pruning-stage 1 \
    --save-interval 1 \
    --pruning-iter 1 --pruning-period 20 --decreasing sa \
    --save-dir ../checkpoints/stage1 \
    --pretrained-model ../checkpoints/base/checkpoint_best.pt "$@"

step ../checkpoints/stage2 ../checkpoints/stage1/checkpoint_last.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/iwslt14.tokenized.de-en "${IWSLT[@]}" \
    --lr 5e-4 --dropout 0.3 \
    --max-epoch $MAX_EPOCH \
    --compression-rate 0.2 --srp --pruning-stage 2 \
    --save-interval 1 --weighted-layernorm \
    --pruning-iter 1 --pruning-period 20 --decreasing sa \
    --save-dir ../checkpoints/stage2 \
    --pretrained-model ../checkpoints/stage1/checkpoint_last.pt "$@"
