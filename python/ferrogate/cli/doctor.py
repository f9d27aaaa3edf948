"""``ferrogate doctor``: what somebody who helps you will ask for first."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from ferrogate import __version__
from ferrogate.cli.arguments import Parser
from ferrogate.cli.extras import Requirement, of_extra
from ferrogate.cli.output import write

__all__ = ["add_parsers"]

_EXTRAS = ("demo",)
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = ("memory.max", "cpu.max", "memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us")


def add_parsers(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds ``doctor`` and ``version``."""
    doctor = commands.add_parser("doctor", help="print what this installation runs on")
    doctor.set_defaults(run=_doctor)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)


def _version(_options: argparse.Namespace) -> int:
    write(f"{__version__}\n")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    lines = [
        ("ferrogate", __version__),
        ("python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("executable", sys.executable),
        ("platform", platform.platform()),
    ]
    lines += [(f"extra {extra}", ", ".join(map(_said, of_extra(extra)))) for extra in _EXTRAS]
    limits = [
        f"{name} = {text}" for name in _CGROUP_FILES if (text := _read(_CGROUP / name)) is not None
    ]
    lines.append(("cgroup limits", "; ".join(limits) or "none visible"))
    width = max(len(label) for label, _ in lines)
    write("".join(f"{label:<{width}}  {value}\n" for label, value in lines))
    return 0


def _said(needed: Requirement) -> str:
    version = needed.installed
    if version is None:
        return f"{needed.package} missing"
    wrong = "" if needed.admits(version) else f" (needs {needed.versions})"
    return f"{needed.package} {version}{wrong}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
