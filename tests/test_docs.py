"""The examples in the documents run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[object]:
    found = []
    for document in ("README.md", "ARCHITECTURE.md", "GUARANTEES.md"):
        text = (ROOT / document).read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append(pytest.param(match.group(1), id=f"{document}:{line}"))
    return found


@pytest.mark.parametrize("code", examples())
def test_example_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "GUARANTEES.md"])
def test_every_file_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    # Except dist/, which a build makes.
    named = set(re.findall(r"`([\w/.-]+(?:\.(?:py|rs|md|toml)|(?<!dist)/))`", text))
    roots = (ROOT, ROOT / "src", ROOT / "tests", ROOT / "python/ferrogate", ROOT / "benches")
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert missing == []


def test_there_are_examples() -> None:
    assert len(examples()) >= 3
