"""Fixtures that several parts share."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from child import SEED, SOAK
from hypothesis import settings

# A shell that runs the suite in the background has it ignore Ctrl-C, and every
# child process inherits that; the tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a seed every run tries the same examples; with one, `--hypothesis-seed` decides.
# An example may take as long as a busy machine makes it; pytest's own limit bounds the test.
settings.register_profile(
    "ferrogate",
    derandomize="FERROGATE_SEED" not in os.environ,
    print_blob=True,
    deadline=None,
)
settings.load_profile("ferrogate")


# They have an environment of their own (`make test-integrations`).
collect_ignore = [] if importlib.util.find_spec("langgraph") else ["integrations"]


def pytest_collection_finish() -> None:
    """Keeps what was imported out of the many collections in tests: 0.17 s each without."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """What it takes to repeat this run."""
    return f"FERROGATE_SEED={SEED} FERROGATE_SOAK={SOAK}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says again under the failures what it takes to repeat them."""
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"repeat with {pytest_report_header()}")


LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
try:
    import uvloop
except ImportError:
    missing = pytest.mark.skip(reason="uvloop is not installed")
    LOOPS.append(pytest.param(None, id="uvloop", marks=missing))
else:
    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`asyncio.run` on either kind of loop, in debug mode as well."""

    def run(main: Any, *, debug: bool = False) -> Any:
        with asyncio.Runner(loop_factory=request.param, debug=debug) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def no_leaked_threads() -> Iterator[None]:
    """Fails a test whose threads outlive it by five seconds."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if set(threading.enumerate()) <= before:
            return
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
