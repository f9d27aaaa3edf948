"""User code that a breaker calls: when, what it may do, and what happens if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from child import patience, run_well, times

from ferrogate import CircuitBreaker, CircuitBreakerConfig
from ferrogate.testing import ManualClock

pytestmark = pytest.mark.timeout(patience(60, times(1, 30)))


def watched() -> tuple[CircuitBreaker, ManualClock, list[str]]:
    clock = ManualClock()
    breaker = CircuitBreaker("api", clock=clock)
    seen: list[str] = []
    breaker.on_open(lambda b: seen.append(f"open: {b.state}"))
    breaker.on_close(lambda b: seen.append(f"close: {b.state}"))
    breaker.on_half_open(lambda b: seen.append(f"half_open: {b.state}"))
    return breaker, clock, seen


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with contextlib.suppress(ValueError), breaker:
            raise ValueError


def succeed(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with breaker:
            pass


def test_each_step_is_told_once_and_after_it() -> None:
    breaker, clock, seen = watched()
    fail(breaker, 5)
    clock.advance(30)
    fail(breaker)
    clock.advance(30)
    succeed(breaker, 4)
    assert seen == [
        "open: open",
        "half_open: half_open",
        "open: open",
        "half_open: half_open",
        "close: closed",
    ]


def test_what_is_forced_is_told_where_it_changes_something() -> None:
    breaker, _, seen = watched()
    breaker.reset()
    breaker.disable()
    breaker.metrics_only()
    breaker.reset()
    assert seen == []
    fail(breaker, 5)
    breaker.force_open()  # it was open
    breaker.force_open()
    breaker.reset()
    breaker.force_open()
    breaker.disable()
    breaker.reset()
    assert seen == ["open: open", "close: closed", "open: forced_open"]


def test_they_are_decorators_and_run_in_order() -> None:
    breaker = CircuitBreaker("api")
    order: list[int] = []

    @breaker.on_open
    def first(_: CircuitBreaker) -> None:
        order.append(1)

    @breaker.on_open
    def second(_: CircuitBreaker) -> None:
        order.append(2)

    assert callable(first)
    assert callable(second)
    breaker.force_open()
    assert order == [1, 2]


def test_what_cannot_be_called_is_refused_at_once() -> None:
    breaker: Any = CircuitBreaker("api")

    async def later(_: object) -> None: ...

    for register in (breaker.on_open, breaker.on_close, breaker.on_half_open):
        for wrong in ("alarm", None, later):
            with pytest.raises(TypeError, match=r"^callback: expected a"):
                register(wrong)


class Stop(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError, Stop])
def test_one_that_raises(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    breaker, clock, seen = watched()

    def alarm(_: CircuitBreaker) -> None:
        raise error("no pager")

    for register in (breaker.on_open, breaker.on_close, breaker.on_half_open):
        register(alarm)
    breaker.on_open(lambda b: seen.append("after it"))
    fail(breaker, 5)
    assert seen == ["open: open", "after it"]
    clock.advance(30)
    succeed(breaker, 3)
    assert breaker.state == "closed"
    assert breaker.get_stats()["callback_errors"] == 3
    # Said once, with where it happened; never swallowed, and no flood.
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ferrogate", logging.ERROR)
    assert "circuit breaker 'api'" in record.getMessage()
    assert "alarm" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_one_that_raises_does_not_hide_what_the_call_raised() -> None:
    breaker = CircuitBreaker("api", CircuitBreakerConfig(window=1))
    breaker.on_open(lambda _: 1 / 0)
    original = ValueError("the call's own")
    with pytest.raises(ValueError, match="own") as raised, breaker:
        raise original
    assert raised.value is original
    assert raised.value.__context__ is None


def test_ctrl_c_in_one_is_not_lost() -> None:
    breaker = CircuitBreaker("api")

    @breaker.on_open
    def interrupted(_: CircuitBreaker) -> None:
        raise KeyboardInterrupt

    def go() -> None:
        breaker.force_open()
        for _ in range(1000):
            pass

    with pytest.raises(KeyboardInterrupt):
        go()
    assert breaker.state == "forced_open"


def test_one_that_uses_the_breaker() -> None:
    breaker, clock, seen = watched()

    @breaker.on_open
    def back(b: CircuitBreaker) -> None:
        b.get_stats()
        repr(b)
        if b.state == "open":
            b.reset()
            fail(b, 4)
            b.metrics_only()
            b.on_close(lambda _: seen.append("a new one"))
            b.reset()

    fail(breaker, 5)
    assert (breaker.state, breaker.get_stats()["calls"]) == ("closed", 0)
    assert seen == ["open: open", "close: closed"]
    breaker.force_open()
    breaker.reset()
    assert seen[2:] == ["open: forced_open", "close: closed", "a new one"]
    del clock


def test_two_that_undo_each_other_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("api")
    breaker.on_open(lambda b: b.reset())
    breaker.on_close(lambda b: b.force_open())
    breaker.force_open()
    # Python's own limit ends it; the breaker goes on.
    assert breaker.get_stats()["callback_errors"] >= 1
    breaker.reset()
    caplog.clear()


CYCLES: list[Callable[[Any, Any], object]] = [
    lambda breaker, thing: breaker.on_open(lambda _: (breaker, thing)),
    lambda breaker, thing: breaker.on_close(lambda _: (breaker, thing)),
    lambda breaker, thing: breaker.__dict__.update(me=breaker, thing=thing),
    lambda breaker, thing: breaker.on_half_open(thing.method),
    lambda breaker, thing: [breaker.on_half_open(breaker.reset), thing.__dict__.update(b=breaker)],
]


class Thing:
    def method(self, _: object) -> None: ...


@pytest.mark.memcheck
@pytest.mark.parametrize("tie", CYCLES)
def test_cycles_are_collected(tie: Callable[[Any, Any], object]) -> None:
    thing = Thing()
    holder: list[Any] = []
    breaker = CircuitBreaker("api", classify=lambda *_: holder and None)
    holder.extend([breaker, thing])
    tie(breaker, thing)
    fail(breaker, 5)
    watching = weakref.ref(thing), weakref.ref(breaker)
    holder = []
    del thing, breaker
    gc.collect()
    assert [ref() for ref in watching] == [None, None]


def test_callbacks_are_alive_as_long_as_their_breaker() -> None:
    breaker = CircuitBreaker("api")
    seen: list[object] = []
    breaker.on_open(lambda _: seen.append(1))
    gc.collect()
    breaker.force_open()
    assert seen == [1]


HAMMER = """
import gc, sys, threading, time
from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError

what, rounds = sys.argv[1], int(sys.argv[2])
if what == "collect":
    gc.set_threshold(1)
config = CircuitBreakerConfig(0.2, timeout_seconds=1e-6, success_threshold=1, window=4)
failures, told = [], [0, 0, 0]

def classify(result, error):
    user_code()

breaker = CircuitBreaker("hammered", config, classify=classify)
threading.excepthook = failures.append

def user_code():
    if what == "sleep":
        time.sleep(0.0002)
    elif what == "collect":
        gc.collect(0)
        [[] for _ in range(10)]
    else:
        breaker.get_stats(), breaker.is_open(), repr(breaker), breaker.state
        try:
            with breaker: pass
        except CircuitBreakerOpenError: pass

def watch(number):
    def tell(b):
        assert b is breaker
        told[number] += 1
        user_code()
        if what == "raise":
            raise ValueError
    return tell

breaker.on_open(watch(0)); breaker.on_half_open(watch(1)); breaker.on_close(watch(2))
if what == "raise":
    import logging; logging.disable()

def call(number):
    for turn in range(rounds):
        try:
            with breaker:
                if (turn // 16 + number) % 2:
                    raise KeyError(turn)
        except (KeyError, CircuitBreakerOpenError): pass
        if turn % 50 == number:
            breaker.on_open(id)
            (breaker.force_open if turn % 100 == number else breaker.disable)()
            breaker.reset()

threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
stats = breaker.get_stats()
assert stats["probes"] == 0, stats
assert min(told) > 0, told
ended = sum(stats[k] for k in ("successes", "failures", "throttled", "neutral"))
assert what == "reenter" or what == "raise" or ended + stats["rejected"] == 8 * rounds, stats
assert (stats["callback_errors"] > 0) == (what == "raise"), stats
print("done")
"""


@pytest.mark.hostile
@pytest.mark.memcheck
@pytest.mark.soak
@pytest.mark.parametrize(
    ("what", "rounds"), [("reenter", 1000), ("sleep", 200), ("collect", 200), ("raise", 1000)]
)
def test_user_code_while_others_hammer(what: str, rounds: int) -> None:
    count = str(times(rounds, 30 * rounds))
    assert run_well(HAMMER, what, count, timeout=30 * times(1, 30)) == "done\n"
