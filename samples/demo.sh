#!/bin/bash
# Installs what the build needs (Debian), builds, which shows how far it is, and shows Jetway at work: a target, a gateway, a client, a
# picture. Arguments go to `jetway demo`: --dir FOLDER, --listen ADDRESS, --port PORT, --once.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install.sh build
echo "Building Jetway: some minutes the first time, seconds from then on"
exec cargo run --locked -- demo "$@"
