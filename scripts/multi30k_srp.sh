#!/usr/bin/env bash
# Train the base model on Multi30k German-English.
#
# Usage: multi30k_srp.sh [ARGUMENT of src/train.py ...]
# Needs data-bin/multi30k.de-en (multi30k_preprocess.sh), writes checkpoints/multi30k/base.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

# 29,000 short pairs: a high learning rate and much dropout, and an epoch is only 130 updates
LR=2e-3
WARMUP=1000
UPDATES=3900  # the learning rate falls to zero: 30 epochs of 130
DROPOUT=0.3
MAX_EPOCH=30
find_python

step ../checkpoints/multi30k/base ../data-bin/multi30k.de-en/dict.de.txt "$PYTHON" ../src/train.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --lr-scheduler polynomial_decay --warmup-updates $WARMUP --total-num-update $UPDATES \
    --dropout $DROPOUT \
    --max-epoch $MAX_EPOCH --validate-interval 2 \
    --save-dir ../checkpoints/multi30k/base "$@"
