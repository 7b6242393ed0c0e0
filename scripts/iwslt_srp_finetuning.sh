#!/usr/bin/env bash
# Finetune the pruned IWSLT'14 model.
#
# Usage: iwslt_srp_finetuning.sh [ARGUMENT of src/finetuning.py ...]
# Needs checkpoints/stage2 (iwslt_srp_two_staged_pruning.sh), writes checkpoints/finetuned.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

MAX_EPOCH=20
find_python

step ../checkpoints/finetuned ../checkpoints/stage2/checkpoint_last.pt "$PYTHON" ../src/finetuning.py \
    ../data-bin/iwslt14.tokenized.de-en \
    --user-dir ../src \
    --arch srp_iwslt_de_en --share-decoder-input-output-embed \
    --task SRPtranslation \
    --optimizer srp_adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 \
    --lr 5e-4 \
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
    --save-dir ../checkpoints/finetuned \
    --pretrained-model ../checkpoints/stage2/checkpoint_last.pt "$@"
