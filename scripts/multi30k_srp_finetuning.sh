#!/usr/bin/env bash
# Finetune the pruned Multi30k model.
#
# Usage: multi30k_srp_finetuning.sh [ARGUMENT of src/finetuning.py ...]
# Needs checkpoints/multi30k/stage2 (multi30k_srp_two_staged_pruning.sh), writes
# checkpoints/multi30k/finetuned.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

LR=2e-3
DROPOUT=0.1  # less than for the base model: the pruned one is small
UPDATES=2600  # the learning rate falls to zero: 20 epochs of 130
MAX_EPOCH=20
find_python

step ../checkpoints/multi30k/finetuned ../checkpoints/multi30k/stage2/checkpoint_last.pt "$PYTHON" ../src/finetuning.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update $UPDATES \
    --dropout $DROPOUT \
    --max-epoch $MAX_EPOCH \
    --save-dir ../checkpoints/multi30k/finetuned \
    --pretrained-model ../checkpoints/multi30k/stage2/checkpoint_last.pt "$@"
