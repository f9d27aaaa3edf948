"""HOSTILE 9: children of every kind work, and their parents do not notice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from child import FORKS, patience, run_well, times

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="not on Windows"),
]

PRELUDE = (
    FORKS
    + """
import asyncio, os, signal, sys, threading, time, traceback
from ferrogate import Cache, PerformanceMetrics, RateLimiter, cached, rate_limited

def fork_and(body, limit=20):
    # Runs `body` in a forked child; fails unless it ends well and in time.
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)  # faulthandler says where it is
            os.waitpid(pid, 0)
            sys.exit("the child hangs")
        time.sleep(0.002)

failures = []
stop = threading.Event()

def hammer(*works):
    # One thread for each, until `stop`; returns what joins them and shows their failures.
    rounds = [0] * len(works)
    def loop(number, work):
        try:
            while not stop.is_set():
                work(rounds[number])
                rounds[number] += 1
        except BaseException:
            failures.append(traceback.format_exc())
    threads = [threading.Thread(target=loop, args=a, daemon=True) for a in enumerate(works)]
    for thread in threads:
        thread.start()
    def finish():
        # All of them still get on.
        before, end = list(rounds), time.monotonic() + 20
        while not failures and any(a == b for a, b in zip(before, rounds)):
            assert time.monotonic() < end, (before, rounds)
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread of the parent hangs"
        assert not failures, "".join(failures)
    return finish
"""
)


@pytest.mark.soak
@pytest.mark.timeout(patience(60, times(1, 20)))
def test_fork_while_eight_threads_are_inside() -> None:
    run_well(
        PRELUDE
        + f"""
cache = Cache(64, ttl=0.001, on_evict=lambda *_: None, max_bytes=64, weigher=lambda *_: 1)
class Opaque:
    def __init__(self, n): self.n = n % 50
    def __hash__(self): return self.n
    def __eq__(self, other): return self.n == other.n
class Service:
    @cached(max_size=32, ttl=0.001)
    def method(self, x): return x
service = Service()
@cached(max_size=32, ttl=0.001)
def f(x): return x
# Limits that 300 rounds do not use up: who waits for a window looks as if it hung.
limiter = RateLimiter("10000000/second", "1000000000/minute", burst=3)
narrow = RateLimiter("1000/second", algorithm="token_bucket")
metrics = PerformanceMetrics()
@rate_limited("10000000/second", burst=2)
def limited(x): return x
def blocks(i):
    with limiter: pass
def loads(i): assert cache.get_or_set_sync(i % 5, lambda: i % 5) == i % 5
def everything(i):
    cache.set(i % 100, i % 5, tags=["t"]); cache.get(i % 100); cache.invalidate_tag("t")
    cache[Opaque(i)] = 1; cache.get(Opaque(i)); list(cache.items()); cache.cleanup()
    assert f(i) == i and service.method(i) == i and limited(i) == i
    limiter.try_acquire(key=str(i % 9)); metrics.record_generation(True, 0.1, 5)
    cache.get_stats(); limiter.get_stats(); metrics.get_stats()
finish = hammer(
    blocks, blocks, loads, loads, everything, everything,
    lambda i: narrow.acquire_sync(),
    lambda i: asyncio.run(narrow.acquire()),
)
def child():
    for i in range(50):
        everything(i); loads(i)
    blocks(0); narrow.acquire_sync(); asyncio.run(narrow.acquire())
    # Threads of its own, so that its locks are contended and its lines waited in.
    threads = [threading.Thread(target=narrow.acquire_sync) for _ in range(4)]
    threads += [threading.Thread(target=blocks, args=(0,)) for _ in range(8)]
    threads += [threading.Thread(target=loads, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads:
        t.join(10)
        assert not t.is_alive()
    assert limiter.get_stats()["concurrent_requests"] == 0
for _ in range({times(15, 300)}):
    fork_and(child)
finish()
""",
        timeout=60 * times(1, 20),
    )


@pytest.mark.soak
@pytest.mark.timeout(patience(60, times(1, 20)))
def test_fork_while_eight_threads_are_inside_guards() -> None:
    """Breakers, retries, reservations, time limits and recordings; the child's have no waiters."""
    run_well(
        PRELUDE
        + f"""
from ferrogate import (
    CircuitBreaker, CircuitBreakerConfig, Guard, Hedge, LLMLimiter, RateLimiter, Recording,
    RetryBudget, RetryPolicy,
)
breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1.0))
tokens = LLMLimiter(requests_per_minute=1_000_000, input_tokens_per_minute=10**12, concurrency=3)
recording = Recording(100)
budget = RetryBudget(1.0, min_per_second=1000)
retry = RetryPolicy(attempts=3, base=0, budget=budget)
guard = Guard(
    "g", breaker=breaker, retry=retry, limiter=tokens, bulkhead=2, timeout=300,
    attempt_timeout=300, recording=recording,
)
hedged = Guard("h", hedge=Hedge(delay=0.001), limiter=RateLimiter("1000000000/minute", burst=2))
@guard
async def ask(number):
    await asyncio.sleep(0)
    if number % 3 == 0 and number not in tried:
        tried.add(number)
        raise ConnectionError
    return number
@guard
async def stream(number):
    for item in range(3):
        yield item
@guard
def plain(number): return number
tried = set()
async def all_of_them(number):
    numbers = list(range(number, number + 5))
    assert await asyncio.gather(*map(ask, numbers)) == numbers
    assert [item async for item in stream(number)] == [0, 1, 2]
    await hedged.call(asyncio.sleep, 0.002)
def calls(i): asyncio.run(all_of_them(10 * i))
def plainly(i):
    assert plain(i) == i
    guard.get_stats(); breaker.get_stats(); tokens.get_stats(); list(recording)
finish = hammer(calls, calls, calls, plainly, plainly, plainly, plainly, plainly)
def child():
    for i in range(5):
        calls(1000 + i); plainly(i)
    works = [calls, plainly] * 4
    threads = [threading.Thread(target=work, args=(i,)) for i, work in enumerate(works, 5000)]
    for t in threads: t.start()
    for t in threads:
        t.join(10)
        assert not t.is_alive()
    assert tokens.get_stats()["open"] == tokens.get_stats()["waiting"] == 0
    assert breaker.get_stats()["probes"] == 0
for _ in range({times(10, 200)}):
    fork_and(child)
finish()
""",
        timeout=60 * times(1, 20),
    )


def test_fork_while_a_load_is_under_way() -> None:
    """The loader stayed in the parent: the child loads itself, the parent's waiters get theirs."""
    run_well(
        PRELUDE
        + """
cache = Cache(10)
@cached
def f(x):
    started.set(); go.wait(20)
    return os.getpid()
@cached
async def g(x):
    started.set()
    while not go.is_set(): await asyncio.sleep(0.001)
    return os.getpid()
async def g_twice():
    return await asyncio.gather(g(1), g(1))
got = []
for lead in (
    lambda: got.append(cache.get_or_set_sync("k", lambda: f.__wrapped__(1))),
    lambda: got.append(f(1)),
    lambda: got.extend(asyncio.run(g_twice())),
):
    started, go = threading.Event(), threading.Event()
    threads = [threading.Thread(target=lead) for _ in range(4)]
    for t in threads: t.start()
    assert started.wait(10)
    time.sleep(0.05)  # the others follow by now
    def child():
        go.set()
        me = os.getpid()
        assert cache.get_stats()["loading"] == 0
        assert cache.get_or_set_sync("k", os.getpid) in (me, os.getppid())
        assert f(1) in (me, os.getppid())
        assert asyncio.run(g_twice()) == [me, me] or got
        more = []
        def loads(): more.append(cache.get_or_set_sync("n", os.getpid))
        threads = [threading.Thread(target=loads) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join(10)
        assert more == [me] * 4, more
    fork_and(child)
    go.set()
    for t in threads:
        t.join(10)
        assert not t.is_alive()
assert got == [os.getpid()] * 16, got
"""
    )


def test_fork_inside_a_loader() -> None:
    run_well(
        PRELUDE
        + """
cache = Cache(10)
def load():
    if os.getpid() == parent:
        def child():
            # Still inside: the flight is this very thread's, but of another process.
            assert cache.get_or_set_sync("other", lambda: 2) == 2
        fork_and(child)
    return 1
parent = os.getpid()
followers = []
def follow(): followers.append(cache.get_or_set_sync("k", load))
threads = [threading.Thread(target=follow) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join(20)
assert followers == [1] * 4, followers

# And the child returns from the loader: what it loaded is its own.
pid = None
def load():
    global pid
    pid = os.fork()
    return os.getpid()
assert cache.get_or_set_sync("forked", load) == os.getpid()
assert cache["forked"] == os.getpid()
if pid == 0:
    assert cache.get_or_set_sync("again", os.getpid) == os.getpid()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    )


def test_fork_with_the_clean_up_thread_running() -> None:
    run_well(
        PRELUDE
        + """
swept = []
cache = Cache(10, ttl=0.02, cleanup_interval=0.005, on_evict=lambda k, v, cause: swept.append(k))
def sweeps(name):
    cache[name] = 1
    end = time.monotonic() + 10
    while name not in swept:
        assert time.monotonic() < end, "nobody sweeps"
        time.sleep(0.002)
sweeps("before")
for i in range(10):
    fork_and(lambda: sweeps("in the child"))
    sweeps(i)
def grandchild(): fork_and(lambda: sweeps("in the grandchild"))
fork_and(grandchild)
assert "in the child" not in swept
"""
    )


def test_fork_with_refreshes_under_way() -> None:
    """The child has none of the threads, and refreshes in threads of its own."""
    run_well(
        PRELUDE
        + """
from ferrogate.testing import ManualClock
clock, held = ManualClock(), False  # no lock: a thread of the parent might hold it
@cached(ttl=10, clock=clock, stale_while_revalidate=1000)
def f(x):
    while held: time.sleep(0.001)
    return os.getpid(), threading.get_ident()
def refreshed(pid):
    clock.advance(1)
    for x in range(20): f(x)
    end = time.monotonic() + 10
    while not all(f(x)[0] == pid for x in range(20)):
        assert time.monotonic() < end, [f(x) for x in range(20)]
        clock.advance(1)
        time.sleep(0.002)
for x in range(20): f(x)
for i in range(10):
    while f.cache.get_stats()["loading"]: time.sleep(0.001)
    clock.advance(10)
    held = True
    for x in range(6): f(x)  # six of the threads are busy now
    def child():
        global held
        held = False
        me = os.getpid()
        refreshed(me)
        fork_and(lambda: clock.advance(10) or refreshed(os.getpid()))
        # In threads, not in place.
        assert threading.get_ident() not in {f(x)[1] for x in range(20)}
    fork_and(child)
    held = False
    refreshed(os.getpid())
finish = hammer(lambda i: clock.advance(1) or f(i % 20), lambda i: f.cache_refresh(i % 20))
for i in range(10):
    fork_and(lambda: clock.advance(10) or refreshed(os.getpid()))
finish()
""",
        timeout=60,
    )


def test_a_child_that_exits_normally() -> None:
    """Through ``sys.exit`` and atexit, with all that the parent had running."""
    run_well(
        PRELUDE
        + """
from ferrogate import CacheConfig, HealthMonitor, ProductionOptimizer
cache = Cache(CacheConfig(cleanup_interval=0.01))
monitor = HealthMonitor(interval=0.01)
monitor.start()
optimizer = ProductionOptimizer()
finish = hammer(lambda i: cache.set(i, i), lambda i: cache.get(i))
for i in range(10):
    pid = os.fork()
    if pid == 0:
        cache["a"] = 1
        optimizer.get_dashboard()
        if i % 2: monitor.check_sync()
        stop.set()
        sys.exit(i)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == i
finish()
""",
        timeout=60,
    )


def test_a_block_that_forked_releases_nobody_elses_slot() -> None:
    """Regression: the child's count started anew, and then the block that had forked took the
    slot of whoever had gone in since."""
    run_well(
        PRELUDE
        + """
limiter = RateLimiter(burst=2)
inside, go_on = threading.Event(), threading.Event()
def hold():
    with limiter:
        inside.set()
        go_on.wait(20)
def used():
    return limiter.get_stats()["concurrent_requests"]
def after(other):
    # The block that forked has ended in the child.
    assert used() == 1, used()
    go_on.set(); other.join()
    assert used() == 0, used()
    with limiter, limiter:
        assert used() == 2
    assert used() == 0
with limiter:
    pid = os.fork()
    if pid == 0:
        other = threading.Thread(target=hold); other.start(); inside.wait(20)
        with limiter: pass
        async def use():
            async with limiter: pass
        asyncio.run(use())
        rate_limited(limiter=limiter)(used)()
        assert used() == 1, used()
if pid == 0:
    try:
        after(other)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
assert used() == 0
""",
        timeout=60,
    )


SCRIPT = """
import warnings
warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
import multiprocessing, os, sys
from ferrogate import Cache, CacheConfig, RateLimiter, cached

cache = Cache(CacheConfig(cleanup_interval=0.01))
limiter = RateLimiter("1000/second", burst=2)

@cached(max_size=100)
def square(x):
    return x * x, os.getpid()

def work(x):
    with limiter:
        cache[x] = x
        value, pid = square(x)
    return value, cache.get_or_set_sync(x, lambda: -1), os.getpid(), pid

if __name__ == "__main__":
    square(3)
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(3, maxtasksperchild=7) as pool:
        rows = pool.map(work, range(60), chunksize=1)
        squares = pool.map(square, range(10))
        pool.close()
        pool.join()
    assert [row[:2] for row in rows] == [(x * x, x) for x in range(60)], rows
    pids = {row[2] for row in rows}
    assert len(pids) > 3 and os.getpid() not in pids
    assert [value for value, _ in squares] == [x * x for x in range(10)]
    inherited = {row[3] for row in rows if row[0] == 9}
    assert inherited == {os.getpid()} or sys.argv[1] != "fork"
    process = context.Process(target=work, args=(1,))
    process.start()
    process.join(20)
    assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT, encoding="utf-8")
    run_well(script, method, timeout=60)
