#!/usr/bin/env bash
# Prune the Multi30k base model in two stages: embedding widths, then attention and feed-forward.
#
# Usage: multi30k_srp_two_staged_pruning.sh [ARGUMENT of src/pruning.py ...]
# Needs checkpoints/multi30k/base (multi30k_srp.sh), writes checkpoints/multi30k/stage1
# and checkpoints/multi30k/stage2.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

LR=2e-3  # of the base: what stays has to take over while the rest shrinks
DROPOUT_1=0.2  # less than the base: the model is losing width
DROPOUT_2=0.1
COMPRESSION_RATE=0.2  # parameters kept
PERIOD=5              # of each stage: epochs over which the connectivity goes to zero
MAX_EPOCH=5           # of each stage
find_python

step ../checkpoints/multi30k/stage1 ../checkpoints/multi30k/base/checkpoint_best.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --dropout $DROPOUT_1 \
    --max-epoch $MAX_EPOCH --weighted-layernorm \
    --compression-rate $COMPRESSION_RATE --srp --pruning-stage 1 \
    --pruning-iter 1 --pruning-period $PERIOD --decreasing sa \
    --save-dir ../checkpoints/multi30k/stage1 \
    --pretrained-model ../checkpoints/multi30k/base/checkpoint_best.pt "$@"

step ../checkpoints/multi30k/stage2 ../checkpoints/multi30k/stage1/checkpoint_last.pt "$PYTHON" ../src/pruning.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --dropout $DROPOUT_2 \
    --max-epoch $MAX_EPOCH --weighted-layernorm \
    --compression-rate $COMPRESSION_RATE --srp --pruning-stage 2 \
    --pruning-iter 1 --pruning-period $PERIOD --decreasing sa \
    --save-dir ../checkpoints/multi30k/stage2 \
    --pretrained-model ../checkpoints/multi30k/stage1/checkpoint_last.pt "$@"
