#!/usr/bin/env bash
# Finetune the pruned Multi30k model on data that the base model has translated.
#
# Usage: multi30k_srp_distilled_finetuning.sh [ARGUMENT of src/finetuning.py ...]
# Needs checkpoints/multi30k/base and stage2 (multi30k_srp_two_staged_pruning.sh), writes
# data-bin/multi30k.de-en.distilled and checkpoints/multi30k/distilled.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

LR=2e-3
DROPOUT=0.1  # less than for the base model: the pruned one is small
UPDATES=2600  # the learning rate falls to almost zero: 10 epochs of about 251
MAX_EPOCH=10  # an epoch has every sentence twice
DATA=../data-bin/multi30k.de-en.distilled
BASE=../checkpoints/multi30k/base/checkpoint_best.pt
find_python

[ -e "$BASE" ] || refuse "${BASE#../} is missing: run multi30k_srp.sh first"
if [ -e "$DATA" ] && [ "$BASE" -nt "$DATA/dict.en.txt" ]; then
    refuse "${DATA#../} is older than ${BASE#../}; move it away to make it again"
fi
[ -e "$DATA" ] || "$PYTHON" ../src/distill_data.py ../data-bin/multi30k.de-en --path "$BASE" \
    --output "$DATA" --engine ctranslate2 --quantization int8 --batch-size 256

step ../checkpoints/multi30k/distilled ../checkpoints/multi30k/stage2/checkpoint_last.pt "$PYTHON" ../src/finetuning.py \
    "$DATA" "${MULTI30K[@]}" \
    --lr $LR --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update $UPDATES \
    --dropout $DROPOUT \
    --max-epoch $MAX_EPOCH \
    --save-dir ../checkpoints/multi30k/distilled \
    --pretrained-model ../checkpoints/multi30k/stage2/checkpoint_last.pt "$@"
