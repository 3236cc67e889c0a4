# Shared by the scripts: where things are, how steps are shown, stamps keyed by content.
# shellcheck shell=bash disable=SC2034

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
BUILD="$ROOT/_build"
STAMPS="$BUILD/setup"
VENVS="$BUILD/venvs"
export CARGO_TARGET_DIR="$BUILD/rust"
export LC_ALL=C.UTF-8

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' PLAIN=$'\e[0m'; else BOLD='' DIM='' RED='' PLAIN=''; fi

say()  { printf '%s\n' "$*" >&2; }
fail() { printf '%s\n' "${RED}error:${PLAIN} $*" >&2; exit 1; }

# Hash of the contents of files and folders (tracked or not; build products excluded), for stamps.
content_hash() {
    find "$@" -type f ! -path '*/__pycache__/*' ! -path '*/_proto/*' ! -name '*.pyc' -print0 2>/dev/null |
        sort -z | xargs -0 -r sha256sum | sha256sum | cut -c1-32
}

# step NAME KEY "WHAT (size, time)" FUNCTION: runs FUNCTION unless NAME was done for this KEY. The stamp is written
# after the work, so an interrupted step simply runs again.
step() {
    local name=$1 key=$2 what=$3 work=$4 started
    if [ "$(cat "$STAMPS/$name" 2>/dev/null)" = "$key" ]; then
        return 0
    fi
    say "${BOLD}== $what${PLAIN}"
    started=$(date +%s)
    "$work"
    mkdir -p "$STAMPS"
    printf '%s\n' "$key" >"$STAMPS/$name.new" && mv "$STAMPS/$name.new" "$STAMPS/$name"
    say "${DIM}   done in $(($(date +%s) - started)) s${PLAIN}"
}

# Puts a file in place by rename: a running node keeps the file it has mapped, and nobody sees half a file.
install_by_rename() {
    local from=$1 to=$2
    mkdir -p "$(dirname "$to")"
    if ! cmp -s "$from" "$to"; then
        cp "$from" "$to.new.$$" && mv -f "$to.new.$$" "$to"
    fi
}

# One run at a time of what changes the same files; the second waits. Ends with the process.
alone() {
    command -v flock >/dev/null || return 0
    mkdir -p "$STAMPS"
    exec 9>"$STAMPS/.$1.lock"
    flock -n 9 || { say "   waiting for another run of $1"; flock 9; }
}
