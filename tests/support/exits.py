"""Children that exit: with their own exit code, and saying nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from child import run, times

RUNS = times(3, 200)

PRELUDE = """
import asyncio, os, sys, threading, time
from ferrogate import (
    Cache, CacheConfig, CacheService, HealthMonitor, PerformanceMetrics, ProductionOptimizer,
    RateLimiter, cached, rate_limited,
)

def store(**arguments):
    import tempfile
    return CacheService(f"sqlite://{tempfile.mkdtemp()}/cache.db", near_bytes=1, **arguments)

class Slow:
    # Lives in a module's dictionary, so it goes when the interpreter is already finalising:
    # daemon threads that want the GIL in this time are ended by it.
    def __del__(self, sleep=time.sleep):
        sleep(0.15)

def daemons(*works, count=2):
    for work in works:
        for _ in range(count):
            threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
"""


def check(code: str, expected: int, last: str) -> None:
    """Runs `code` several times; the exit code, and the last line on stderr or all of it."""
    with ThreadPoolExecutor(2) as two:
        # Each in its own process group; two at a time, as the machine has two cores.
        runs = [two.submit(run, PRELUDE + code, timeout=60) for _ in range(RUNS)]
        ended = [r.result() for r in runs]
    for done in ended:
        said = done.stderr.strip().rpartition("\n")[2] if last else done.stderr
        assert (done.code, said) == (expected, last), str(done)
