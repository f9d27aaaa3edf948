"""What a user installs, and what an import does."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ferrogate

INSTALLED = os.environ.get("FERROGATE_INSTALLED") == "1"


def child(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in an interpreter of its own; it must end well and say nothing amiss."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The wheel's files as the installer recorded them, without compiled caches."""
    recorded = importlib.metadata.files("ferrogate") or []
    names = [f.as_posix() for f in recorded if "__pycache__" not in f.parts]
    if not any(n.startswith("ferrogate/") for n in names):
        assert not INSTALLED, "the installed package has no record of its files"
        pytest.skip("needs the built wheel, this is an editable build: `make test-python`")
    return names


def test_the_wheel_carries_the_package_and_nothing_else(files: list[str]) -> None:
    tail = importlib.machinery.EXTENSION_SUFFIXES[0]
    inside = [f for f in files if f.startswith("ferrogate/")]
    assert f"ferrogate/_core{tail}" in inside
    assert "ferrogate/py.typed" in inside
    assert "ferrogate/_core.pyi" in inside
    assert "ferrogate/__init__.py" in inside
    kinds = {Path(f).suffix for f in inside}
    assert kinds <= {".py", ".pyi", ".so", ".typed"}, sorted(inside)
    assert sum(f.endswith(".so") for f in inside) == 1

    outside = [f for f in files if not f.startswith("ferrogate/")]
    version = importlib.metadata.version("ferrogate")
    stray = [f for f in outside if not f.startswith(f"ferrogate-{version}.dist-info/")]
    assert [f for f in stray if not f.endswith("/bin/ferrogate")] == []


def test_the_wheel_carries_its_licences(files: list[str]) -> None:
    licences = {Path(f).name for f in files if "/licenses/" in f}
    assert {"LICENSE-APACHE", "LICENSE-MIT"} <= licences


def test_nothing_else_has_to_be_installed() -> None:
    metadata = importlib.metadata.metadata("ferrogate")
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT OR Apache-2.0"
    required = importlib.metadata.requires("ferrogate") or []
    assert [r for r in required if "extra ==" not in r] == []


def test_the_suite_runs_against_the_installed_package() -> None:
    if INSTALLED:
        assert "site-packages" in Path(ferrogate.__file__).parts


def test_public_names_are_sorted_and_exist() -> None:
    assert list(ferrogate.__all__) == sorted(ferrogate.__all__)
    for name in ferrogate.__all__:
        assert getattr(ferrogate, name) is not None


def test_an_import_starts_no_thread_and_opens_no_file() -> None:
    child(
        """
import os, threading
def state():
    tasks = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return tasks, open_files, threading.active_count()
before = state()
import ferrogate
after = state()
assert after == before, (before, after)
"""
    )


def test_an_import_loads_nothing_outside_the_standard_library() -> None:
    child(
        """
import sys
before = set(sys.modules)
import ferrogate
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
strangers = loaded - set(sys.stdlib_module_names) - {"ferrogate"}
assert not strangers, strangers
"""
    )


def test_an_import_is_quick() -> None:
    """asyncio and typing come with it and take most of the time: less than 0.1 s, and not 1.

    Processor time is counted in hundredths, and twice as much of it may pass on a busy machine.
    """

    def seconds(code: str) -> float:
        best = float("inf")
        for _ in range(5):
            # Processor time, because the machine may be busy with something else.
            begin = os.times()
            child(code)
            end = os.times()
            used = end.children_user - begin.children_user
            best = min(best, used + end.children_system - begin.children_system)
        return best

    took = seconds("import ferrogate") - seconds("import asyncio, typing, dataclasses, datetime")
    assert took < 0.2, f"{took:.3f} s more than asyncio alone"


def test_a_second_interpreter_gets_a_clear_error() -> None:
    """State of the first would be shared with the second, so it may not load."""
    said = child(
        """
import sys
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    run = interpreters.run_string
else:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
import ferrogate
other = interpreters.create()
failure = run(other, '''
try:
    import ferrogate
except ImportError as error:
    print("refused:", error, flush=True)
else:
    print("imported", flush=True)
''')
assert failure is None, failure
interpreters.destroy(other)
import ferrogate._core
"""
    ).stdout
    assert said.startswith("refused: "), said
    assert "interpreter" in said
