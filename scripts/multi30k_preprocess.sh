#!/usr/bin/env bash
# Download and preprocess Multi30k (task 1) German-English.
#
# Usage: multi30k_preprocess.sh [--raw-dir DIR] [ARGUMENT of fairseq-preprocess ...]
#   --raw-dir DIR  folder that holds train, val and test_2016_flickr, each with .de and .en,
#                  packed (.gz) or not; nothing is downloaded then
#   MULTI30K_URL   folder to download from instead of the public repository multi30k/dataset
# Writes data-bin/multi30k.de-en. Running it again does what is missing.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

BPE=6000
URL=${MULTI30K_URL:-https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw}
RAW=../data-bin/multi30k.raw
# SHA-256 of the files in that repository
FILES="
9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8 test_2016_flickr.de.gz
611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9 test_2016_flickr.en.gz
726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6 train.de.gz
d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f train.en.gz
f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a val.de.gz
14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28 val.en.gz
"

take_raw_dir "$@"
find_python

if [ -z "$raw_dir" ]; then
    raw_dir=$RAW
    while read -r sum file; do
        [ -z "$file" ] || download "$URL/$file" "$RAW/$file" "$sum"
    done <<<"$FILES"
fi
# captions are clean and short: no pair is left out for its length
"$PYTHON" preprocess.py --out ../data-bin/multi30k.text --bpe $BPE \
    --train "$raw_dir/train" --valid "$raw_dir/val" --test "$raw_dir/test_2016_flickr"
binarize ../data-bin/multi30k.text ../data-bin/multi30k.de-en "${REST[@]}"
