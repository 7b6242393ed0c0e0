#!/usr/bin/env bash
# Prune the IWSLT'14 base model in a single stage.
#
# Usage: iwslt_srp_pruning.sh [ARGUMENT of src/pruning.py ...]
# Needs checkpoints/base (iwslt_srp.sh), writes checkpoints/single_stage.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

MAX_EPOCH=20  # as long as the pruning period
find_python

step ../checkpoints/single_stage ../checkpoints/base/checkpoint_best.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/iwslt14.tokenized.de-en "${IWSLT[@]}" \
    --lr 5e-4 --dropout 0.3 \
    --max-epoch $MAX_EPOCH \
    --compression-rate 0.2 --srp --pruning-stage 0 \
    --pruning-iter 1 --pruning-period 20 --decreasing sa \
    --save-dir ../checkpoints/single_stage \
    --pretrained-model ../checkpoints/base/checkpoint_best.pt "$@"
