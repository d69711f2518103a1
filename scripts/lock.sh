#!/bin/sh
# Pin what the image installs: docker/requirements.txt gets what featherlb needs to run, and
# docker/build-requirements.txt what it takes to build it, each with its version and the hashes of
# all its files on the package index. Usage: scripts/lock.sh
set -eu
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install --quiet pip-tools
sed -n 's/^requires = \[\(.*\)\]$/\1/p' pyproject.toml | tr -d '"' | tr ',' '\n' >"$tools/build.in"

lock() {
    "$tools/bin/pip-compile" --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
        --no-emit-options --no-annotate --no-header --output-file "$2" "$1"
    sed -i "1i # Written by \`make lock\`; scripts/check_pins.py checks it." "$2"
}
lock pyproject.toml docker/requirements.txt
lock "$tools/build.in" docker/build-requirements.txt
