"""The interpreter exits with its own exit code and says nothing.

Every row runs in child processes, each several times; `make soak` runs 200.
"""

from __future__ import annotations

import pytest
from child import patience
from exits import RUNS, check

pytestmark = [pytest.mark.hostile, pytest.mark.soak]

# name: (what the child does, the expected exit code, the expected last line on stderr)
ROWS: dict[str, tuple[str, int, str]] = {
    "idle": (
        """
c = Cache(CacheConfig())
c["a"] = object()
@cached(ttl=60)
def f(x): return x
f(1)
m = PerformanceMetrics()
RateLimiter("1/hour", burst=1).try_acquire()
ProductionOptimizer().get_dashboard()
""",
        0,
        "",
    ),
    "awaited": (
        """
c = Cache(100, ttl=60)
@cached
async def f(x):
    await asyncio.sleep(0)
    return x
async def main():
    await asyncio.gather(*(f(i % 7) for i in range(100)))
    await asyncio.gather(*(c.get_or_set(i % 7, lambda: asyncio.sleep(0, 1)) for i in range(100)))
asyncio.run(main())
""",
        0,
        "",
    ),
    "guarded calls, awaited, pending, left and never begun": (
        """
import warnings
from ferrogate import Guard, Hedge, RetryPolicy
# Of the one that nobody ever awaits; as of any coroutine.
warnings.simplefilter("ignore", RuntimeWarning)
guard = Guard("g", bulkhead=5, timeout=60, attempt_timeout=50, retry=RetryPolicy(3, base=30),
              hedge=Hedge(delay=0.001))
@guard
async def f(seconds):
    await asyncio.sleep(seconds)
    if seconds: raise ValueError
@guard
async def stream():
    yield 1
    await asyncio.sleep(60)
async def main():
    await asyncio.gather(*(f(0) for _ in range(20)))
    tasks = [asyncio.ensure_future(f(x)) for x in (60, 60, 0.001, 60, 60, 60)]
    items = stream()
    await anext(items)
    await asyncio.sleep(0.01)
    globals()["keep"] = tasks, items, f(1), stream()
asyncio.run(main())
""",
        0,
        "",
    ),
    "guarded calls of daemon threads": (
        """
from ferrogate import Guard, RetryPolicy
keep = Slow()
guard = Guard("g", bulkhead=1, attempt_timeout=50, retry=RetryPolicy(9, base=60, max_delay=60))
def fails():
    raise ValueError
async def main():
    await asyncio.gather(*(guard.call(asyncio.sleep, 0.001) for i in range(9000)))
daemons(lambda: asyncio.run(main()), lambda: guard.call_sync(fails))
""",
        0,
        "",
    ),
    "pending flights on a loop that is closed": (
        """
@cached
async def f(x):
    await asyncio.sleep(60)
async def main():
    tasks = [asyncio.ensure_future(f(i % 3)) for i in range(9)]
    await asyncio.sleep(0.01)
    globals()["keep"] = tasks
asyncio.run(main())
""",
        0,
        "",
    ),
    "pending flights on a daemon thread's loop": (
        """
keep = Slow()
c = Cache(10)
async def load():
    while True:
        await asyncio.sleep(0.001)
async def main():
    await asyncio.gather(*(c.get_or_set(i % 3, load) for i in range(9)))
daemons(lambda: asyncio.run(main()))
""",
        0,
        "",
    ),
    "pending flights of daemon threads": (
        """
keep = Slow()
c = Cache(10)
def load():
    while True:
        time.sleep(0.001)
daemons(lambda: c.get_or_set_sync("k", load), count=4)
""",
        0,
        "",
    ),
    "pending limiter waits on a loop that is closed": (
        """
limiter = RateLimiter("1/hour", burst=1)
async def enter():
    async with limiter: pass
async def main():
    await limiter.acquire()
    tasks = [asyncio.ensure_future(limiter.acquire()) for _ in range(4)]
    tasks += [asyncio.ensure_future(enter()) for _ in range(4)]
    await asyncio.sleep(0.01)
    globals()["keep"] = tasks
asyncio.run(main())
""",
        0,
        "",
    ),
    "pending limiter waits of daemon threads": (
        """
keep = Slow()
limiter = RateLimiter("1000/second", burst=1)
limiter.acquire_sync(1000)
@rate_limited("1/hour")
def f(): pass
f()
def blocks():
    while True:
        with limiter: time.sleep(0.001)
def acquires():
    while True: limiter.acquire_sync()
async def loops():
    while True: await limiter.acquire()
daemons(blocks, acquires, f, lambda: asyncio.run(loops()))
""",
        0,
        "",
    ),
    "refreshes of stale values under way": (
        """
from ferrogate.testing import ManualClock
clock, hang = ManualClock(), False
def slow(x):
    while hang: time.sleep(0.001)
async def aslow(x):
    while hang: await asyncio.sleep(0.001)
f = cached(ttl=1, clock=clock, stale_while_revalidate=60)(slow)
g = cached(ttl=1, clock=clock, stale_while_revalidate=60)(aslow)
async def main():
    for i in range(12):
        f(i); await g(i)
    globals()["hang"] = True
    clock.advance(5)
    for i in range(8):
        f(i); await g(i)
    await asyncio.sleep(0.01)
asyncio.run(main())
import atexit
atexit.register(f, 0)
""",
        0,
        "",
    ),
    "refreshes that end the thread": (
        """
from ferrogate.testing import ManualClock
clock, end = ManualClock(), False
@cached(ttl=1, clock=clock, stale_while_revalidate=60)
def f(x):
    if end: sys.exit(7)
for i in range(8): f(i)
end = True
clock.advance(5)
for i in range(8): f(i)
sys.exit(5)
""",
        5,
        "",
    ),
    "cancelled": (
        """
limiter = RateLimiter("1/hour", burst=1)
limiter.try_acquire()
@cached
async def f(x):
    await asyncio.sleep(60)
async def main():
    for i in range(20):
        try:
            await asyncio.wait_for(asyncio.gather(f(i), f(i), limiter.acquire()), 0.001)
        except TimeoutError:
            pass
asyncio.run(main())
""",
        0,
        "",
    ),
    "daemon threads calling in": (
        """
keep = Slow()
c = Cache(16, ttl=60)
@cached(max_size=16)
def f(x): return x
m = PerformanceMetrics()
limiter = RateLimiter("1000/minute", burst=10)
def work(i=0):
    while True:
        i += 1
        c.set(i, i)
        c.get(i - 3)
        f(i % 32)
        m.record_generation(True, 0.1)
        limiter.try_acquire(key=str(i % 5))
daemons(work, count=4)
""",
        0,
        "",
    ),
    "daemon threads inside user code that was called natively": (
        """
keep = Slow()
pause = lambda *_: time.sleep(0.001)
evicting = Cache(4, on_evict=pause)
weighing = Cache(4, max_bytes=10, weigher=lambda *_: pause() or 1)
class Key:
    def __hash__(self): pause(); return 1
    def __eq__(self, other): pause(); return self is other
class Dying:
    def __del__(self, pause=time.sleep): pause(0.001)
class Canonical:
    def __cache_key__(self): pause(); return 1
interning, dying = Cache(4), Cache(4)
@cached(max_size=4, key=lambda x: pause() or x)
def f(x): return pause()
@cached(max_size=4, tags=lambda x: pause() or [str(x)])
def g(x): return pause()
class Service:
    @cached(max_size=4)
    def method(self, x): return pause()
def forever(step):
    def work(i=0):
        while True:
            i += 1
            step(i)
    return work
daemons(*map(forever, [
    lambda i: evicting.set(i, i),
    lambda i: weighing.set(i, i),
    lambda i: interning.set(Key(), i),
    lambda i: dying.set(i, Dying()),
    lambda i: interning.get(Canonical()),
    f, g,
    lambda i: Service().method(i),
    lambda i: asyncio.run(evicting.get_or_set(i, lambda: asyncio.sleep(0))),
]))
""",
        0,
        "",
    ),
    "sys.exit in a listener": (
        """
seen = []
sys.unraisablehook = lambda hooked: seen.append(hooked.exc_type)
c = Cache(1, on_evict=lambda *_: sys.exit(7))
c["a"] = 1
c["b"] = 2
assert seen == [SystemExit], seen
sys.exit(5)
""",
        5,
        "",
    ),
    "sys.exit in a loader": (
        """
@cached
def f(x): sys.exit(7)
f(1)
""",
        7,
        "",
    ),
    "sys.exit in an asyncio loader": (
        """
@cached
async def f(x):
    await asyncio.sleep(0)
    sys.exit(7)
asyncio.run(f(1))
""",
        7,
        "",
    ),
    "sys.exit in a weigher": (
        """
Cache(4, max_bytes=10, weigher=lambda *_: sys.exit(7))["a"] = 1
""",
        7,
        "",
    ),
    "sys.exit in a check": (
        """
m = HealthMonitor()
m.register("exits", lambda: sys.exit(7))
assert not m.check_sync().healthy
sys.exit(5)
""",
        5,
        "",
    ),
    "unhandled exception": (
        """
c = Cache(CacheConfig(cleanup_interval=0.01))
@cached
def f(x): raise LookupError("told")
f(1)
""",
        1,
        "LookupError: told",
    ),
    "clean-up thread": (
        """
keep = Slow()
c = Cache(50_000, ttl=0.02, cleanup_interval=0.001, on_evict=lambda *_: None)
until = time.monotonic() + 0.15
i = 0
while time.monotonic() < until:
    i += 1
    c.set(i, i)
""",
        0,
        "",
    ),
    "monitor": (
        """
keep = Slow()
m = HealthMonitor(interval=0.001)
m.register("sync", lambda: time.sleep(0.001))
m.start()
time.sleep(0.05)
""",
        0,
        "",
    ),
    "optimizer": (
        """
optimizer = ProductionOptimizer()
@cached(cache=optimizer.cache)
def f(x): return x
f(1)
optimizer.health.start()
time.sleep(0.02)
""",
        0,
        "",
    ),
    "os._exit": (
        """
c = Cache(CacheConfig(cleanup_interval=0.01))
daemons(lambda: c.get_or_set_sync("k", lambda: time.sleep(60)))
os._exit(3)
""",
        3,
        "",
    ),
    "used from atexit and from finalisers": (
        """
import atexit
c = Cache(CacheConfig(max_size=2, cleanup_interval=0.01))
@cached
def f(x): return x
class Late:
    def __del__(self, c=c, f=f):
        c["late"] = f(1)
        assert c["late"] == 1
late = Late()
atexit.register(lambda: c.set("a", f(2)))
atexit.register(lambda: Cache(CacheConfig(cleanup_interval=0.01)))
c["self"] = Late()
""",
        0,
        "",
    ),
}


@pytest.mark.timeout(patience(2, RUNS))
@pytest.mark.parametrize("row", ROWS)
def test_exit(row: str) -> None:
    check(*ROWS[row])
