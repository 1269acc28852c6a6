#!/usr/bin/env bash
# Runs upstream's KVM selftests, unmodified, on the model, and compares with what is expected of each.
#
#   run.sh [--library FILE] [--selftests DIR] [NAME...]
#
# DIR has the built programs (guest_print_test, x86/sync_regs_test ...), dynamically linked: by default those of
# `privet kselftests build`. Exit status: 0 all as expected, 1 something else, 2 wrong usage.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
library=${CARGO_TARGET_DIR:-$here/../../../target}/release/libprivet_model.so
selftests=
names=()
while [ $# -gt 0 ]; do
    case $1 in
    --library | --selftests)
        [ $# -ge 2 ] || { echo "run.sh: $1 needs a path" >&2; exit 2; }
        declare "${1#--}=$2"
        shift 2
        ;;
    -*) echo "run.sh: no such option: $1 (known: --library, --selftests)" >&2; exit 2 ;;
    *) names+=("$1"); shift ;;
    esac
done
[ -f "$library" ] || { echo "run.sh: no $library: build it with cargo build --release -p privet-model" >&2; exit 2; }
library=$(realpath "$library")
if [ -z "$selftests" ]; then
    # It says what it has built, and where.
    built=$("$(dirname "$library")/privet" kselftests build)
    selftests=${built##*, }
fi

# The tests ask the CPU that they run on whose it is: the model's has to be of the same vendor.
if [ -z "${PRIVET_MODEL_PERSONALITY:-}" ] && grep -q GenuineIntel /proc/cpuinfo; then
    export PRIVET_MODEL_PERSONALITY=intel
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unexpected=0 ran=0
# One test a line: expected exit status (0 pass, 4 skip), seconds, command; see expected.txt.
while read -r status limit command; do
    case $status in '' | '#'*) continue ;; esac
    # shellcheck disable=SC2086 # a command and its arguments
    set -- $command
    if [ ${#names[@]} -gt 0 ] && [[ " ${names[*]} " != *" $1 "* ]]; then continue; fi
    ran=$((ran + 1))
    if [ ! -x "$selftests/$1" ]; then
        echo "missing  $command: not in $selftests"
        unexpected=$((unexpected + 1))
        continue
    fi
    # Some tests open files by relative paths.
    code=0
    (cd "$selftests" && LD_PRELOAD=$library timeout -k 5 "$limit" "./$1" "${@:2}") >"$scratch/output" 2>&1 </dev/null || code=$?
    if [ "$code" = "$status" ]; then
        echo "ok       $command"
    else
        echo "differs  $command: exit status $code, expected $status"
        tail -n 15 "$scratch/output" | sed 's/^/         | /'
        unexpected=$((unexpected + 1))
    fi
done <"$here/expected.txt"
if [ "$ran" = 0 ]; then
    echo "run.sh: no such test in expected.txt: ${names[*]}" >&2
    exit 2
fi
echo "$ran selftests, $unexpected not as expected"
[ "$unexpected" = 0 ]
