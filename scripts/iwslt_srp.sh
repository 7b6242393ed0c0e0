#!/usr/bin/env bash
# Train the base model on IWSLT'14 German-English.
#
# Usage: iwslt_srp.sh [ARGUMENT of src/train.py ...]
# Needs data-bin/iwslt14.tokenized.de-en (iwslt_preprocess.sh), writes checkpoints/base.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

MAX_EPOCH=60  # an epoch is about 1,100 updates
find_python

step ../checkpoints/base ../data-bin/iwslt14.tokenized.de-en/dict.de.txt "$PYTHON" ../src/train.py \
    ../data-bin/iwslt14.tokenized.de-en "${IWSLT[@]}" \
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 \
    --dropout 0.3 \
    --max-epoch $MAX_EPOCH \
    --save-dir ../checkpoints/base "$@"
