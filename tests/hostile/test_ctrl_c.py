"""Ctrl-C during every blocking call, and the object works afterwards."""

from __future__ import annotations

import os
import signal

import pytest
from child import patience, run_well, times

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="not on Windows"),
]

# Blocking waits look for signals every 50 ms; GUARANTEES promises 100. The rest is a
# scheduler's, on a machine with two cores that builds something else meanwhile.
PROMISE = 0.1
SLACK = 0.25 if not os.environ.get("FERROGATE_MEMCHECK") else 5

PRELUDE = """
import asyncio, os, signal, statistics, sys, threading, time
from ferrogate import Cache, HealthMonitor, RateLimiter, cached, rate_limited

delays = []

def interrupted(blocking, rounds, after=0.03):
    # Has the process interrupted while `blocking` blocks; notes how long it took to come back.
    for n in range(rounds):
        sent = []
        def send():
            time.sleep(after + 0.007 * n)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        sender = threading.Thread(target=send)
        sender.start()
        try:
            blocking()
        except KeyboardInterrupt:
            delays.append(time.monotonic() - sent[0])
        else:
            raise AssertionError("nobody was interrupted")
        finally:
            sender.join()

hold = threading.Event()
def in_background(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
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
}


@pytest.mark.timeout(patience(5, times(5, 200)))
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c(call: str) -> None:
    before, after = CALLS[call]
    run_well(
        f"""{PRELUDE}
{before}
interrupted(blocking, {times(5, 200)})
{after}
# Most of them come back in time; all of them with the scheduler's leave.
delays.sort()
assert delays[len(delays) // 2] < {PROMISE}, delays
assert delays[-1] < {PROMISE + SLACK}, delays
""",
        timeout=30 + times(5, 200),
    )
