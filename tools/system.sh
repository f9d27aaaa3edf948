#!/bin/sh
# System packages that only some tests need; the package itself needs none.
set -eu
missing=
command -v valgrind >/dev/null 2>&1 || missing="$missing valgrind"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "please install:$missing"
elif [ "$(id -u)" = 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
elif sudo -n true 2>/dev/null; then
    sudo -n apt-get update -qq && sudo -n apt-get install -y -qq $missing
else
    echo "please run: sudo apt-get install$missing"
fi
