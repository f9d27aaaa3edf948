"""`make lock`: resolves requirements/*.in into lock files with exact versions and hashes.

Universal for every Python from 3.11 on and every platform; nothing in them says
where they were made.
"""

from __future__ import annotations

import sys

from envs import LOCKS, call, make_env
from pythons import preferred, select
from stages import ROOT

COMPILE = [
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
    *("--custom-compile-command", "make lock"),
]


def main(options: list[str]) -> None:
    """Compiles every set."""
    inside = make_env(ROOT / ".venv-lock", preferred(select()), ["lock"])
    for wanted in sorted(LOCKS.glob("*.in")):
        names = [wanted.name, "-o", wanted.with_suffix(".txt").name]
        # In that folder, so that comments name the files and not where they lie.
        call([inside.parent / "uv", *COMPILE, *options, *names], cwd=LOCKS)


if __name__ == "__main__":
    main(sys.argv[1:])
