#!/bin/sh
# Builds the gateway and the bench in release mode and runs it; arguments go to the bench (see README.md).
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cargo build --locked --quiet --release --bin jetway
# `cargo bench` puts a program with the features of the test dependencies in its place, so the real one is kept aside.
mkdir -p "$target/bench"
cp "$target/release/jetway" "$target/bench/jetway"
exec cargo bench --locked --quiet --bench relay -- --jetway "$(cd "$target" && pwd)/bench/jetway" "$@"
