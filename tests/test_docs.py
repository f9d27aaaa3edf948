"""The examples in the documents run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import redis_servers

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


#: Where README's examples look for a server.
REDIS = "redis://localhost:6379/0"


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
    with contextlib.ExitStack() as servers:
        if REDIS in code:
            if redis_servers.BINARY is None and not os.environ.get("CI"):
                pytest.skip("redis-server: run `make system`")
            code = code.replace(REDIS, servers.enter_context(redis_servers.server()).url)
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


CONSOLE = re.compile(r"^\$ ([^#\n]*[^#\s])", re.MULTILINE)
TRACES = {
    "trace.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
    "trace.jsonl": '{"timestamp": 0, "input_length": 9, "output_length": 9, "hash_ids": [1]}\n',
}


def test_the_commands_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    """`make` says what it would do; what that and the lines themselves call of ours is run."""
    for name, content in TRACES.items():
        (tmp_path / name).write_text(content)
    seen = set()
    for line in CONSOLE.findall((ROOT / "README.md").read_text()):
        program, *arguments = shlex.split(line)
        if program == "make":
            dry = subprocess.run(
                ["make", "--no-print-directory", "-n", *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (dry.returncode, dry.stderr) == (0, ""), line
            program, *arguments = shlex.split(dry.stdout.splitlines()[-1])
        if Path(program).name != "ferrogate":
            assert Path(program).name in ("pip", "sh") or "python" in program, line
            continue
        # The command is where `make demo` leaves it, or in an environment of the reader's own.
        assert program in ("ferrogate", ".venv-demo/bin/ferrogate"), line
        seen.add(arguments[0])
        if arguments == ["demo"]:
            continue  # two minutes, and tests/cli runs it in many ways
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "ferrogate.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, line + done.stderr
    assert seen == {"demo", "replay", "doctor"}


def test_there_are_examples() -> None:
    assert len(examples()) >= 3
