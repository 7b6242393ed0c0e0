#!/usr/bin/env bash
# The whole way: preprocess, train, then compress.py; or stage by stage.
#
# Usage: demo.sh [--data demo|multi30k] [--raw-dir DIR] [--stages] [--keep-decoder-layers N]
#                [ARGUMENT for every training step ...]
#   --data         demo: a small corpus that is generated here (default); models in
#                  checkpoints/demo. multi30k: the multi30k_*.sh scripts; models in
#                  checkpoints/multi30k
#   --raw-dir DIR  with multi30k: folder of its files, instead of a download
#   --stages       instead of compress.py each of its steps: two pruning stages, finetuning,
#                  translation, report. Without, the compressed model is in checkpoints/DATA/compressed
#   --keep-decoder-layers N
#                  with demo, stage by stage: stage 2 prunes in depth, too, to N decoder layers of two. Its models
#                  stand beside the others as stage2-decoderN and finetuned-decoderN, table and
#                  picture in checkpoints/demo-decoderN
# What has finished is skipped, what was interrupted continues.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

# Sized for a few minutes on two CPU cores.
LR=3e-3
WARMUP=200
DROPOUT=0.1
BASE_EPOCHS=12
COMPRESSION_RATE=0.2  # parameters kept
PERIOD=5              # epochs of each pruning stage
FINETUNING_EPOCHS=5
FINETUNING_LR=1e-3
COMPRESSION_EPOCHS=12

take_raw_dir "$@"
raw=()
[ -z "$raw_dir" ] || raw=(--raw-dir "$raw_dir")
data=demo
layers=
stages=
arguments=()
set -- ${REST[@]+"${REST[@]}"}
while [ $# -gt 0 ]; do
    case $1 in
        --data) [ $# -ge 2 ] || refuse "--data needs a value"; data=$2; shift ;;
        --data=*) data=${1#*=} ;;
        --stages) stages=1 ;;
        --keep-decoder-layers) [ $# -ge 2 ] || refuse "$1 needs a value"; layers=$2; shift ;;
        --keep-decoder-layers=*) layers=${1#*=} ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
case $data in
    multi30k) ;;
    demo) [ ${#raw[@]} -eq 0 ] || refuse "--raw-dir goes with --data multi30k: the demo generates its corpus" ;;
    *) refuse "--data $data: demo or multi30k" ;;
esac
depth=()
if [ -n "$layers" ]; then
    [ "$data" = demo ] || refuse "--keep-decoder-layers goes with --data demo: give it to multi30k_srp_pruning.sh"
    [[ $layers =~ ^[12]$ ]] || refuse "--keep-decoder-layers $layers: the demo's model has 2; give 1 or 2"
    depth=(--keep-decoder-layers "$layers") stages=1
fi
shape=${layers:+-decoder$layers}
find_python

BIN=../data-bin/$data.de-en
CKPT=../checkpoints/$data
export SRP_QUIET=1  # scripts that are called keep to it too
ARGS=(--log-format simple --log-interval 1000 ${arguments[@]+"${arguments[@]}"})

final=finetuned$shape
if [ "$data" = demo ]; then
    DISPOSABLE=1  # a model made from something else is made again
    COMMON=("$BIN" "${DEMO[@]}" --dropout $DROPOUT)
    PRUNING=(--srp --compression-rate $COMPRESSION_RATE --weighted-layernorm --lr $LR
        --pruning-iter 1 --pruning-period $PERIOD --max-epoch $PERIOD --decreasing sa)
    prepare() { bash demo_preprocess.sh; }
    base() {
        step "$CKPT/base" "$BIN/.done" "$PYTHON" ../src/train.py "${COMMON[@]}" \
            --lr $LR --lr-scheduler inverse_sqrt --warmup-updates $WARMUP --max-epoch $BASE_EPOCHS \
            --save-dir "$CKPT/base" "$@"
    }
    pruning() {
        step "$CKPT/stage1" "$CKPT/base/checkpoint_best.pt" "$PYTHON" ../src/pruning.py "${COMMON[@]}" "${PRUNING[@]}" \
            --pruning-stage 1 --save-dir "$CKPT/stage1" --pretrained-model "$CKPT/base/checkpoint_best.pt" "$@"
        step "$CKPT/stage2$shape" "$CKPT/stage1/checkpoint_last.pt" "$PYTHON" ../src/pruning.py "${COMMON[@]}" "${PRUNING[@]}" \
            --pruning-stage 2 ${depth[@]+"${depth[@]}"} --save-dir "$CKPT/stage2$shape" --pretrained-model "$CKPT/stage1/checkpoint_last.pt" "$@"
    }
    finetuning() {
        step "$CKPT/$final" "$CKPT/stage2$shape/checkpoint_last.pt" "$PYTHON" ../src/finetuning.py "${COMMON[@]}" \
            --lr $FINETUNING_LR --max-epoch $FINETUNING_EPOCHS \
            --save-dir "$CKPT/$final" --pretrained-model "$CKPT/stage2$shape/checkpoint_last.pt" "$@"
    }
else
    prepare() { bash multi30k_preprocess.sh ${raw[@]+"${raw[@]}"}; }
    base() { bash multi30k_srp.sh "$@"; }
    pruning() { bash multi30k_srp_two_staged_pruning.sh "$@"; }
    finetuning() { bash multi30k_srp_distilled_finetuning.sh "$@"; }
    final=distilled
fi

# Translate the test set, unless that was done with this checkpoint.
translate() {  # translate NAME CHECKPOINT
    local dir=$CKPT/$1 checkpoint=$CKPT/$1/$2
    if [ -e "$dir/report.json" ] && [ "$dir/report.json" -nt "$checkpoint" ] && [ -e "$dir/generate.txt" ]; then
        say "$1: translated already"
        return
    fi
    say "$1: translating the test set"
    rm -f "$dir/report.json"  # written last
    "$PYTHON" ../src/generate.py "$BIN" --user-dir ../src --task SRPtranslation \
        --path "$checkpoint" --gen-subset test --batch-size 128 --beam 5 --remove-bpe \
        --sacrebleu-lowercase --reference "$BIN/raw.test.en" \
        --report "$dir/report.json" >"$dir/generate.txt.part" 2>"$dir/generate.log" \
        || { tail -n 15 "$dir/generate.log" >&2; refuse "translating with ${checkpoint#../} failed; the whole log is $(for_caller "$dir/generate.log")"; }
    mv "$dir/generate.txt.part" "$dir/generate.txt"
    touch "$dir/report.json"
}

prepare
base "${ARGS[@]}"
if [ -z "$stages" ]; then
    epochs=()
    if [ "$data" = demo ]; then
        epochs=(--epochs $COMPRESSION_EPOCHS)
        # of another base: made again
        [ ! "$CKPT/base/checkpoint_best.pt" -nt "$CKPT/compressed/compress.json" ] || rm -rf "$CKPT/compressed"
    fi
    "$PYTHON" ../src/compress.py "$BIN" --path "$CKPT/base/checkpoint_best.pt" --output "$CKPT/compressed" \
        --compression-rate $COMPRESSION_RATE ${epochs[@]+"${epochs[@]}"} --lowercase \
        --tokenizer moses --moses-no-dash-splits --bpe-codes "$BIN/code" \
        -- ${arguments[@]+"${arguments[@]}"}
    say "finished"
    exit
fi
pruning "${ARGS[@]}"
finetuning "${ARGS[@]}"
translate base checkpoint_best.pt
translate stage1 checkpoint_last.pt
translate "stage2$shape" checkpoint_last.pt
translate "$final" checkpoint_best.pt
say "report"
"$PYTHON" ../src/report.py "$CKPT/base" "$CKPT/stage1" "$CKPT/stage2$shape" "$CKPT/$final" --output "$ROOT/${CKPT#../}$shape"
"$PYTHON" show_samples.py "$CKPT/base/generate.txt" "$CKPT/$final/generate.txt"
echo
say "finished"
picture=$(find "$CKPT$shape" -maxdepth 1 -name '*.png' -newer "$CKPT/$final/report.json" | sort | head -n 1)
echo "${picture:+$(for_caller "$picture")}"
