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
    ../data-bin/multi30k.de-en \
    --user-dir ../src \
    --arch srp_multi30k_de_en --share-decoder-input-output-embed \
    --task SRPtranslation \
    --optimizer srp_adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 \
    --lr $LR --lr-scheduler polynomial_decay --warmup-updates $WARMUP --total-num-update $UPDATES \
    --dropout $DROPOUT --weight-decay 0.0001 \
    --criterion srp --label-smoothing 0.1 \
    --max-epoch $MAX_EPOCH --validate-interval 2 \
    --max-tokens 4096 \
    --eval-bleu \
    --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' \
    --eval-bleu-detok moses \
    --eval-bleu-remove-bpe \
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
    --no-epoch-checkpoints \
    --save-dir ../checkpoints/multi30k/base "$@"
