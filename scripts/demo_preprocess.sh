#!/usr/bin/env bash
# Generate and preprocess the demo's German-English corpus.
#
# Usage: demo_preprocess.sh [ARGUMENT of demo_corpus ...]
# Writes data-bin/demo.de-en. Running it again does what is missing.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

BPE=1500
RAW=../data-bin/demo.raw
TEXT=../data-bin/demo.text
find_python

# the corpus depends on its generator and on the arguments, and on nothing else
if [ ! -e "$RAW/.done" ] || [ "$(cat "$RAW/.done")" != "$*" ] \
    || [ -n "$(find demo_corpus -name '*.py' -newer "$RAW/.done")" ]; then
    say "writing the demo corpus"
    rm -rf "$RAW.part"
    "$PYTHON" demo_corpus --out "$RAW.part" "$@"
    echo "$*" >"$RAW.part/.done"
    rm -rf "$RAW"
    mv "$RAW.part" "$RAW"
fi
"$PYTHON" preprocess.py --out "$TEXT" --bpe $BPE --train "$RAW/train" --valid "$RAW/valid" --test "$RAW/test"
binarize "$TEXT" ../data-bin/demo.de-en
