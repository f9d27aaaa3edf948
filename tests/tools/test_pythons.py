"""The search for interpreters: what it takes, what it leaves out, and that it says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

GOOD = {
    "implementation": "cpython",
    "version": [3, 98, 1],
    "final": True,
    "free_threaded": False,
    "debug": False,
    "virtual": False,
    "venv": True,
}


def interpreter(folder: Path, name: str, **facts: object) -> Path:
    """Something on PATH that answers the probe with `facts`."""
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    answer = json.dumps(GOOD | {"executable": str(path)} | facts)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def find(tmp_path: Path, *wanted: str) -> subprocess.CompletedProcess[str]:
    """Runs the search with a PATH and a home of its own."""
    env = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}/bin", "HOME": str(tmp_path)}
    return subprocess.run(
        [sys.executable, TOOLS / "pythons.py", *wanted],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )


def test_one_for_each_minor_the_newest_patch(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin", "python3.98")
    newer = tmp_path / ".pyenv/versions/3.98.4/bin"
    interpreter(newer, "python3", version=[3, 98, 4])
    interpreter(tmp_path / "bin", "python3.99", version=[3, 99, 0])
    found = find(tmp_path, "3.98", "3.99").stdout.splitlines()
    assert found == [
        f"CPython 3.98.4 ({newer / 'python3'})",
        f"CPython 3.99.0 ({tmp_path / 'bin' / 'python3.99'})",
    ]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"venv": False}, "cannot make a virtual environment: apt install python3.98-venv"),
        ({"free_threaded": True}, "free-threaded"),
        ({"final": False}, "not a final release"),
    ],
)
def test_what_is_left_out_is_said_with_the_reason(
    tmp_path: Path, facts: dict[str, object], reason: str
) -> None:
    interpreter(tmp_path / "bin", "python3.98", **facts)
    said = find(tmp_path, "3.98")
    assert said.returncode == 1
    assert "left out 3.98.1" in said.stderr
    assert reason in said.stderr
    assert "no usable CPython 3.98 here" in said.stderr


def test_a_stand_in_needs_no_excuse(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin", "python3.98", venv=False)
    other = tmp_path / ".pyenv/versions/3.98.0/bin"
    interpreter(other, "python3", version=[3, 98, 0])
    said = find(tmp_path, "3.98")
    assert said.stdout.strip() == f"CPython 3.98.0 ({other / 'python3'})"
    assert said.stderr == ""


def test_others_and_broken_ones_are_passed_over(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin", "python3.97", implementation="pypy")
    interpreter(tmp_path / "bin", "python3.96", virtual=True)
    interpreter(tmp_path / "bin", "python3.10", version=[3, 10, 9])
    (tmp_path / "bin" / "python3.95").write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
    (tmp_path / "bin" / "python3.95").chmod(0o755)
    interpreter(tmp_path / "bin", "python3.98")
    found = find(tmp_path).stdout
    assert "3.98.1" in found
    assert not {"3.97", "3.96", "3.95", "3.10."} & set(found.split())
    assert "3.9" not in found.replace("3.98", "")
