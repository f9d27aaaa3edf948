#!/bin/sh
# System packages that only some tests need; the package itself needs none. Never fails:
# what is still missing at the end is said here, and its tests say so again (in CI, where
# nothing may skip, that is their failure).
set -u
have() { command -v "$1" >/dev/null 2>&1; }
have valgrind && exit 0
how="sudo apt-get install valgrind"
if have apt-get; then
    if [ "$(id -u)" = 0 ]; then
        root=
    elif sudo -n true 2>/dev/null; then
        root="sudo -n"
    else
        root=none
    fi
    if [ "$root" != none ]; then
        # An index that cannot be fetched may be fresh enough all the same.
        $root apt-get update -qq || true
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq valgrind || true
    fi
else
    how="please install it with this system's own tool"
fi
have valgrind || echo "valgrind is missing, the memory check will be left out: $how" >&2
exit 0
