"""HOSTILE 9 for a breaker: forks, with and without blocks that are open."""

from __future__ import annotations

import os

import pytest
from child import FORKS, run_well

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="not on Windows"),
]

PRELUDE = (
    FORKS
    + """
import contextlib, os, sys, threading, time, traceback
from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError
from ferrogate.testing import ManualClock

def half_open(**config):
    clock = ManualClock()
    breaker = CircuitBreaker("api", CircuitBreakerConfig(**config), clock=clock)
    for _ in range(5):
        with contextlib.suppress(ValueError), breaker:
            raise ValueError
    clock.advance(30)
    return breaker

def fork_and(body):
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
    assert os.waitpid(pid, 0)[1] == 0
"""
)


def forked(code: str) -> None:
    assert run_well(PRELUDE + code) == "done\n"


def test_a_child_has_a_breaker_of_its_own() -> None:
    forked(
        """
breaker = half_open()
def child():
    for _ in range(3):
        with breaker: pass
    assert breaker.state == "closed"
fork_and(child)
assert breaker.state == "half_open"
print("done")
"""
    )


def test_probes_of_the_parent_hold_no_place_in_the_child() -> None:
    forked(
        """
breaker = half_open()
inside, leave = threading.Event(), threading.Event()
def probe():
    with breaker:
        inside.set()
        leave.wait()
thread = threading.Thread(target=probe)
thread.start()
inside.wait()
def child():
    assert breaker.get_stats()["probes"] == 0
    for _ in range(3):
        with breaker: pass
    assert breaker.state == "closed"
fork_and(child)
assert breaker.get_stats()["probes"] == 1
leave.set()
thread.join()
assert (breaker.get_stats()["probes"], breaker.get_stats()["successes"]) == (0, 1)
print("done")
"""
    )


def test_a_block_that_forks_ends_in_both() -> None:
    forked(
        """
breaker = half_open(success_threshold=1)
with breaker:
    pid = os.fork()
state, stats = breaker.state, breaker.get_stats()
assert (state, stats["probes"], stats["successes"]) == ("closed", 0, 1), (state, stats)
if pid == 0:
    breaker.force_open()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert breaker.state == "closed"
print("done")
"""
    )


def test_forks_while_threads_are_inside() -> None:
    forked(
        """
breaker = CircuitBreaker("api", CircuitBreakerConfig(timeout_seconds=1e-6, window=2))
breaker.on_open(lambda b: b.get_stats())
stop = threading.Event()
def hammer():
    turn = 0
    while not stop.is_set():
        turn += 1
        try:
            with breaker:
                if turn % 3: raise ValueError
        except (ValueError, CircuitBreakerOpenError): pass
threads = [threading.Thread(target=hammer) for _ in range(8)]
for thread in threads: thread.start()
def child():
    breaker.reset()
    for _ in range(10):
        with breaker: pass
    assert breaker.get_stats()["probes"] == 0
for _ in range(30):
    fork_and(child)
stop.set()
for thread in threads: thread.join()
print("done")
"""
    )
