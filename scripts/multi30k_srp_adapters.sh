#!/usr/bin/env bash
# Finetune the pruned Multi30k model with adapters instead of all weights.
#
# Usage: multi30k_srp_adapters.sh [ARGUMENT of src/finetuning.py ...]
#   NAME=NAME    folder of the run in checkpoints/multi30k (default splora-8)
#   LR=RATE      highest learning rate (default 1e-2: five times that of all weights)
# Without arguments, SPLoRA of rank 8; with some, those say which adapters:
#   NAME=splopa-64 multi30k_srp_adapters.sh --adapter splopa --adapter-prototypes 64
# Needs checkpoints/multi30k/stage2 (multi30k_srp_two_staged_pruning.sh). Writes the run's
# checkpoints and adapters.pt, the adapters of the best one alone.
# An interrupted run continues from its last checkpoint when it is started again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

NAME=${NAME:-splora-8}
LR=${LR:-1e-2}
DROPOUT=0.1
UPDATES=2600  # the learning rate falls to zero: 20 epochs of 130
MAX_EPOCH=20
case " $* " in *" --adapter "* | *" --adapter="*) ;; *) set -- --adapter splora --adapter-rank 8 "$@" ;; esac
find_python

step ../checkpoints/multi30k/$NAME ../checkpoints/multi30k/stage2/checkpoint_last.pt "$PYTHON" ../src/finetuning.py \
    ../data-bin/multi30k.de-en "${MULTI30K[@]}" \
    --lr $LR --lr-scheduler polynomial_decay --warmup-updates 200 --total-num-update $UPDATES \
    --dropout $DROPOUT \
    --max-epoch $MAX_EPOCH --validate-interval 2 \
    --save-dir ../checkpoints/multi30k/$NAME \
    --pretrained-model ../checkpoints/multi30k/stage2/checkpoint_last.pt "$@"

"$PYTHON" ../src/export_adapters.py --path ../checkpoints/multi30k/$NAME/checkpoint_best.pt \
    --output ../checkpoints/multi30k/$NAME/adapters.pt
