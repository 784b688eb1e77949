#!/bin/bash
# Installs what the build needs (Debian) and shows Jetway at work: a target, a gateway, a client, a picture.
# Arguments go to `jetway demo`: --dir FOLDER, --port PORT, --once.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/install.sh build
exec cargo run --locked --quiet -- demo "$@"
