#!/usr/bin/env bash
# IWSLT'14 German-English as text: download, tokens, lower case, BPE of 10,000 merges.
# Run by iwslt_preprocess.sh.
#
# Usage: prepare-iwslt14.sh [--raw-dir DIR] [ARGUMENT of preprocess.py ...]
#   --raw-dir DIR  folder that holds de-en.tgz, or what is in it; nothing is downloaded then
#   IWSLT_URL      where to download de-en.tgz from instead of the public places
#   IWSLT_SHA256   what the download must be
# Writes data-bin/iwslt14.text. Running it again does what is missing.
#
# The data are prepared as fairseq's prepare-iwslt14.sh does it, so that results compare with
# published ones: 160,239 training pairs, 7,283 for validation (every 23rd of the training
# data), 6,750 for testing (dev2010, dev2012, tst2010, tst2011 and tst2012 in one).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

BPE=10000
RATIO=1.5  # clean-corpus-n: a pair may differ by this factor in its number of tokens
MAX_TOKENS=175
RAW=../data-bin/iwslt14.raw
TEXT=../data-bin/iwslt14.text
# No authority publishes a checksum of this archive: the first whole download is recorded
# beside it, and later ones must be the same. IWSLT_SHA256 fixes one from the start.
URLS=(${IWSLT_URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz
    https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz})

take_raw_dir "$@"
find_python

# Unpack under another name first: a half-unpacked folder would look whole.
unpack() {
    whole "$1" || refuse "$1 is not a whole archive (truncated?); fetch it again"
    if [ -d "$RAW/de-en" ] && ! [ "$1" -nt "$RAW/de-en" ]; then return; fi
    rm -rf "$RAW/unpacking" "$RAW/de-en"
    mkdir -p "$RAW/unpacking"
    tar -xzf "$1" -C "$RAW/unpacking"
    [ -d "$RAW/unpacking/de-en" ] || refuse "$1 holds no folder de-en: is it another archive?"
    touch "$RAW/unpacking/de-en"
    mv "$RAW/unpacking/de-en" "$RAW/de-en"
    rm -rf "$RAW/unpacking"
}

if [ -n "$raw_dir" ] && [ ! -e "$raw_dir/de-en.tgz" ]; then
    folder=$raw_dir
elif [ -n "$raw_dir" ]; then
    mkdir -p "$RAW"
    unpack "$raw_dir/de-en.tgz"
    folder=$RAW
else
    fetched=
    for url in "${URLS[@]}"; do
        if download "$url" "$RAW/de-en.tgz" "${IWSLT_SHA256:-}"; then fetched=1; break; fi
    done
    [ -n "$fetched" ] || refuse "de-en.tgz could not be downloaded; give a folder that holds it with --raw-dir, or another address with IWSLT_URL"
    unpack "$RAW/de-en.tgz"
    folder=$RAW
fi
"$PYTHON" preprocess.py --iwslt "$folder" --out "$TEXT" \
    --bpe $BPE --ratio $RATIO --max-tokens $MAX_TOKENS "${REST[@]}"
