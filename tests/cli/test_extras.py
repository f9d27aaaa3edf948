"""The command without its extra, and with a wrong one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ferrogate.cli.extras import Requirement, of_extra

Ferrogate = Callable[..., subprocess.CompletedProcess[str]]

LOCKED = Path(__file__).parents[2] / "requirements" / "demo.in"


def test_the_lock_is_made_from_what_the_extra_names() -> None:
    named = {str(needed) for needed in of_extra("demo")}
    assert named == {line for line in LOCKED.read_text().split("\n") if line and line[0] != "#"}
    assert [needed.fault() for needed in of_extra("demo")] == [None] * len(named)


def test_the_extra_names_every_package_that_the_command_imports() -> None:
    sources = Path(sys.modules["ferrogate.cli"].__file__ or "").parent.glob("*.py")
    lines = [line.split() for source in sources for line in source.read_text().split("\n")]
    imported = {
        words[1].partition(".")[0]
        for words in lines
        if len(words) > 1 and words[0] in ("import", "from") and words[1][0].isalpha()
    }
    strangers = imported - sys.stdlib_module_names - {"ferrogate"}
    assert strangers == {needed.package for needed in of_extra("demo")}


@pytest.mark.parametrize(
    ("versions", "admitted", "refused"),
    [
        (">=3,<4", ["3", "3.0", "3.52.0", "3.99"], ["2.9", "4", "4.0.1", "10.0"]),
        (">=3.14,<4", ["3.14", "3.14.5", "3.15"], ["3.9", "3.13.9", "4.0.0b1"]),
    ],
)
def test_versions(versions: str, admitted: list[str], refused: list[str]) -> None:
    needed = Requirement("x", versions)
    assert all(needed.admits(version) for version in admitted)
    assert not any(needed.admits(version) for version in refused)


def test_without_the_extra_it_says_how_to_install(ferrogate: Ferrogate, tmp_path: Path) -> None:
    # An interpreter without the extra: its packages fail to import.
    for package in ("openai", "httpx2"):
        (tmp_path / f"{package}.py").write_text("raise ImportError")
    old = tmp_path / "rich-13.9.4.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 13.9.4\n")
    done = ferrogate("demo", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "ferrogate: `ferrogate demo`: openai is missing, httpx2 is missing, "
        "rich is 13.9.4; pip install 'openai>=3,<4' 'httpx2>=2.7,<3' 'rich>=15,<16'\n"
    )
    done = ferrogate("doctor", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "rich 13.9.4 (needs >=15,<16)" in done.stdout


def test_version_and_doctor(ferrogate: Ferrogate) -> None:
    version = ferrogate("version")
    assert (version.returncode, version.stderr) == (0, "")
    done = ferrogate("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for fact in (version.stdout.strip(), sys.executable, "openai", "httpx2", "cgroup limits"):
        assert fact in done.stdout
    assert "missing" not in done.stdout
