"""Finds every CPython from 3.11 on that this machine has, whoever installed it.

Looks at pyenv's and uv's versions, PATH and the usual folders; one interpreter
for each X.Y, the newest patch that can make a virtual environment. As a
program it prints them, and why others were left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OLDEST = (3, 11)
# The figures of README are measured on 3.12; tools run there when it exists.
PREFERRED = (3, 12)

# Runs under whatever calls itself python3, so it stays in syntax that 3.6 reads.
PROBE = """
import importlib.util as u, json, sys, sysconfig
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": list(sys.version_info[:3]),
    "final": sys.version_info[3] == "final",
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "debug": hasattr(sys, "gettotalrefcount"),
    "virtual": sys.prefix != sys.base_prefix,
    "venv": all(u.find_spec(m) is not None for m in ("venv", "ensurepip")),
    "executable": sys.executable,
}))
"""


@dataclass(frozen=True, order=True)
class Python:
    """An interpreter that can build and test the package."""

    version: tuple[int, int, int]
    path: Path

    @property
    def minor(self) -> str:
        """`3.12`."""
        return "{}.{}".format(*self.version)

    @property
    def tag(self) -> str:
        """`cp312`, as wheels name it."""
        return "cp{}{}".format(*self.version)

    def __str__(self) -> str:
        return "CPython {}.{}.{}".format(*self.version) + f" ({self.path})"


@dataclass(frozen=True)
class LeftOut:
    """An interpreter that cannot be used, and why."""

    version: tuple[int, int, int]
    path: Path
    reason: str

    def __str__(self) -> str:
        return "{}.{}.{}".format(*self.version) + f" ({self.path}): {self.reason}"


def clean_environment() -> dict[str, str]:
    """The environment without what redirects an interpreter or a build elsewhere."""
    redirecting = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYENV_VERSION", "PYO3_PYTHON")
    return {name: value for name, value in os.environ.items() if name not in redirecting}


def candidates() -> Iterator[Path]:
    """Paths that may be an interpreter; nothing is started yet."""
    home = Path.home()
    folders = [Path(f) for f in os.environ.get("PATH", "").split(os.pathsep) if f]
    installations = [
        Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions",
        home / ".pyenv" / "versions",
        # A shim starts only the version that is switched on; the others lie beside it.
        *(folder.parent / "versions" for folder in folders if folder.name == "shims"),
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python")),
    ]
    for folder in dict.fromkeys(installations):
        if folder.is_dir():
            yield from sorted(folder.glob("*/bin/python3"))
    for folder in [*folders, Path("/usr/bin"), Path("/usr/local/bin")]:
        if folder.is_dir():
            names = (f.name for f in folder.glob("python3*"))
            for name in sorted(n for n in names if re.fullmatch(r"python3(\.\d+)?", n)):
                yield folder / name


def probe(path: Path) -> Python | LeftOut | None:
    """Starts `path`; None if it does not start or is older than `OLDEST`."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", PROBE],
            capture_output=True,
            check=True,
            timeout=30,
            env=clean_environment(),
        )
        facts = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # a pyenv shim without a version behind it, a broken link
    major, minor, patch = facts["version"]
    version = (major, minor, patch)
    if version < OLDEST or facts["implementation"] != "cpython" or facts["virtual"]:
        return None
    executable = Path(facts["executable"])
    if facts["free_threaded"]:
        return LeftOut(version, executable, "free-threaded; the module still says gil_used")
    if facts["debug"] or not facts["final"]:
        return LeftOut(version, executable, "not a final release build")
    if not facts["venv"]:
        hint = f"cannot make a virtual environment: apt install python{major}.{minor}-venv"
        return LeftOut(version, executable, hint)
    return Python(version, executable)


def find() -> tuple[list[Python], list[LeftOut]]:
    """The interpreters to use, oldest first, and those left out with no stand-in."""
    usable: dict[str, Python] = {}
    left_out: dict[tuple[int, int], LeftOut] = {}
    for path in dict.fromkeys(p.absolute() for p in candidates()):
        match probe(path):
            case Python() as python:
                best = usable.get(python.minor)
                if best is None or best.version < python.version:
                    usable[python.minor] = python
            case LeftOut() as other:
                left_out.setdefault(other.version[:2], other)
            case None:
                pass
    without_stand_in = [o for o in left_out.values() if "{}.{}".format(*o.version) not in usable]
    return sorted(usable.values()), without_stand_in


def select(wanted: Sequence[str] = ()) -> list[Python]:
    """The usable interpreters, or only the `wanted` minors; exits when there is none."""
    usable, left_out = find()
    for other in left_out:
        print(f"left out {other}", file=sys.stderr)
    chosen = [p for p in usable if not wanted or p.minor in wanted]
    missing = set(wanted) - {p.minor for p in chosen}
    if missing or not chosen:
        what = ", ".join(sorted(missing)) or "3.11 or newer"
        sys.exit(
            f"no usable CPython {what} here. On Debian: apt install python3 python3-venv; "
            "with pyenv: pyenv install 3.12"
        )
    return chosen


def preferred(pythons: Sequence[Python]) -> Python:
    """The interpreter for tools and benches: 3.12 where it exists, else the newest."""
    return next((p for p in pythons if p.version[:2] == PREFERRED), pythons[-1])


if __name__ == "__main__":
    for found in select(sys.argv[1:]):
        print(found)
