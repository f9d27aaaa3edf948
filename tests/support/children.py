"""Work in a process of its own, with a hard time limit, and how often to repeat things."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

#: Multiplies the counts of long tests: `make test` runs a seeded sample, `make soak` much more.
SOAK = int(os.environ.get("FERROGATE_SOAK", "1"))

#: An interpreter under valgrind is some thirty times slower.
PATIENCE = 30 if os.environ.get("FERROGATE_MEMCHECK") else 1


def child(
    code: str, *, timeout: float = 60, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `code`; warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout * PATIENCE,
        check=False,
        env=os.environ | environment,
    )


def child_output(
    code: str, *, timeout: float = 60, options: tuple[str, ...] = (), **environment: str
) -> str:
    """What `code` prints; it must end well and say nothing on stderr."""
    done = child(code, timeout=timeout, options=options, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def is_collected(*references: Callable[[], object]) -> bool:
    """Whether the collector finds nothing that keeps these weak references' objects alive.

    A single `gc.collect()` does nothing while another thread is collecting.
    """
    for _ in range(20):
        gc.collect()
        if all(reference() is None for reference in references):
            return True
        time.sleep(0.01)
    return False
