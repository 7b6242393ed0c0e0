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
    ../data-bin/iwslt14.tokenized.de-en \
    --user-dir ../src \
    --arch srp_iwslt_de_en --share-decoder-input-output-embed \
    --task SRPtranslation \
    --optimizer srp_adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 \
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 \
    --dropout 0.3 --weight-decay 0.0001 \
    --criterion srp --label-smoothing 0.1 \
    --max-epoch $MAX_EPOCH \
    --max-tokens 4096 \
    --eval-bleu \
    --eval-bleu-args '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}' \
    --eval-bleu-detok moses \
    --eval-bleu-remove-bpe \
    --eval-bleu-print-samples \
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric \
    --save-dir ../checkpoints/base "$@"
