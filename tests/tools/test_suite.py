"""The suite's own rules: what it builds, what may skip, what it does without a package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def said_by(code: str) -> str:
    """What a program that imports the tools prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TOOLS)!r})\n{code}"],
        capture_output=True,
        text=True,
        # What it runs is not to be counted among what runs here.
        env={name: value for name, value in os.environ.items() if name != "FERROGATE_RESULTS"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("reason", "excused"),
    [
        ("needs CPython 3.12", True),
        ("not on CPython 3.13 or newer", True),
        ("not on macOS or Windows: reads /proc", True),
        ("only on Linux: reads /proc/self/statm", True),
        ("only on CPython with the built wheel installed", False),
        ("not on CPython alone", False),
        ("needs valgrind", False),
        ("could not import 'uvloop'", False),
    ],
)
def test_only_the_interpreter_and_the_system_excuse(reason: str, excused: bool) -> None:
    code = f"import suite; print(suite.EXCUSED.search({reason!r}) is not None)"
    assert said_by(code) == f"{excused}\n"


@pytest.mark.parametrize("parts", [["memcheck"], ["python", "memcheck"], []])
def test_valgrind_never_sees_an_older_wheel(parts: list[str]) -> None:
    code = f"""
import suite
class Noting(suite.Stages):
    def run(self, name, command, **_):
        print(name)
        return True
suite.Stages = Noting
suite.shutil.which = lambda _: "/usr/bin/valgrind"
suite.main({parts!r})
"""
    stages = said_by(code).splitlines()
    (checked,) = (n for n, s in enumerate(stages) if re.fullmatch(r"memcheck: valgrind on .*\d", s))
    minor = stages[checked].removeprefix("memcheck: valgrind on ")
    wheels = [f"memcheck: wheel {minor}", f"{minor}: wheel"]
    assert sum(stages[:checked].count(wheel) for wheel in wheels) == 1


@pytest.mark.parametrize(
    ("env", "apart"),
    [({}, True), ({"PYTEST_ARGS": "-k cache"}, False), ({"FERROGATE_SOAK": "100"}, False)],
)
def test_every_test_runs_once(env: dict[str, str], apart: bool) -> None:
    code = f"""
import os, suite
os.environ |= {env!r}
os.cpu_count = lambda: 2
class Noting(suite.Stages):
    def run(self, name, command, **_):
        said = " ".join(map(str, command)).replace(str(suite.ROOT) + "/", "")
        # In one piece: two run at the same time.
        print(said + "\\n", end="")
        return True
suite.Stages = Noting
suite.select = lambda _: [suite.Python((3, 12, 1), suite.ROOT)]
suite.main(["python"])
"""
    runs = [line for line in said_by(code).splitlines() if "-m pytest" in line]
    waiting = ["tests/service", "tests/test_examples.py", "tests/cli"]
    assert len(runs) == 1 + apart
    for one in waiting:
        assert sum(run.split().count(one) for run in runs) == apart
        assert sum(run.split().count(f"--ignore={one}") for run in runs) == apart


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: installs with apt-get")
@pytest.mark.parametrize("apt", ["exit 100", "exit 0", None])
def test_a_missing_package_is_said_and_stops_nothing(tmp_path: Path, apt: str | None) -> None:
    for name, body in {"id": "echo 0", "env": 'shift; "$@"', "apt-get": apt}.items():
        if body is not None:
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", TOOLS / "system.sh"],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "valgrind is missing" in done.stderr
