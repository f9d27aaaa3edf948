"""HOSTILE 8 and 11: one loop after another, many at once, and use after the end."""

from __future__ import annotations

import sys

import pytest
from child import patience, run_well, times

pytestmark = pytest.mark.hostile

PRELUDE = """
import asyncio, gc, os, sys, threading, time
from ferrogate import Cache, CacheConfig, HealthMonitor, ProductionOptimizer, RateLimiter, cached

cache = Cache(CacheConfig(max_size=100))
limiter = RateLimiter("100000000/second", burst=3)
monitor = HealthMonitor()
@cached(max_size=50)
async def f(x):
    await asyncio.sleep(0)
    return x
async def slot():
    async with limiter:
        await asyncio.sleep(0)
async def main(n):
    tasks = [asyncio.ensure_future(f((n, i % 3))) for i in range(9)]
    tasks += [asyncio.ensure_future(cache.get_or_set((n, i % 3), lambda: asyncio.sleep(0, i)))
              for i in range(9)]
    tasks += [asyncio.ensure_future(slot()) for _ in range(9)]
    # Abandoned half-way: the end of the loop cancels them.
    left = [asyncio.ensure_future(cache.get_or_set(("never", n), lambda: asyncio.sleep(60)))]
    left += [asyncio.ensure_future(limiter.acquire(1000)) for _ in range(3)]
    await asyncio.gather(*tasks)
    await monitor.check()
def state():
    gc.collect()
    # The kernel lists a thread for a moment after it was joined.
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        assert time.monotonic() < deadline, "a thread that Python does not know of"
        time.sleep(0.001)
    futures = sum(isinstance(o, asyncio.Future) for o in gc.get_objects())
    loops = sum(isinstance(o, asyncio.AbstractEventLoop) for o in gc.get_objects())
    return {
        "threads": threading.active_count(), "native": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")), "futures": futures, "loops": loops,
        "loading": cache.get_stats()["loading"] + f.cache.get_stats()["loading"],
        "waiting": limiter.get_stats()["waiting"],
        "slots": limiter.get_stats()["concurrent_requests"],
    }
"""


@pytest.mark.skipif(sys.platform != "linux", reason="not on macOS or Windows: reads /proc")
@pytest.mark.soak
@pytest.mark.timeout(patience(60, times(1, 20)))
def test_a_hundred_loops_leave_nothing_behind() -> None:
    run_well(
        f"""{PRELUDE}
asyncio.run(main(-1))
before = state()
for n in range({times(100, 2000)}):
    asyncio.run(main(n))
after = state()
assert after == before, (before, after)
""",
        timeout=60 * times(1, 20),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="not on macOS or Windows: reads /proc")
@pytest.mark.soak
@pytest.mark.timeout(patience(60, times(1, 20)))
def test_eight_loops_in_eight_threads_leave_nothing_behind() -> None:
    run_well(
        f"""{PRELUDE}
def eight(rounds):
    failures = []
    def work(number):
        try:
            for n in range(rounds):
                # The same keys in all loops: one load serves several of them.
                asyncio.run(main(n))
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads:
        thread.join({50 * times(1, 20)})
        assert not thread.is_alive()
    assert not failures, failures
eight(1)
before = state()
eight({times(12, 250)})
after = state()
assert after == before, (before, after)
""",
        timeout=60 * times(1, 20),
    )


def test_stopping_twice_and_using_it_afterwards() -> None:
    """There is nothing yet that a stop makes unusable: it ends the threads, and that is all."""
    run_well(
        """
import asyncio, threading
from ferrogate import HealthMonitor, ProductionOptimizer
monitor = HealthMonitor(interval=0.01)
for _ in range(3):
    monitor.start(); monitor.start()
    monitor.stop(); monitor.stop()
    assert not monitor.running
    assert monitor.check_sync() and asyncio.run(monitor.check()) and monitor.alerts() == []
assert threading.active_count() == 1
optimizer = ProductionOptimizer()
for _ in range(3):
    optimizer.cache.set("a:b", 1)
    optimizer.health.start()
    optimizer.health.stop()
    assert optimizer.get_dashboard()["cache"]["hits"] >= 0
"""
    )


def test_everything_works_while_the_interpreter_goes() -> None:
    """After ``atexit`` ran: calls answer or raise, and nothing hangs."""
    said = run_well(
        """
import asyncio, atexit, threading
from ferrogate import Cache, CacheConfig, HealthMonitor, PerformanceMetrics, RateLimiter, cached
cache = Cache(CacheConfig(cleanup_interval=0.01))
monitor = HealthMonitor(interval=0.01)
monitor.register("fine", lambda: True)
monitor.start()
@cached
def f(x): return x
def late():
    cache["a"] = 1
    assert f(3) == 3 and cache.get_or_set_sync("b", lambda: 2) == 2
    limiter = RateLimiter("2/hour", burst=1)
    with limiter: pass
    limiter.acquire_sync()
    try: limiter.acquire_sync(timeout=0.01)
    except TimeoutError as error: assert error.retry_after > 3000
    else: raise AssertionError("the third of two")
    monitor.stop(); monitor.stop()
    monitor.alerts(); monitor.report(); repr(monitor)
    # A check needs a thread: what comes after the threads went says so, in the report.
    for report in (monitor.check_sync(), asyncio.run(monitor.check())):
        fine = report.components["fine"]
        assert fine.healthy or "interpreter shutdown" in fine.message, fine
    monitor.start()
    assert not monitor.running
    Cache(CacheConfig(cleanup_interval=0.01))["a"] = 1
    print("late")
atexit._run_exitfuncs()
late()
class Last:
    def __del__(self, late=late): late()
keep = Last()
""",
        timeout=20,
    )
    assert said == "late\n" * 2


HAMMER = """
import asyncio, gc, sys, threading, time
from ferrogate import Cache, HealthMonitor, PerformanceMetrics, RateLimiter, cached, rate_limited
from ferrogate.testing import ManualClock

def sleeps(*_): time.sleep(0.0005)
def collects(*_): gc.collect(0)
CALLBACK

class Key:
    def __init__(self, n): self.n = n
    def __hash__(self): callback(); return self.n % 7
    def __eq__(self, other): callback(); return self.n == other.n
class Value:
    def __del__(self): callback()
cache = Cache(8, max_bytes=8, weigher=lambda k, v: callback() or 1, on_evict=callback)
limiter = RateLimiter("1000000/second", "5000000/minute", burst=3)
metrics = PerformanceMetrics()
monitor = HealthMonitor(metrics=metrics, cache=cache, limiter=limiter)
monitor.register("callback", lambda: callback() or True)
clock = ManualClock()
timed = RateLimiter("5/second", clock=clock)
@rate_limited("1000000/second", burst=2)
def limited(x):
    callback()
    return x
@rate_limited("1000000/second", burst=2)
async def limited_async(x):
    callback()
    await asyncio.sleep(0)
    return x
@cached(max_size=4, key=lambda x: callback() or x)
def f(x): callback(); return Value()
class Number:
    def __init__(self, n): self.n = n
    def __index__(self): callback(); return self.n
    def __float__(self): callback(); return float(self.n)
class Tags:
    def __iter__(self): callback(); return iter(["a", "b"])

async def gathered(i):
    await asyncio.gather(*(limited_async(i) for _ in range(4)))
works = [
    lambda i: (cache.set(Key(i), Value(), tags=Tags()), cache.get(Key(i))),
    lambda i: cache.get_or_set_sync(i % 3, lambda: callback()),
    lambda i: f(i % 9),
    lambda i: (limited(i), limiter.try_acquire(Number(1), Key(i % 3).n)),
    lambda i: asyncio.run(gathered(i)),
    lambda i: (metrics.record_generation(True, Number(1)), metrics.get_stats()),
    lambda i: monitor.check_sync() if i % 10 == 0 else monitor.alerts(),
    lambda i: (timed.try_acquire(key=i % 5), clock.advance(0.05)),
]
failures = []
end = time.monotonic() + SECONDS
def loop(work):
    i = 0
    try:
        while time.monotonic() < end:
            i += 1
            work(i)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=loop, args=(w,), daemon=True) for w in works]
for t in threads: t.start()
for t in threads:
    t.join(SECONDS + 30)
    assert not t.is_alive(), "a thread hangs"
if failures: raise failures[0]
assert len(cache) <= 8 and limiter.get_stats()["concurrent_requests"] == 0
assert metrics.get_stats()["total_generations"] > 0
"""


@pytest.mark.soak
@pytest.mark.timeout(patience(60, times(1, 20)))
@pytest.mark.parametrize("kind", ["sleeps", "collects"])
def test_callbacks_that_let_others_run(kind: str) -> None:
    """HOSTILE 2 and 5, over limiter, metrics and health beside the cache."""
    callback = f"callback = {kind}"
    if kind == "collects":
        callback += "\ngc.set_threshold(1)"
    code = HAMMER.replace("CALLBACK", callback).replace("SECONDS", str(times(2, 40)))
    run_well(code, timeout=60 * times(1, 20))
