#!/usr/bin/env bash
# Prune the Multi30k base model in a single stage.
#
# Usage: multi30k_srp_pruning.sh [ARGUMENT of src/pruning.py ...]
# Needs checkpoints/multi30k/base (multi30k_srp.sh), writes checkpoints/multi30k/single_stage.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

LR=2e-3  # of the base: what stays has to take over while the rest shrinks
DROPOUT=0.1  # the small model needs less than the base
COMPRESSION_RATE=0.2  # parameters kept
PERIOD=10             # epochs over which the connectivity goes to zero
MAX_EPOCH=10
find_python

step ../checkpoints/multi30k/single_stage ../checkpoints/multi30k/base/checkpoint_best.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --dropout $DROPOUT \
    --max-epoch $MAX_EPOCH \
    --compression-rate $COMPRESSION_RATE --srp --pruning-stage 0 \
    --pruning-iter 1 --pruning-period $PERIOD --decreasing sa \
    --save-dir ../checkpoints/multi30k/single_stage \
    --pretrained-model ../checkpoints/multi30k/base/checkpoint_best.pt "$@"
