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
    ../data-bin/iwslt14.tokenized.de-en "${IWSLT[@]}" \
    --lr 5e-4 --dropout 0.3 \
    --max-epoch $MAX_EPOCH \
    --save-dir ../checkpoints/finetuned \
    --pretrained-model ../checkpoints/stage2/checkpoint_last.pt "$@"
