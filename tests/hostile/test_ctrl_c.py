"""Ctrl-C during every blocking call, and the object works afterwards."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import pytest
from child import MEMCHECK, patience, run, run_well, times

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="not on Windows"),
]

# What GUARANTEES promises, in seconds. A wait that looks for signals every so often is told
# soon after it began, so that it takes one whole round of its looks to come back: the best
# of several such delays is that round and nothing else, however busy the machine is.
PROMISE = 0.1
ROUNDS = times(8, 100)

PRELUDE = (
    f"PROMISE, ROUNDS = {PROMISE * (40 if MEMCHECK else 1)}, {ROUNDS}"
    + """
import asyncio, os, signal, statistics, sys, threading, time
from ferrogate import (
    Cache, CacheService, HealthMonitor, LLMLimiter, RateLimiter, cached, rate_limited
)

def interrupted(blocking):
    # Has the process interrupted while `blocking` blocks; how long it took to come back.
    early, delays = [], []
    for n in range(ROUNDS):
        # Every other one later, where a wait whose looks grow rarer would be late.
        after, sent, began = 0.01 + n % 2 * 0.02 * (n % 10), [], float("inf")
        def send():
            time.sleep(after)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        sender = threading.Thread(target=send)
        try:
            sender.start()
            began = time.monotonic()
            blocking()
        except KeyboardInterrupt:
            delay = time.monotonic() - sent[0]
        else:
            raise AssertionError("nobody was interrupted")
        finally:
            sender.join()
        delays.append(delay)
        if n % 2 == 0 and sent[0] >= began + 0.005:
            early.append(delay)
    assert min(early) < PROMISE, (early, delays)
    assert statistics.median(delays) < PROMISE, delays

def store(**arguments):
    return CacheService(f"sqlite://{sys.argv[1]}/cache.db", **arguments)

hold = threading.Event()
def in_background(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
"""
)

LOCKED = """
import subprocess
def lock():
    code = ("import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN EXCLUSIVE'); print(flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # A process group of its own: what interrupts this one is not to interrupt it.
    command = [sys.executable, "-c", code, sys.argv[1] + "/cache.db"]
    locker = subprocess.Popen(command, process_group=0, **pipes)
    locker.stdout.readline()
    return locker
"""

CALLS = {
    "get_or_set_sync as follower": (
        """
cache, started = Cache(10), threading.Event()
def load():
    started.set(); hold.wait()
    return 5
leader = in_background(lambda: cache.get_or_set_sync("k", load))
started.wait()
blocking = lambda: cache.get_or_set_sync("k", lambda: 1)
""",
        """
hold.set()
assert cache.get_or_set_sync("k", lambda: 1) == 5
assert cache.get_or_set_sync("other", lambda: 2) == 2
assert cache.get_stats()["loading"] == 0
""",
    ),
    "get_or_set_sync as leader": (
        """
cache = Cache(10)
blocking = lambda: cache.get_or_set_sync("k", lambda: time.sleep(60))
""",
        """
assert cache.get_or_set_sync("k", lambda: 1) == 1
assert cache.get_stats()["loading"] == 0
""",
    ),
    "a cached function as follower": (
        """
started = threading.Event()
@cached
def f(x):
    started.set(); hold.wait()
    return x
leader = in_background(lambda: f(1))
started.wait()
blocking = lambda: f(1)
""",
        """
hold.set()
assert f(1) == 1 and f(2) == 2
""",
    ),
    "a follower of an event loop": (
        """
cache, started = Cache(10), threading.Event()
async def load():
    started.set()
    while not hold.is_set(): await asyncio.sleep(0.001)
    return 5
leader = in_background(lambda: asyncio.run(cache.get_or_set("k", load)))
async def awaits(): return await cache.get_or_set("k", load)
started.wait()
blocking = lambda: cache.get_or_set_sync("k", lambda: 1)
""",
        """
hold.set()
assert cache.get_or_set_sync("k", lambda: 1) == 5
""",
    ),
    "acquire_sync": (
        """
limiter = RateLimiter("2/hour")
assert limiter.try_acquire()
blocking = lambda: limiter.acquire_sync(2)
""",
        """
assert limiter.get_stats()["waiting"] == 0
limiter.acquire_sync()
assert not limiter.try_acquire()
""",
    ),
    "acquire_sync behind others": (
        """
limiter = RateLimiter("2/hour")
assert limiter.try_acquire()
ahead = in_background(lambda: limiter.acquire_sync(2))
while not limiter.get_stats()["waiting"]: time.sleep(0.001)
blocking = lambda: limiter.acquire_sync(1, timeout=1800)
""",
        """
assert limiter.get_stats()["waiting"] == 1
""",
    ),
    "reserve_sync": (
        """
limiter = LLMLimiter(input_tokens_per_minute=100)
held = limiter.reserve_sync(input_tokens=60)
blocking = lambda: limiter.reserve_sync(input_tokens=50)
""",
        """
assert limiter.get_stats()["waiting"] == 0
limiter.reserve_sync(input_tokens=40).settle()
assert held.settle()
assert limiter.get_stats()["open"] == 0
""",
    ),
    "reserve_sync behind others": (
        """
limiter = LLMLimiter(concurrency=1)
held = limiter.reserve_sync()
ahead = in_background(lambda: limiter.reserve_sync().settle())
while not limiter.get_stats()["waiting"]: time.sleep(0.001)
blocking = lambda: limiter.reserve_sync(timeout=1800)
""",
        """
assert limiter.get_stats()["waiting"] == 1
held.release()
""",
    ),
    "with limiter": (
        """
limiter = RateLimiter("1000/second", burst=1)
limiter.__enter__()
def blocking():
    with limiter: raise AssertionError("there is no slot")
""",
        """
assert limiter.get_stats()["concurrent_requests"] == 1
limiter.__exit__(None, None, None)
with limiter: pass
assert limiter.get_stats()["concurrent_requests"] == 0
assert limiter.get_stats()["waiting"] == 0
""",
    ),
    "a rate_limited function": (
        """
@rate_limited("1/hour", burst=3)
def blocking(): return 1
blocking()
""",
        """
stats = blocking.limiter.get_stats()
assert (stats["waiting"], stats["concurrent_requests"]) == (0, 0), stats
""",
    ),
    "check_sync with a hanging check": (
        """
monitor = HealthMonitor(timeout=60)
monitor.register("hangs", hold.wait)
blocking = monitor.check_sync
""",
        """
hold.set()
deadline = time.monotonic() + 10
while not monitor.check_sync().components["hangs"].healthy:
    assert time.monotonic() < deadline
    time.sleep(0.01)
""",
    ),
    "a cache service's load behind another process's": (
        """
one, other = store(lease_seconds=3600), store(lease_seconds=3600)
lease = other._lease(True, "ns", "k", None)[1]
blocking = lambda: one.get_or_set_sync("ns", "k", lambda: 1)
""",
        """
lease.release()
assert one.get_or_set_sync("ns", "k", lambda: 1) == 1
assert other.get_sync("ns", "k") == 1
""",
    ),
    "a guarded call's pause before it is made again": (
        """
from ferrogate import Guard, RetryPolicy
guard = Guard("g", bulkhead=1, retry=RetryPolicy(3, base=30, jitter="none"))
def fails(): raise ValueError
blocking = lambda: guard.call_sync(fails)
""",
        """
assert guard.call_sync(max, 1, 2) == 2
""",
    ),
    "a guarded call's wait for a slot": (
        """
from ferrogate import Guard
slots = RateLimiter(burst=1)
guard = Guard("g", bulkhead=slots)
slots.__enter__()
blocking = lambda: guard.call_sync(max, 1, 2)
""",
        """
slots.__exit__(None, None, None)
assert guard.call_sync(max, 1, 2) == 2
""",
    ),
    "a cache service's load": (
        """
one, other = store(lease_seconds=3600), store(lease_seconds=3600)
blocking = lambda: one.get_or_set_sync("ns", "k", lambda: time.sleep(60))
""",
        """
assert other.get_or_set_sync("ns", "k", lambda: 1) == 1
""",
    ),
    "a cache service's set, locked by another process": (
        LOCKED
        + """
one = store(busy_seconds=3600)
one.set_sync("ns", "k", 1)
locker = lock()
blocking = lambda: one.set_sync("ns", "k", 2)
""",
        """
locker.kill(); locker.communicate()
assert one.set_sync("ns", "k", 3) and store().get_sync("ns", "k") == 3
""",
    ),
    "a cache service's close, locked by another process": (
        LOCKED
        + """
store().set_sync("ns", "k", 1)
locker, services, writers, n = lock(), [], [], 0
def blocking():
    global n
    one, n = store(busy_seconds=1), n + 1
    services.append(one)
    queued = threading.Event()
    async def ask():
        asked = one.set("ns", str(n), 1)
        queued.set()
        await asked
    writers.append(in_background(lambda: asyncio.run(ask())))
    queued.wait()
    one._close(3600)
    raise AssertionError("closed")
""",
        """
locker.kill(); locker.communicate()
for writer in writers: writer.join()
assert store().set_sync("ns", "k", 3)
""",
    ),
}


@pytest.mark.soak
@pytest.mark.timeout(patience(1, ROUNDS))
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c(call: str, tmp_path: Path) -> None:
    before, after = CALLS[call]
    code = PRELUDE + before + "interrupted(blocking)\n" + after
    run_well(code, str(tmp_path), timeout=30 + ROUNDS)


def test_the_measure_sees_a_wait_that_looks_every_150_ms() -> None:
    code = """
        def blocking():
            # Signals go to the other thread, so this one looks between two sleeps only.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                while True: time.sleep(0.15)
            finally: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        interrupted(blocking)
    """
    done = run(PRELUDE + textwrap.dedent(code), timeout=30)
    assert done.code == 1, str(done)
    assert "AssertionError: ([0.1" in done.stderr, str(done)
