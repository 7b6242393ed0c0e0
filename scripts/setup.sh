#!/usr/bin/env bash
# Make the Python environment that everything else runs in.
#
# Usage: scripts/setup.sh [--help]
#   VENV=DIR     environment to make or complete (default .venv). One that exists already
#                and has torch >= 2.10 keeps its torch; only missing packages are added.
#   PYTHON=PATH  Python 3.11, 3.12 or 3.13 to make it with (default: the first that runs of
#                python3.11, python3.12, python3.13, python3)
# Running it again is cheap: a stamp in the environment says what it was completed for.
set -euo pipefail

[ "${1:-}" = --help ] && { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit 0; }
[ $# -eq 0 ] || { echo "set-up: unknown argument $1 (see --help)" >&2; exit 2; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
VENV=${VENV%/}
PYTHON=${PYTHON:-}
CHECK=scripts/check_env.py
MARK=$VENV/.srp-created  # this script made the folder and may rebuild it
STAMP=$VENV/.srp-ready   # written last: the key it was completed for

say() { echo "[set-up ${SECONDS}s] $*"; }
refuse() { echo "set-up: $*" >&2; exit 2; }
runs() { "$1" -c 'raise SystemExit(0)' >/dev/null 2>&1; }

# --- nothing to do? -------------------------------------------------------------------
ready() { [ -f "$STAMP" ] && [ "$("$VENV/bin/python" "$CHECK" key 2>/dev/null)" = "$(cat "$STAMP")" ]; }
if ready; then exit 0; fi

# One at a time. An installer that outlived an interruption holds this too, so that nothing
# is built again under its hands.
if command -v flock >/dev/null; then
    exec 9>"${TMPDIR:-/tmp}/srp-setup-$(id -u)-$(echo "$PWD/$VENV" | cksum | cut -d ' ' -f 1).lock"
    if ! flock -n 9; then
        say "another set-up of $VENV is running: waiting for it"
        flock 9
        if ready; then exit 0; fi
    fi
fi

# --- which Python ---------------------------------------------------------------------
# Version, whether Python.h is there, whether ensurepip is. Must parse on any Python.
PROBE='import os, sys, sysconfig
try:
    import ensurepip; pip = "pip"
except ImportError:
    pip = "nopip"
header = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print("%d.%d.%d %s %s" % (sys.version_info[:3] + ("header" if header else "noheader", pip)))'

supported() { case $1 in 3.11.*|3.12.*|3.13.*) true ;; *) false ;; esac; }

# Sets BASE and BASE_INFO. A candidate must really run: version managers put stand-ins on
# PATH that only print an error.
find_python() {
    local candidate info seen= candidates=(python3.11 python3.12 python3.13 python3)
    [ -z "$PYTHON" ] || candidates=("$PYTHON")
    BASE=
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        info=$("$candidate" -c "$PROBE" 2>/dev/null) || { seen+="${seen:+, }$candidate that does not run"; continue; }
        if supported "$info"; then
            # one without headers or pip serves only if nothing better comes
            [ -n "$BASE" ] || { BASE=$candidate BASE_INFO=$info; }
            case $info in *" header pip") BASE=$candidate BASE_INFO=$info; return ;; esac
        else
            seen+="${seen:+, }$candidate ${info%% *}"
        fi
    done
    [ -n "$BASE" ] || refuse "Python 3.11, 3.12 or 3.13 is needed, but found ${seen:-no ${PYTHON:-python3}};" \
        "install one (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev) or name it with PYTHON=/path/to/python"
}

# fairseq-fixed has a ready-built package for Python 3.12 on Linux x86_64 only.
need_compiler() {  # need_compiler "3.11.7 header pip"
    case "$1 $(uname -sm)" in 3.12.*"Linux x86_64") return 0 ;; esac
    local compiler works=
    for compiler in ${CXX:-c++ g++ clang++}; do
        if "$compiler" -x c++ -fsyntax-only - <<<'int main() { return 0; }' >/dev/null 2>&1; then works=$compiler; break; fi
    done
    [ -n "$works" ] || refuse "no working C++ compiler found (tried ${CXX:-c++, g++, clang++}), but fairseq's extensions are compiled on Python ${1%% *};" \
        "install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
    case $1 in *noheader*) refuse "Python ${1%% *} has no C headers (Python.h), but fairseq's extensions are compiled with them;" \
        "install them (Debian, Ubuntu: apt install python${1%.*}-dev)" ;; esac
    # only clang++ there: what fairseq's build would call otherwise does not exist
    if [ "$works" = clang++ ]; then export CXX=clang++ CC=clang; fi
}

UV=$(command -v uv || true)

create() {
    find_python
    need_compiler "$BASE_INFO"
    local with_pip=
    case $BASE_INFO in *nopip)
        [ -n "$UV" ] || refuse "Python ${BASE_INFO%% *} has no ensurepip, so an environment made with it has no pip;" \
            "install it (Debian, Ubuntu: apt install python$(echo "$BASE_INFO" | cut -d. -f1,2)-venv)"
        with_pip=--without-pip ;;
    esac
    say "creating $VENV with $BASE (${BASE_INFO%% *})"
    mkdir -p "$VENV"
    : >"$MARK"  # first, so that whatever is left of an interruption is known to be ours
    "$BASE" -m venv $with_pip "$VENV" || { echo "set-up: $BASE -m venv $VENV failed (above)" >&2; exit 1; }
}

# pip's settings hold for uv too (uv knows only its own names for them).
install() {  # install WHAT ARGUMENT...
    local what=$1 start=$SECONDS log
    shift
    say "installing $what ..."
    log=$(mktemp)
    # with CUDA_HOME set, fairseq would build CUDA extensions that nothing here uses
    if [ -n "$UV" ] && env -u CUDA_HOME \
        UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" \
        UV_INDEX_URL="${UV_INDEX_URL:-${PIP_INDEX_URL:-https://pypi.org/simple}}" \
        UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-${PIP_EXTRA_INDEX_URL:-}}" \
        UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" \
        "$UV" pip install -q --python "$VENV/bin/python" "$@" >"$log" 2>&1; then :
    # pip also when uv fails: pip may have a configuration file that uv does not read
    elif env -u CUDA_HOME "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@" >>"$log" 2>&1; then :
    else
        tail -n 25 "$log" >&2
        rm -f "$log"
        echo "set-up: installing $what failed (above: the end of the installer's output); run it again to continue" >&2
        exit 1
    fi
    rm -f "$log"
    say "installed $what in $((SECONDS - start)) s"
}

# --- make, rebuild, or keep -----------------------------------------------------------
own=
if [ -e "$MARK" ]; then
    own=--own
    # Without a stamp it was interrupted, perhaps inside a package: pip would take such a
    # package for installed. A rebuild is short, since what was fetched and built is cached.
    if [ ! -f "$STAMP" ] || ! runs "$VENV/bin/python"; then
        say "$VENV is half-made: building it again"
        rm -rf "$VENV"
        create
    fi
elif [ ! -e "$VENV" ] || { [ -d "$VENV" ] && [ -z "$(ls -A "$VENV")" ]; }; then
    own=--own
    create
elif ! runs "$VENV/bin/python"; then
    refuse "$VENV exists, but $VENV/bin/python does not run; remove $VENV or choose another environment with VENV=DIR"
else
    say "completing the existing environment $VENV"
fi

"$VENV/bin/python" "$CHECK" refuse || exit 2

missing() { "$VENV/bin/python" "$CHECK" missing "requirements/$1.txt" $own; }
case $(missing run) in *fairseq-fixed==*) need_compiler "$("$VENV/bin/python" -c "$PROBE")" ;; esac
rm -f "$STAMP"

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# shellcheck disable=SC2046  # one word a requirement
{
    [ -n "$own" ] || "$VENV/bin/python" "$CHECK" constraints >"$constraints"
    if [ -n "$(missing build)" ]; then
        install "torch and what fairseq is built with" -c "$constraints" $(missing build)
    fi
    # the torch that is there now must not move while fairseq's requirements are resolved
    "$VENV/bin/python" "$CHECK" constraints >"$constraints"
    case $(missing run)$(missing test) in
        "") ;;
        *fairseq-fixed==*) install "fairseq and tools (compiling can take two minutes)" --no-build-isolation -c "$constraints" $(missing run) $(missing test) ;;
        *) install "tools" --no-build-isolation -c "$constraints" $(missing run) $(missing test) ;;
    esac
}

"$VENV/bin/python" "$CHECK" imports 2>"$constraints" || {
    tail -n 3 "$constraints" >&2
    echo "set-up: $VENV is complete, but importing from it fails (above)${own:+; remove it and run this again}" >&2
    exit 1
}
"$VENV/bin/python" "$CHECK" key >"$STAMP.part"
mv "$STAMP.part" "$STAMP"
say "$VENV is ready"
