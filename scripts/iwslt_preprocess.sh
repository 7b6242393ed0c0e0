#!/usr/bin/env bash
# Download and preprocess IWSLT'14 German-English.
#
# Usage: iwslt_preprocess.sh [--raw-dir DIR] [ARGUMENT of fairseq-preprocess ...]
#   --raw-dir DIR  folder that holds de-en.tgz, or what is in it; nothing is downloaded then
# Writes data-bin/iwslt14.tokenized.de-en. Running it again does what is missing.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

raw=()
if [ "${1:-}" = --raw-dir ]; then
    [ $# -ge 2 ] || refuse "--raw-dir needs a folder"
    raw=(--raw-dir "$(from_caller "$2")")
    shift 2
fi
find_python
bash prepare-iwslt14.sh ${raw[@]+"${raw[@]}"}
binarize ../data-bin/iwslt14.text ../data-bin/iwslt14.tokenized.de-en "$@"
