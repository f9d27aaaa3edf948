"""The background sweep of caches: one thread, only as long as a cache wants it."""

from __future__ import annotations

import gc
import logging
import threading
import time
from datetime import timedelta

import pytest
from child import FORKS, run_well
from waiting import eventually

from ferrogate import Cache, CacheConfig, InternalError
from ferrogate.testing import ManualClock

THREAD = "ferrogate-cleanup"


def sweepers() -> list[threading.Thread]:
    gc.collect()
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def removals(cache_name: str, removed: list[str]) -> Cache[str, int]:
    """A cache that notes in ``removed`` when the sweep has taken its entry."""

    def note(*_: object) -> None:
        removed.append(cache_name)

    return Cache(10, ttl=0.005, cleanup_interval=0.005, on_evict=note)


@pytest.mark.usefixtures("no_leaked_threads")
def test_no_thread_without_a_cache_that_wants_it() -> None:
    assert sweepers() == []
    keep = [
        Cache(10),
        Cache(10, cleanup_interval=0.01, enabled=False),
        Cache(CacheConfig(enabled=False)),
    ]
    assert sweepers() == []
    del keep


@pytest.mark.usefixtures("no_leaked_threads")
def test_one_thread_for_all_and_none_after_them() -> None:
    removed: list[str] = []
    caches = {name: removals(name, removed) for name in "abcdefgh"}
    for cache in caches.values():
        cache["k"] = 1
    eventually(lambda: set(removed) == set("abcdefgh"))
    assert len(sweepers()) == 1
    del cache, caches
    eventually(lambda: sweepers() == [])
    again = removals("again", removed)
    again["k"] = 1
    eventually(lambda: "again" in removed)
    del again
    eventually(lambda: sweepers() == [])


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_short_interval_does_not_wait_for_a_long_one() -> None:
    removed: list[str] = []
    slow = Cache[str, int](10, cleanup_interval=timedelta(hours=1))
    never = Cache[str, int](10, cleanup_interval=float("inf"))
    time.sleep(0.02)  # the thread is in its long pause
    quick = removals("quick", removed)
    quick["k"] = 1
    eventually(lambda: removed == ["quick"])
    del slow, never, quick
    eventually(lambda: sweepers() == [])


@pytest.mark.usefixtures("no_leaked_threads")
def test_caches_that_come_as_the_last_one_goes_are_swept() -> None:
    removed: list[str] = []
    for i in range(200):
        cache = removals(str(i), removed)
        cache["k"] = 1
        if i % 10 == 0:
            eventually(lambda i=i: str(i) in removed)
        del cache
    eventually(lambda: sweepers() == [])


@pytest.mark.usefixtures("no_leaked_threads")
def test_caches_made_by_listeners_of_the_sweep() -> None:
    removed: list[str] = []
    made: list[Cache[str, int]] = []

    def breed(*_: object) -> None:
        child = removals(str(len(made)), removed)
        child["k"] = 1
        made.append(child)

    parent = Cache[str, int](10, ttl=0.005, cleanup_interval=0.005, on_evict=breed)
    parent["k"] = 1
    eventually(lambda: removed == ["0"])
    assert len(sweepers()) == 1
    del parent
    made.clear()
    eventually(lambda: sweepers() == [])


@pytest.mark.usefixtures("no_leaked_threads")
def test_the_interval_is_real_time_and_the_deadline_the_clocks() -> None:
    clock = ManualClock()
    removed: list[object] = []
    cache = Cache[str, int](
        10,
        ttl=60,
        cleanup_interval=0.005,
        clock=clock,
        on_evict=lambda key, *_: removed.append(key),
    )
    cache["k"] = 1
    time.sleep(0.03)
    assert removed == []
    clock.advance(60)
    eventually(lambda: removed == ["k"])
    del cache


@pytest.mark.usefixtures("no_leaked_threads")
def test_a_cache_that_cannot_be_swept_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    told: list[str] = []

    class Failing(Cache[str, int]):
        def cleanup(self) -> int:
            calls.append(1)
            raise InternalError("told")

    # No handler: a record that is kept keeps the traceback, and with it the cache.
    monkeypatch.setattr(
        logging.getLogger("ferrogate"), "handle", lambda record: told.append(record.getMessage())
    )
    removed: list[str] = []
    failing = Failing(10, cleanup_interval=0.001, name="failing")
    good = removals("good", removed)
    for n in range(1, 4):
        good["k"] = 1
        eventually(lambda n=n: len(removed) == n)
    eventually(lambda: len(calls) > 3)
    assert len(told) == 1
    assert told[0].startswith("the sweep of Failing('failing'")
    del failing, good
    eventually(lambda: sweepers() == [])


@pytest.mark.parametrize("bad", [0, -1, float("nan"), timedelta(0), timedelta(seconds=-1)])
def test_an_interval_that_is_none(bad: float) -> None:
    with pytest.raises(ValueError, match="cleanup_interval"):
        Cache(10, cleanup_interval=bad)


@pytest.mark.parametrize("bad", ["1", True, [1]])
def test_an_interval_of_the_wrong_type(bad: float) -> None:
    with pytest.raises(TypeError, match="cleanup_interval"):
        Cache(10, cleanup_interval=bad)


PRELUDE = """
import os, signal, sys, threading, time
from ferrogate import Cache, HealthMonitor
def sweepers():
    return [t for t in threading.enumerate() if t.name == "ferrogate-cleanup"]
def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def swept(removed, deadline=10):
    until = time.monotonic() + deadline
    while not removed:
        assert time.monotonic() < until, "not swept"
        time.sleep(0.002)
"""


@pytest.mark.hostile
def test_a_forked_child_sweeps_what_it_inherited() -> None:
    run_well(
        FORKS
        + PRELUDE
        + """
removed = []
cache = Cache(10, ttl=0.05, cleanup_interval=0.002, on_evict=lambda *_: removed.append(1))
def child():
    assert len(sweepers()) == 1
    removed.clear()
    cache["k"] = 1
    swept(removed)
    in_child(lambda: (removed.clear(), cache.set("k", 1), swept(removed)))
for _ in range(20):
    in_child(child)
"""
    )


@pytest.mark.hostile
def test_a_forked_child_without_such_caches_has_no_thread() -> None:
    run_well(
        FORKS
        + PRELUDE
        + """
cache = Cache(10, cleanup_interval=0.002)
time.sleep(0.01)
del cache
def child():
    assert threading.active_count() == 1, threading.enumerate()
    removed = []
    own = Cache(10, ttl=0.005, cleanup_interval=0.002, on_evict=lambda *_: removed.append(1))
    own["k"] = 1
    swept(removed)
in_child(child)
"""
    )


@pytest.mark.hostile
def test_forks_while_caches_come_and_go() -> None:
    run_well(
        FORKS
        + PRELUDE
        + """
ends = threading.Event()
def churn():
    while not ends.is_set():
        Cache(10, ttl=0.001, cleanup_interval=0.001)["k"] = 1
churners = [threading.Thread(target=churn) for _ in range(4)]
for churner in churners: churner.start()
def child():
    removed = []
    own = Cache(10, ttl=0.005, cleanup_interval=0.002, on_evict=lambda *_: removed.append(1))
    own["k"] = 1
    swept(removed)
    assert len(sweepers()) == 1
for _ in range(30):
    in_child(child)
ends.set()
for churner in churners: churner.join()
""",
        timeout=60,
    )


@pytest.mark.hostile
def test_exit_does_not_wait_long_for_rounds_that_hang_and_starts_none() -> None:
    """Two threads that do not end in time cost one deadline, not one each."""
    run_well(
        """
import atexit, threading, time
begun = []
def over():
    spent = time.monotonic() - begun[0]
    assert 0.9 < spent < 1.9, spent
    before = threading.active_count()
    late = HealthMonitor(interval=0.01)
    late.start()
    assert not late.running
    keep = Cache(10, cleanup_interval=0.001)
    assert threading.active_count() == before
atexit.register(over)  # before the import: it runs after ferrogate's own
from ferrogate import Cache, HealthMonitor
hang, hanging = threading.Event(), threading.Semaphore(0)
def hangs(*_):
    hanging.release()
    hang.wait()
class Hangs:
    def get_stats(self):
        if threading.current_thread() is not threading.main_thread(): hangs()
        return {"hits": 0, "misses": 0}
cache = Cache(10, ttl=0.001, cleanup_interval=0.001, on_evict=hangs)
cache["k"] = 1
monitor = HealthMonitor(interval=0.01, cache=Hangs())
monitor.start()
for _ in range(2): assert hanging.acquire(timeout=20)
atexit.register(lambda: begun.append(time.monotonic()))
"""
    )
