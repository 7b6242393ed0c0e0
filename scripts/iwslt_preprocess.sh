#!/usr/bin/env bash
# Download and preprocess IWSLT'14 German-English.
#
# Usage: iwslt_preprocess.sh [--raw-dir DIR] [ARGUMENT of fairseq-preprocess ...]
#   --raw-dir DIR  folder that holds de-en.tgz, or what is in it; nothing is downloaded then
#   IWSLT_URL      where to download it from instead; see prepare-iwslt14.sh --help
# Writes data-bin/iwslt14.tokenized.de-en. Running it again does what is missing.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

take_raw_dir "$@"
raw=()
[ -z "$raw_dir" ] || raw=(--raw-dir "$raw_dir")
find_python
bash prepare-iwslt14.sh ${raw[@]+"${raw[@]}"}
binarize ../data-bin/iwslt14.text ../data-bin/iwslt14.tokenized.de-en "${REST[@]}"
