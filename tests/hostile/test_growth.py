"""HOSTILE 25: the resident size stays flat however often an operation is done."""

from __future__ import annotations

import sys

import budget_calls
import pytest
from child import SEED, patience, run, run_well, times

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.soak,
    pytest.mark.skipif(sys.platform != "linux", reason="only on Linux: reads /proc/self/statm"),
]

#: Operations of each kind; a million in the soak.
COUNT = times(100_000, 1_000_000)
#: What the heap may move by without anything having leaked: less than 6 bytes an
#: operation at 100,000 of them, where the smallest Python object takes 16.
ALLOWED = 512 * 1024

PRELUDE = (
    f"SEED = {SEED}"
    + """
import asyncio, gc, random, sys, threading
from ferrogate import (
    Cache, HealthMonitor, PerformanceMetrics, RateLimiter, RateLimitExceeded, cache_key, cached,
    rate_limited,
)
random.seed(SEED)
loop = asyncio.new_event_loop()

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def flat(step, count, warm=0.2):
    for i in range(max(2_000, int(count * warm))):
        step(i)
    before = resident()
    for i in range(count):
        step(i)
    grown = resident() - before
    # Once more: a leak grows again, an allocator that settles does not.
    if grown > ALLOWED:
        before = resident()
        for i in range(count):
            step(i)
        grown = resident() - before
    assert grown < ALLOWED, f"{grown / count:.1f} bytes for each of {count} operations"
"""
)

# name: (set-up and `def step(i)`, the share of COUNT)
STEPS = {
    **budget_calls.STEPS,
    "get, set, evict": (
        """
cache = Cache(1000, ttl=60)
def step(i):
    cache.set(i % 5000, i)
    cache.get(i * 7 % 5000)
""",
        1.0,
    ),
    "text and tuple keys, tags, a listener": (
        """
left = 0
def listener(key, value, cause):
    global left
    left += 1
cache = Cache(500, on_evict=listener, max_bytes=400, weigher=lambda *_: 1)
def step(i):
    cache.set((f"a long key of more than sixty-four bytes that is hashed, number {i}", i), [i],
              tags=[f"t{i % 50}", f"u{i}"])
    if i % 100 == 0: cache.invalidate_tag(f"t{i % 50}")
""",
        0.5,
    ),
    **{
        f"everything at once, {policy}": (
            f"""
cache = Cache(
    1000, policy={policy!r}, max_bytes=4000, weigher=lambda key, value: len(value), ttl=60,
    on_evict=lambda *_: None,
)
def step(i):
    key, drawn = i * 7919 % 3001, random.random()
    if drawn < 0.4: cache.get(key)
    elif drawn < 0.7: cache.set(key, "x" * (i % 9))
    elif drawn < 0.8: cache.set((key, f"number {{i}}"), "x", ttl=1 + i % 9, tags=[f"t{{i % 50}}"])
    elif drawn < 0.85: cache.get_or_set_sync(key, lambda: str(i))
    elif drawn < 0.9: cache.pop(key, None)
    elif drawn < 0.95: cache.setdefault(str(key), "x"); key in cache; cache.explain(key)
    elif drawn < 0.99: cache.delete(key)
    elif drawn < 0.9999: cache.invalidate_tag(f"t{{i % 50}}"); cache.cleanup(); cache.get_stats()
    else: cache.clear()
""",
            1.0,
        )
        for policy in ("lru", "adaptive")
    },
    "a cache service in memory": (
        """
from ferrogate import CacheService
service = CacheService(near_bytes=1 << 18, compress_over=200)
async def load(): return {"loaded": 1}
async def some(start):
    await asyncio.gather(*(service.set("ns", n, {"n": n}) for n in range(start, start + 20)))
    await asyncio.gather(*(service.get("ns", n) for n in range(start - 20, start + 20)))
    await asyncio.gather(*(service.get_or_set("ns", start, load) for _ in range(5)))
def step(i):
    key, drawn = f"{i * 7919 % 3001}", random.random()
    if drawn < 0.5: service.get_sync("ns", key)
    elif drawn < 0.8: service.set_sync("ns", key, ["x" * (i % 300)], tags=[f"t{i % 50}"], ttl=60)
    elif drawn < 0.9: service.delete_sync("ns", key)
    elif drawn < 0.95: service.get_or_set_sync("other", key, lambda: i)
    elif drawn < 0.99: service.get_sync(f"ns {i}", key)
    elif drawn < 0.999: service.invalidate_tag_sync(f"t{i % 50}"); service.get_stats()
    else: service.invalidate_namespace_sync("other")
    if i % 100 == 0: loop.run_until_complete(some(i))
""",
        1.0,
    ),
    "expiry": (
        """
from ferrogate.testing import ManualClock
clock = ManualClock()
cache = Cache(1000, ttl=5, clock=clock)
def step(i):
    cache.set(i, i, ttl=1 + i % 3)
    if i % 10 == 0: clock.advance(0.1)
    if i % 100 == 0: cache.cleanup()
""",
        1.0,
    ),
    "misses and errors": (
        """
cache = Cache(1000)
def step(i):
    cache.get(f"absent {i}")
    cache.pop(i, None)
    try: cache[("absent", i)]
    except KeyError: pass
    try: cache_key(object())
    except TypeError: pass
""",
        0.5,
    ),
    "stale values, failures and refreshes": (
        """
from ferrogate.testing import ManualClock
clock = ManualClock()
cache = Cache(200, ttl=5, clock=clock)
TERMS = dict(
    stale_while_revalidate=5, stale_if_error=20, negative_ttl={ValueError: 3}, ttl_jitter=0.5,
    early_refresh=1.0, skip_if=lambda result: result % 7 == 0,
)
@cached(cache=cache, ttl=5, **TERMS)
def f(x):
    clock.advance(0.01)
    if random.random() < 0.3: raise ValueError([x])
    return x
@cached(cache=cache, ttl=5, **TERMS)
async def g(x):
    await asyncio.sleep(0)
    return f.__wrapped__(x)
async def main(i):
    try: await g(i % 90)
    except ValueError: pass
    await asyncio.sleep(0)
def step(i):
    for call in (f, f.cache_refresh):
        try: call(i * 7 % 90)
        except ValueError: pass
    loop.run_until_complete(main(i))
    if i % 50 == 0: f.cache_invalidate(i % 90)
""",
        0.1,
    ),
    "cached hit": (
        """
@cached(max_size=100)
def f(x, y=1): return x
def step(i):
    f(i % 50); f("text"); f(x=i % 50, y=2)
""",
        1.0,
    ),
    "cached miss": (
        """
@cached(max_size=100, ttl=60, tags=lambda x: [f"t{x % 9}"])
def f(x): return [x]
def step(i): f(i)
""",
        0.5,
    ),
    "cached errors": (
        """
@cached(max_size=100)
def f(x): raise ValueError(x)
def step(i):
    try: f(i)
    except ValueError: pass
""",
        0.3,
    ),
    "awaited hits and misses": (
        """
@cached(max_size=100)
async def f(x): return [x]
async def some(start):
    for i in range(100): await f(start + i); await f(start + i)
    await asyncio.gather(*(f(start) for _ in range(5)))
def step(i):
    if i % 100 == 0: loop.run_until_complete(some(i))
""",
        0.5,
    ),
    "single flight over tasks, cancelled ones too": (
        """
cache = Cache(100)
async def load(): await asyncio.sleep(0); return 1
async def fail(): await asyncio.sleep(0); raise ValueError
async def some(start):
    tasks = [asyncio.ensure_future(cache.get_or_set(start + i % 5, load)) for i in range(20)]
    tasks += [asyncio.ensure_future(cache.get_or_set(("bad", start), fail)) for i in range(5)]
    await asyncio.sleep(0)
    for task in tasks[::3]: task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
def step(i):
    if i % 25 == 0: loop.run_until_complete(some(i))
assert not cache.get_stats()["loading"]
""",
        0.5,
    ),
    "single flight over threads": (
        """
from concurrent.futures import ThreadPoolExecutor
cache = Cache(100)
pool = ThreadPoolExecutor(4)
def step(i):
    if i % 50 == 0:
        list(pool.map(lambda n: cache.get_or_set_sync(n // 4, lambda: [n]), range(i, i + 40)))
""",
        0.3,
    ),
    "interned keys": (
        """
class Opaque:
    def __init__(self, n): self.n = n
    def __hash__(self): return hash(self.n % 100)
    def __eq__(self, other): return self.n == other.n
cache = Cache(200)
def step(i):
    cache[Opaque(i)] = i
    cache.get(Opaque(i - 5)); cache.get(Opaque(-i))
""",
        0.3,
    ),
    "methods of dying instances": (
        """
class Service:
    @cached(max_size=1000)
    def work(self, x): return [self.__class__, x]
    @cached
    async def work_async(self, x): return [x]
old = Service()
def step(i):
    service = Service()
    service.work(1); service.work(1); service.work(i)
    old.work(i % 10)
    if i % 10 == 0: service.loop = service  # goes by the collector
""",
        0.3,
    ),
    "caches and cached functions themselves": (
        """
def step(i):
    if i % 10: return
    cache = Cache(10, on_evict=lambda *_: cache)
    cache["self"] = cache
    @cached(max_size=5)
    def f(x): return f
    f(1)
    limiter = RateLimiter("5/second", burst=2)
    with limiter: pass
    metrics = PerformanceMetrics(); metrics.record_generation(True, 0.1)
    cache["all"] = limiter, metrics
""",
        1.0,
    ),
    "acquire and deny": (
        """
limiter = RateLimiter("100/second", "1000/minute", burst=5)
gcra = RateLimiter("100/second", algorithm="gcra")
bucket = RateLimiter("100/second", algorithm="token_bucket")
def step(i):
    limiter.try_acquire(); gcra.try_acquire(); bucket.try_acquire().retry_after
    limiter.try_acquire(200_000)
    if i % 100 == 0: limiter.get_stats(); repr(limiter)
""",
        1.0,
    ),
    "keys of a limiter": (
        """
from ferrogate.testing import ManualClock
clock = ManualClock()
limiter = RateLimiter("3/second", max_keys=500, clock=clock)
def step(i):
    limiter.try_acquire(key=f"tenant {i}")
    limiter.eta(1, key=i)
    if i % 400 == 0: clock.advance(2)
""",
        1.0,
    ),
    "reserve, settle, release, drop and deny": (
        """
from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock
clock = ManualClock()
limiter = LLMLimiter(
    requests_per_minute=500, tokens_per_minute=50_000, usd_per_minute=5, fairness="weighted",
    max_tenants=50, max_models=20, clock=clock,
)
def step(i):
    asked = dict(input_tokens=100, cost_usd=0.01, model=f"m {i}", tenant=f"t {i}")
    if reserved := limiter.try_reserve(output_tokens=50, **asked):
        if i % 3 == 0: reserved.settle(output_tokens=i % 200, cost_usd=0.02)
        elif i % 3 == 1: reserved.release()
    else:
        reserved.retry_after
    limiter.try_reserve(**asked)
    limiter.eta(**asked)
    if i % 300 == 0: clock.advance(20); limiter.get_stats(); repr(limiter)
""",
        1.0,
    ),
    "waits that time out, are cancelled or granted": (
        """
limiter = RateLimiter("1/hour", burst=1)
limiter.try_acquire()
slots = RateLimiter("1000000/second", burst=1)
@rate_limited("100000000/hour", burst=2)
async def f(): await asyncio.sleep(0)
async def enter():
    async with slots: await asyncio.sleep(0)
async def refused():
    try: await limiter.acquire(timeout=0)
    except RateLimitExceeded: pass
async def some():
    tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(5)]
    tasks += [asyncio.ensure_future(enter()) for _ in range(5)]
    tasks += [asyncio.ensure_future(f()) for _ in range(5)]
    tasks += [asyncio.ensure_future(refused()) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks[:7]: task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
def step(i):
    try: limiter.acquire_sync(timeout=0)
    except RateLimitExceeded: pass
    if i % 20 == 0: loop.run_until_complete(some())
""",
        0.4,
    ),
    "calls through a breaker that opens and closes": (
        """
import contextlib
from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError
from ferrogate.testing import ManualClock
clock = ManualClock()
config = CircuitBreakerConfig(slow_call_seconds=5, window=60.0, max_timeout_seconds=100)
breaker = CircuitBreaker("api", config, clock=clock, classify=lambda result, error: None)
breaker.on_open(lambda b: b.get_stats())
breaker.on_close(lambda b: 1 / 0)
refusals = (ValueError, CircuitBreakerOpenError)
@breaker
async def f(i):
    async with breaker: await asyncio.sleep(0)
    if i % 3: raise ValueError(i)
@breaker
async def stream(i):
    for n in range(i % 5): yield n
async def some(i):
    tasks = [asyncio.ensure_future(breaker.call(f, i + n)) for n in range(5)]
    await asyncio.sleep(0)
    for task in tasks[:2]: task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(*refusals):
        async for _ in stream(i): break
def step(i):
    with contextlib.suppress(*refusals), breaker:
        if i // 50 % 2: raise ValueError(i)
    breaker.__aenter__ if breaker.is_open() else breaker.__aenter__()
    if i % 20 == 0: loop.run_until_complete(some(i))
    if i % 7 == 0: clock.advance(3)
import logging; logging.disable()
""",
        0.4,
    ),
    "calls through a guard that fail, pause, are late, hedged or left": (
        """
import contextlib
from ferrogate import Guard, Hedge, LLMLimiter, RetryBudget, RetryPolicy
from ferrogate.testing import ManualClock
clock = ManualClock()
limiter = LLMLimiter(requests_per_minute=10**9, tokens_per_minute=10**12, clock=clock)
guard = Guard(
    "api", limiter=limiter, bulkhead=50, clock=clock, timeout=60, attempt_timeout=20,
    retry=RetryPolicy(3, base=0, budget=RetryBudget(1.0, clock=clock), clock=clock),
    hedge=Hedge(delay=5), fallback=lambda error: None,
)
shared = Guard("shared", timeout=30)
@guard
async def f(i):
    await asyncio.sleep(0)
    if i % 3 == 0: raise ValueError(i)
    if i % 11 == 0: await asyncio.Event().wait()
    return [i]
@guard
async def stream(i):
    for n in range(i % 5): yield [n]
@guard
def plain(i):
    if i % 3 == 0: raise ValueError(i)
async def some(i):
    tasks = [asyncio.ensure_future(f(i + n)) for n in range(6)]
    tasks += [asyncio.ensure_future(shared.call(asyncio.sleep, 0)) for _ in range(4)]
    for _ in range(5): await asyncio.sleep(0)
    tasks[4].cancel()
    for _ in range(20):
        clock.advance(5)
        for _ in range(3): await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    async for _ in stream(i): break
    f(i).close()
def step(i):
    plain(i)
    if i % 50 == 0: loop.run_until_complete(some(i))
""",
        0.4,
    ),
    "metrics": (
        """
metrics = PerformanceMetrics()
def step(i):
    metrics.record_generation(i % 7 != 0, random.expovariate(1), i % 4000, i % 3, 0.01)
    if i % 1000 == 0: metrics.get_stats()
""",
        1.0,
    ),
    "health": (
        """
monitor = HealthMonitor()
flip = 0
def check():
    global flip
    flip += 1
    return flip % 4 > 1
monitor.register("flips", check)
monitor.register("fails", lambda: 1 / 0)
def step(i):
    if i % 100 == 0: monitor.check_sync(); monitor.alerts(); monitor.alert_history()
""",
        0.3,
    ),
    "clients of one loop after another": (
        """
cache = Cache(10)
limiter = RateLimiter("1000000/second")
async def main(i):
    await cache.get_or_set(i, lambda: asyncio.sleep(0, i))
    await limiter.acquire()
def step(i):
    if i % 200 == 0: asyncio.run(main(i))
""",
        1.0,
    ),
}


@pytest.mark.timeout(patience(120, times(1, 10)))
@pytest.mark.parametrize("kind", STEPS)
def test_resident_size_is_flat(kind: str) -> None:
    code, share = STEPS[kind]
    run_well(
        f"{PRELUDE}\nALLOWED = {ALLOWED}\n{code}\nflat(step, {int(COUNT * share)})\nloop.close()",
        timeout=100 * times(1, 10),
    )


def test_the_measure_sees_sixteen_bytes_an_operation() -> None:
    done = run(
        f"{PRELUDE}\nALLOWED = {ALLOWED}\nkept = []\n"
        f"flat(lambda i: kept.append(float(i)), {COUNT})\nloop.close()"
    )
    assert done.code == 1, str(done)
    assert "bytes for each of" in done.stderr
