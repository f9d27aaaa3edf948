"""Where the real traces are, and how a test runs the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CONVERSATION = "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake_conversation_trace.jsonl"


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of the production traces; see `ferrogate/cli/traces.py` for what they are."""
    folder = os.environ.get("FERROGATE_TRACES")
    if not folder:
        pytest.skip("FERROGATE_TRACES does not name the folder of the production traces")
    return Path(folder)


@pytest.fixture(scope="session")
def conversation(traces: Path) -> Path:
    return traces / CONVERSATION


@pytest.fixture(scope="session")
def mooncake(traces: Path) -> Path:
    return traces / MOONCAKE


Ferrogate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def ferrogate() -> Ferrogate:
    """Runs ``ferrogate ARGUMENTS…`` in a process of its own."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "ferrogate.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
            env=os.environ | environment,
        )

    return run
