#!/usr/bin/env bash
# Translate the IWSLT'14 test set and compute BLEU.
#
# Usage: iwslt_srp_test.sh [ARGUMENT of src/generate.py ...]
# Tests checkpoints/base/checkpoint_best.pt; another one with --path, from scripts/:
#   bash iwslt_srp_test.sh --path ../checkpoints/finetuned/checkpoint_best.pt
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
find_python

"$PYTHON" ../src/generate.py ../data-bin/iwslt14.tokenized.de-en \
    --user-dir ../src --arch srp_iwslt_de_en --task SRPtranslation \
    --weighted-layernorm \
    --path ../checkpoints/base/checkpoint_best.pt \
    --batch-size 128 --beam 5 --remove-bpe "$@"
