#!/usr/bin/env bash
# Translate the Multi30k test set (test_2016_flickr) and compute BLEU.
#
# Usage: multi30k_srp_test.sh [ARGUMENT of src/generate.py ...]
# Tests checkpoints/multi30k/finetuned/checkpoint_best.pt; another one with --path, from scripts/:
#   bash multi30k_srp_test.sh --path ../checkpoints/multi30k/base/checkpoint_best.pt
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
find_python

"$PYTHON" ../src/generate.py ../data-bin/multi30k.de-en \
    --user-dir ../src --task SRPtranslation \
    --path ../checkpoints/multi30k/finetuned/checkpoint_best.pt \
    --batch-size 128 --beam 5 --remove-bpe \
    --sacrebleu-lowercase --reference ../data-bin/multi30k.de-en/raw.test.en "$@"
