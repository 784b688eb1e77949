#!/bin/bash
# Every check and every test, on a machine that has nothing but Rust: installs what it needs first (tests/install.sh).
#
# CI=true runs everything or fails. Elsewhere, what needs root (installing, xrdp) or tools that take minutes to build
# (cargo-deny, cargo-fuzz: tests/install.sh ci) is skipped where that is missing, and the closing summary says so.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

summary=()
failures=0

# stage NAME COMMAND...: runs one stage and notes how it ended and how long it took.
stage() {
    local name=$1 start=$SECONDS result=passed
    shift
    printf '\n=== %s\n' "$name"
    if ! "$@"; then
        result=FAILED
        failures=$((failures + 1))
    fi
    summary+=("$(printf '%-8s %5d s  %s' "$result" $((SECONDS - start)) "$name")")
}

# skip NAME WHY: notes a stage that this machine cannot run; in CI there is no such thing.
skip() {
    if [ "${CI:-}" = true ]; then
        stage "$1" false
        summary+=("                  $2")
    else
        summary+=("$(printf '%-8s %5s    %s: %s' skipped - "$1" "$2")")
    fi
}

has() { command -v "$1" >/dev/null; }
is_root() { [ "$(id -u)" = 0 ]; }
can_install() { is_root || sudo -n true 2>/dev/null; }

# Without the demo (with a test, so that dependencies are those of the stage before), and stages and parsers without CredSSP.
switched_off() {
    cargo clippy --locked --no-default-features --lib --bins --test fuzz_replay -- -D warnings &&
        cargo clippy --locked -p jetway-stage -- -D warnings
}
documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps; }

parts=()
[ "${CI:-}" = true ] && parts+=(ci)
tests='all()'
if can_install || [ "${CI:-}" = true ]; then
    parts+=(peers)
    stage "install what is missing" tests/install.sh "${parts[@]}"
else
    skip "install what is missing" "needs root"
fi
if ! has xfreerdp || ! has xfreerdp3 || ! has freerdp-shadow-cli || ! has Xvfb; then
    tests='not binary(peers)'
    skip "peer tests" "FreeRDP and Xvfb are not installed: run tests/install.sh peers"
else
    if ! is_root; then
        tests="$tests & not (binary(peers) & test(/xrdp|^agent::|^gnome::|^units::|^readme::|^audit::|^monitoring::a_store/))"
        skip "peer tests with xrdp, namespaces or units" "xrdp logs users on, which needs root, as namespaces do"
    fi
    peers=${XDG_CACHE_HOME:-$HOME/.cache}/jetway-peers
    if [ ! -x "$peers/aardwolf/bin/python" ]; then
        tests="$tests & not (binary(peers) & test(aardwolf))"
        skip "peer tests with aardwolf" "it is not installed: run tests/install.sh peers"
    fi
    if [ ! -x "$peers/guacd/run" ]; then
        tests="$tests & not (binary(peers) & test(guacd))"
        skip "peer tests with guacd" "it is not unpacked: run tests/install.sh peers"
    fi
    if ! /usr/bin/python3 -c "import cryptography" 2>/dev/null; then
        tests="$tests & not (binary(peers) & test(/^samples::|^readme::/))"
        skip "peer tests with mint_token.py" "Python's cryptography is not installed: run tests/install.sh peers"
    fi
    if ! has chromium || ! has certutil || [ ! -d "$peers/node/node_modules/playwright-core" ]; then
        tests="$tests & not (binary(peers) & test(/^pages::/))"
        skip "peer tests with Chromium" "it is not installed: run tests/install.sh peers"
    fi
    if [ ! -x "$peers/websockets/bin/python" ] || [ ! -d "$peers/node/node_modules/wscat" ]; then
        tests="$tests & not (binary(peers) & test(/^meets::/))"
        skip "peer tests with websockets and wscat" "they are not installed: run tests/install.sh peers"
    fi
fi

stage "formatting" cargo fmt --all --check
stage "lints" cargo clippy --locked --workspace --all-targets -- -D warnings
stage "lints without the demo and without CredSSP" switched_off
stage "documentation" documentation
if has cargo-deny; then
    stage "dependencies: bans, licences, sources" cargo deny --locked check bans licenses sources
    # The advisories are the only part that needs a fresh copy of a foreign database.
    if timeout 60 cargo deny fetch db >/dev/null 2>&1; then
        stage "dependencies: advisories" cargo deny --locked check advisories
    else
        summary+=("$(printf '%-8s %5s    %s' skipped - "dependencies: advisories: the RustSec database cannot be reached from here")")
    fi
else
    skip "dependencies" "cargo-deny is not installed: run tests/install.sh ci"
fi
stage "build of the tests" cargo nextest run --locked --workspace --no-run
stage "tests" cargo nextest run --locked --workspace -E "$tests"
stage "documentation tests" cargo test --locked --workspace --doc
if [ -x tests/fuzz/smoke.sh ]; then
    if has cargo-fuzz; then
        stage "fuzz targets, a short run of each" tests/fuzz/smoke.sh
    else
        skip "fuzz targets" "cargo-fuzz is not installed: run tests/install.sh ci"
    fi
fi

printf '\n=== Summary\n'
printf '%s\n' "${summary[@]}"
if [ "$failures" -gt 0 ]; then
    echo "$failures stage(s) failed"
    exit 1
fi
echo "All passed"
