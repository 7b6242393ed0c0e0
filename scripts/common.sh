# Sourced by the scripts beside it: repository root, Python, checks, downloads, steps.
# shellcheck shell=bash
set -euo pipefail

SCRIPT=${BASH_SOURCE[1]:-$0}
CALLED_FROM=$PWD
# The commands are written with ../src, ../data-bin and ../checkpoints, so they run from here.
cd "$(dirname "${BASH_SOURCE[0]}")"
ROOT=$(cd .. && pwd)
SCRIPT=$PWD/$(basename "$SCRIPT")

refuse() { echo "$(basename "$SCRIPT"): $*" >&2; exit 2; }
export SRP_BEGAN=${SRP_BEGAN:-$(date +%s)}  # scripts that run others share one clock
say() {
    local elapsed=$(($(date +%s) - SRP_BEGAN))
    echo "[$((elapsed / 60))m$(printf %02d $((elapsed % 60)))s] $*"
}

# Print the comment at the top of the calling script when --help is among the arguments.
help_if_asked() {
    local argument
    for argument in "$@"; do
        case $argument in -h | --help)
            sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$SCRIPT"
            exit 0 ;;
        esac
    done
}

# Path that the caller meant relative to where the caller was.
from_caller() { case $1 in /*) echo "$1" ;; *) echo "$CALLED_FROM/$1" ;; esac; }

# Path as a caller elsewhere can open it.
for_caller() { echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; }

# Sets raw_dir to the folder of --raw-dir DIR, empty without one, and REST to the other
# arguments.
take_raw_dir() {  # take_raw_dir ARGUMENT...
    raw_dir=
    REST=()
    while [ $# -gt 0 ]; do
        case $1 in
            --raw-dir) [ -n "${2:-}" ] || refuse "--raw-dir needs a folder"; raw_dir=$2; shift ;;
            --raw-dir=*) raw_dir=${1#*=}; [ -n "$raw_dir" ] || refuse "--raw-dir needs a folder" ;;
            *) REST+=("$1") ;;
        esac
        shift
    done
    [ -z "$raw_dir" ] || raw_dir=$(from_caller "$raw_dir")
    [ -z "$raw_dir" ] || [ -d "$raw_dir" ] || refuse "--raw-dir $raw_dir is not a folder"
}

# Sets PYTHON: the caller's choice, else the environment of `make setup`, else python3.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        case $PYTHON in */*) PYTHON=$(from_caller "$PYTHON") ;; esac
    elif [ -x "$ROOT/.venv/bin/python" ]; then
        PYTHON=$ROOT/.venv/bin/python
    else
        PYTHON=python3
    fi
    "$PYTHON" -c '' 2>/dev/null || refuse "$PYTHON does not run; run 'make setup' first, or name a Python with PYTHON=PATH"
    "$PYTHON" check_env.py usable || exit 2
    export PYTHON
    # one device, as the commands are meant; several are for those who ask
    export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
}

# --- steps that are done once and resume ------------------------------------------------

DISPOSABLE=  # set by a script whose models may be removed to be made again; never inherited

# One line an epoch out of fairseq's log on standard input.
epoch_lines() {
    local line text
    while IFS= read -r line; do
        case $line in *"| valid | epoch "*)
            text="epoch $((10#$(sed -E 's/.*\| epoch 0*([0-9]+) .*/\1/' <<<"$line")))"
            [[ $line =~ \|\ loss\ ([0-9.e+-]+|nan|inf) ]] && text+="  valid loss ${BASH_REMATCH[1]}"
            [[ $line =~ \|\ bleu\ ([0-9.]+) ]] && text+="  BLEU ${BASH_REMATCH[1]}"
            say "$text" ;;
        esac
    done
}

# Run COMMAND; with SRP_QUIET=1 its output goes to LOG and one line an epoch is shown.
run() {  # run LOG COMMAND...
    local log=$1 status
    shift
    if [ -z "${SRP_QUIET:-}" ]; then
        "$@"
        return
    fi
    "$@" 2>&1 | tee -a "$log" | epoch_lines || {
        status=${PIPESTATUS[0]}
        tail -n 15 "$log" >&2
        echo "$(basename "$SCRIPT"): failed; the whole log is $(for_caller "$log")" >&2
        return "$status"
    }
}

# Run the COMMAND that makes the model in DIR out of INPUT, unless it has finished already.
# An interrupted one is run again: fairseq continues from its last checkpoint.
step() {  # step DIR INPUT COMMAND...
    local dir=$1 input=$2 key status
    shift 2
    [ -e "$input" ] || refuse "${input#../} is missing: run the step that makes it first"
    key=$(printf '%q ' "$@")
    key=${key//"$(printf %q "$PYTHON")"/python}  # the same model, whichever environment
    if [ -e "$dir/.started" ]; then
        if [ -n "${DISPOSABLE:-}" ]; then
            if [ "$input" -nt "$dir/.started" ] || [ "$(cat "$dir/.started")" != "$key" ]; then
                say "${dir#../} was made from something else: starting it over"
                rm -rf "$dir/.old" "$dir.part"
                mv "$dir" "$dir.part"
                mkdir "$dir"
                mv "$dir.part" "$dir/.old"
            fi
        elif [ "$input" -nt "$dir/.started" ]; then
            refuse "${input#../} is newer than ${dir#../}, which was made from it; move ${dir#../} away to make it again"
        fi
    fi
    if [ -e "$dir/checkpoint_last.pt" ] && [ -e "$dir/.finished" ] && [ "$(cat "$dir/.finished")" = "$key" ]; then
        say "${dir#../}: finished already"
        return
    fi
    say "${dir#../}"
    mkdir -p "$dir"
    rm -f "$dir/.finished"
    [ -e "$dir/.started" ] || printf '%s' "$key" >"$dir/.started"
    run "$dir/train.log" "$@" || {
        status=$?
        # refused before any work: what was there is still good
        if [ "$status" = 2 ] && [ -d "$dir/.old" ]; then
            cat "$dir/train.log" >>"$dir/.old/train.log" 2>/dev/null || true
            mv "$dir/.old" "$dir.part"
            rm -rf "$dir"
            mv "$dir.part" "$dir"
        fi
        return "$status"
    }
    printf '%s' "$key" >"$dir/.finished.part"
    mv "$dir/.finished.part" "$dir/.finished"
    rm -rf "$dir/.old"
}

# --- trainings ----------------------------------------------------------------------------

# Options of every training, and of those of one corpus.
TRAINING=(--user-dir ../src --task SRPtranslation --share-decoder-input-output-embed
    --optimizer srp_adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.0001
    --criterion srp --label-smoothing 0.1
    --eval-bleu --eval-bleu-detok moses --eval-bleu-remove-bpe
    --best-checkpoint-metric bleu --maximize-best-checkpoint-metric)
MULTI30K=(--arch srp_multi30k_de_en "${TRAINING[@]}" --max-tokens 4096
    --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --no-epoch-checkpoints)
IWSLT=(--arch srp_iwslt_de_en "${TRAINING[@]}" --max-tokens 4096
    --eval-bleu-args '{"beam": 5, "max_len_a": 1.2, "max_len_b": 10}' --eval-bleu-print-samples)
DEMO=(--arch srp_demo_de_en "${TRAINING[@]}" --max-tokens 2048
    --eval-bleu-args '{"beam": 1, "max_len_a": 1.2, "max_len_b": 10}' --no-epoch-checkpoints)

# --- data --------------------------------------------------------------------------------

# fairseq's binary form of a folder that preprocess.py wrote.
binarize() {  # binarize TEXT DEST [ARGUMENT of fairseq-preprocess ...]
    "$PYTHON" preprocess.py --binarize-only --out "$1" --data-bin "$2" -- "${@:3}"
}

sha256() { "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

# Whether a packed file is whole, as far as it can tell itself.
whole() {
    case $1 in
        *.tgz | *.tgz.part) tar -tzf "$1" >/dev/null 2>&1 ;;
        *.zip | *.zip.part) "$PYTHON" -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2>/dev/null ;;
        *) gzip -t <"$1" 2>/dev/null ;;
    esac
}

# Append to FILE what it lacks of URL. Status 3: what is there cannot be continued.
fetch() {  # fetch URL FILE
    local status=0
    if command -v curl >/dev/null; then
        curl -fsSL --retry 3 --connect-timeout 30 -C - -o "$2" "$1" || status=$?
        case $status in
            33 | 36) return 3 ;;  # no continuing on this server, or not from here
            22) if [ -s "$2" ] && at_end "$1" "$2"; then return 3; fi ;;
        esac
    elif command -v wget >/dev/null; then
        wget -q -c --tries=3 --timeout=30 -O "$2" "$1" || status=$?
    else
        refuse "neither curl nor wget found: install one, or download $1 yourself and give its folder with --raw-dir"
    fi
    return $((status ? 1 : 0))
}

# Whether FILE is as long as what the server has: asking for more is an error then.
at_end() {  # at_end URL FILE
    local size
    size=$(curl -fsSLI "$1" 2>/dev/null | tr -d '\r' | awk 'tolower($1) == "content-length:" { n = $2 } END { print n }')
    [ -n "$size" ] && [ "$(wc -c <"$2")" -ge "$size" ]
}

# Download URL to FILE: into FILE.part, which a later call continues; FILE appears when it
# is whole and has the right SHA-256. Where no SHA256 is given, the first whole download
# is recorded in FILE.sha256, and anything that comes after is held against that.
download() {  # download URL FILE [SHA256]
    local url=$1 file=$2 expected=${3:-} part=$2.part try status found
    [ -n "$expected" ] || expected=$(cat "$file.sha256" 2>/dev/null || true)
    if [ -e "$file" ]; then
        found=$(sha256 "$file")
        if whole "$file" && [ "${expected:-$found}" = "$found" ]; then
            echo "$found" >"$file.sha256"
            return
        fi
        say "$file is damaged: downloading it again"
        rm -f "$file"
    fi
    mkdir -p "$(dirname "$file")"
    # a second try from nothing, when what was continued turns out not to fit
    for try in 1 2; do
        status=0
        if ! { [ -e "$part" ] && whole "$part"; }; then
            say "downloading $url"
            fetch "$url" "$part" || status=$?
        fi
        if [ "$status" = 1 ]; then
            echo "$(basename "$SCRIPT"): downloading $url failed; run this again to continue," \
                "or give a folder that holds the file with --raw-dir" >&2
            return 1
        fi
        if [ "$status" = 0 ] && whole "$part"; then
            found=$(sha256 "$part")
            if [ "${expected:-$found}" = "$found" ]; then
                echo "$found" >"$file.sha256"
                mv "$part" "$file"
                return
            fi
        fi
        rm -f "$part"
    done
    echo "$(basename "$SCRIPT"): $url does not give the file that is wanted${expected:+ (SHA-256 $expected)}; nothing was kept" >&2
    return 1
}
