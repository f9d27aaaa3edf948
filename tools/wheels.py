"""Builds the wheels and installs them where they are needed.

`all`: one for every CPython, into dist/.
`dev`, `demo`, `bench`: one, installed in that environment; `tools`: the environment alone.
`test X.Y`, `failpoints`, `integrations`: one, installed beside nothing but what its tests need,
as the lock file says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from envs import MAIN, build_wheel, install, main_env, make_env, side_env
from pythons import preferred, select
from stages import ROOT

MATURIN = MAIN / "bin" / "maturin"


def test_env(name: str) -> Path:
    """Where the interpreter of `.venvs/NAME` is, once made."""
    return ROOT / ".venvs" / name / "bin" / "python"


def main(what: str, *minors: str) -> None:
    """Does what the module's text says."""
    if what in ("dev", "demo", "bench"):
        python, inside = main_env() if what == "dev" else side_env(what)
        install(inside, build_wheel(inside.parent / "maturin", python))
        return
    main_env()
    if what == "tools":
        return
    pythons = select(minors or os.environ.get("FERROGATE_PYTHONS", "").split())
    if what == "all":
        for python in pythons:
            print(build_wheel(MATURIN, python))
    elif what == "test":
        for python in pythons:
            inside = make_env(test_env(python.minor).parent.parent, python, ["test"])
            install(inside, build_wheel(MATURIN, python))
    elif what == "failpoints":
        python = preferred(pythons)
        inside = make_env(test_env(what).parent.parent, python, ["test"])
        install(inside, build_wheel(MATURIN, python, failpoints=True))
    elif what == "integrations":
        python = preferred(pythons)
        inside = make_env(test_env(what).parent.parent, python, [what])
        install(inside, build_wheel(MATURIN, python))
    else:
        sys.exit(
            f"expected all, bench, demo, dev, failpoints, integrations, test or tools, not {what!r}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
