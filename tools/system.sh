#!/bin/sh
# System packages that only some tests need; the package itself needs none. Never fails:
# what is still missing at the end is said here, and its tests say so again (in CI, where
# nothing may skip, that is their failure).
set -u
have() { command -v "$1" >/dev/null 2>&1; }
missing=
for one in valgrind redis-server openssl; do
    have "$one" || missing="$missing $one"
done
[ -n "$missing" ] || exit 0
how="sudo apt-get install$missing"
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
        $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing || true
    fi
else
    how="please install it with this system's own tool"
fi
for one in $missing; do
    have "$one" || echo "$one is missing, its tests will be left out: $how" >&2
done
exit 0
