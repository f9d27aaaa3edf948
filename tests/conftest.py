"""Fixtures that several parts share."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

# A shell that runs the suite in the background has it ignore Ctrl-C, and every
# child process inherits that; the tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
