#!/usr/bin/env bash
# Download, split and preprocess Tatoeba's German-English sentence pairs.
#
# Usage: tatoeba_preprocess.sh [--raw-dir DIR] [ARGUMENT of fairseq-preprocess ...]
#   --raw-dir DIR  folder that holds train, valid and test, each with .de and .en, packed
#                  (.gz) or not; nothing is downloaded then
#   TATOEBA_URL    archive to download instead of the one of manythings.org, which grows:
#                  only the same archive gives the same splits
# Writes data-bin/tatoeba.de-en. Running it again does what is missing. The sentences are
# CC BY 2.0 FR, by the authors at tatoeba.org.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

BPE=8000
URL=${TATOEBA_URL:-https://www.manythings.org/anki/deu-eng.zip}
RAW=../data-bin/tatoeba.raw

take_raw_dir "$@"
find_python

if [ -z "$raw_dir" ]; then
    raw_dir=$RAW
    download "$URL" "$RAW/deu-eng.zip"
    [ -e "$RAW/test.en" ] && [ "$RAW/test.en" -nt "$RAW/deu-eng.zip" ] \
        || "$PYTHON" tatoeba_split.py "$RAW/deu-eng.zip" --out "$RAW"
fi
"$PYTHON" preprocess.py --out ../data-bin/tatoeba.text --bpe $BPE \
    --train "$raw_dir/train" --valid "$raw_dir/valid" --test "$raw_dir/test"
binarize ../data-bin/tatoeba.text ../data-bin/tatoeba.de-en "${REST[@]}"
