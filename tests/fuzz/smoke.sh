#!/bin/sh
# Runs every fuzz target for a few seconds on top of its corpus: tests/fuzz/smoke.sh [seconds each, 5 if not given]
#
# Needs cargo-fuzz (`cargo install cargo-fuzz --locked`) and no nightly toolchain. Inputs that are found on the way
# are thrown away; one that breaks a promise is kept in tests/fuzz/artifacts/ and belongs into regressions/.
set -eu
seconds=${1:-5}
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT INT TERM

# Built once and without a sanitizer: the core has no unsafe code, and the oracles are what is being asked.
fuzz() {
    command=$1
    shift
    cargo fuzz "$command" --fuzz-dir tests/fuzz --dev --sanitizer none "$@"
}
fuzz build
for target in $(cargo fuzz list --fuzz-dir tests/fuzz); do
    echo "== $target"
    mkdir -p "$found/$target"
    set -- "$found/$target"
    for kind in corpus regressions; do
        if [ -d "tests/fuzz/$kind/$target" ]; then
            set -- "$@" "tests/fuzz/$kind/$target"
        fi
    done
    fuzz run "$target" "$@" -- -max_total_time="$seconds" -verbosity=0 -print_final_stats=0
done
