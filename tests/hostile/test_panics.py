"""HOSTILE 13: a panic in any exported callable is an ``InternalError``, and nothing else.

Needs a build with ``--features failpoints`` (`make test-failpoints`), in which a
callable that goes through the FFI edge can be told to panic. A callable that is
not listed here fails the first test: whoever exports one says how to call it, or
why it cannot panic.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import budget_calls
import guarded_calls
import pytest
from child import run

import ferrogate
from ferrogate import (
    AdaptiveConcurrency,
    Cache,
    CacheService,
    CircuitBreaker,
    CircuitBreakerConfig,
    Limit,
    LLMLimiter,
    PerformanceMetrics,
    RateLimiter,
    RetryBudget,
    RetryPolicy,
    _core,
    cached,
)
from ferrogate.health import HealthMonitor
from ferrogate.testing import ManualClock

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.failpoints,
    pytest.mark.skipif(
        not hasattr(_core, "_arm_failpoint"),
        reason="needs a build that can panic: `make test-failpoints`",
    ),
]

arm: Any = getattr(_core, "_arm_failpoint", None)
seen: Any = getattr(_core, "_seen_failpoints", None)

FRESHNESS = _core.Freshness(
    ttl=5, stale_if_error=5, negative_ttl={ValueError: 5}, skip_if=lambda _: False
)

#: A recipe makes a call that can be repeated; the objects stay the same.
Recipe = Callable[[], Callable[[], object]]


def awaited(awaitable: Any) -> object:
    async def main() -> object:
        return await awaitable

    return asyncio.run(main())


class Key:
    """Has no canonical form: the cache interns it."""


class Service:
    def __cache_key__(self) -> str:
        return "service"

    @cached
    def method(self, x: int) -> int:
        return x


@cached
def double(x: int) -> int:
    return 2 * x


def filled() -> Cache[Any, Any]:
    cache: Cache[Any, Any] = Cache(10, ttl=60, on_evict=lambda *_: None)
    cache.set("k", 1, tags=["t"])
    cache[Key()] = 2
    return cache


def of_cache(call: Callable[[Cache[Any, Any]], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        cache = filled()
        return lambda: call(cache)

    return recipe


def popitem(cache: Cache[Any, Any]) -> None:
    cache["last"] = 1
    cache.popitem()


def delete(cache: Cache[Any, Any]) -> None:
    cache["k"] = 1
    del cache["k"]


def throw(cache: Cache[Any, Any]) -> None:
    cache["k"] = 1
    hit = cache._ready_or_lookup("k")
    assert isinstance(hit, _core.Ready)
    with pytest.raises(KeyError):
        hit.throw(KeyError("k"))


def missed(cache: Cache[Any, Any]) -> _core.Lookup:
    cache.delete("absent")
    lookup = cache._ready_or_lookup("absent")
    assert isinstance(lookup, _core.Lookup)
    return lookup


def of_flight(call: Callable[[_core.Flight], object]) -> Recipe:
    """A flight lands once, so every call has one of its own."""

    def recipe() -> Callable[[], object]:
        cache = filled()

        def step() -> object:
            flight, leads, _ = cache._join(missed(cache))
            try:
                return call(flight)
            finally:
                if leads:
                    flight.abandon()

        return step

    return recipe


def enroll(flight: _core.Flight) -> int:
    loop = asyncio.new_event_loop()
    try:
        waiter = flight.enroll(loop, loop.create_future())
    finally:
        loop.close()
    assert waiter is not None
    return waiter


def landed(flight: _core.Flight) -> _core.Flight:
    flight.land_value(1)
    return flight


def of_function(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        double(1)
        return lambda: call(double)

    return recipe


def of_method(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        service = Service()
        method = service.method
        method(1)
        return lambda: call(method)

    return recipe


def set_and_delete_attribute(function: Any) -> None:
    function.note = 1
    del function.note


def of_breaker(call: Callable[[CircuitBreaker], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        breaker = CircuitBreaker("api", clock=ManualClock())
        return lambda: call(breaker)

    return recipe


def no_copy(breaker: CircuitBreaker) -> None:
    with pytest.raises(TypeError):
        breaker.__reduce__()


def of_limiter(call: Callable[[RateLimiter], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        limiter = RateLimiter("100000/second", burst=100, clock=ManualClock())
        return lambda: call(limiter)

    return recipe


def of_llm_limiter(call: Callable[[LLMLimiter], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        limiter = LLMLimiter(requests_per_minute=1_000_000, clock=ManualClock())
        return lambda: call(limiter)

    return recipe


def of_reservation(call: Callable[[_core.Reservation], object]) -> Recipe:
    return of_llm_limiter(lambda limiter: call(limiter.reserve_sync(input_tokens=1)))


def of_denial(call: Callable[[_core.Denial], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        limiter = LLMLimiter(requests_per_minute=1, usd_per_minute=1, clock=ManualClock())
        limiter.reserve_sync().settle()
        denial = limiter.try_reserve()
        assert isinstance(denial, _core.Denial)
        return lambda: call(denial)

    return recipe


class Waiter:
    def wake(self) -> None: ...


def of_ticket(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        limiter = RateLimiter("1/second", clock=ManualClock())
        limiter.try_acquire()

        def step() -> object:
            waiting: Any = limiter.acquire()
            try:
                return call(waiting._ticket)
            finally:
                waiting.close()

        return step

    return recipe


def of_health(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        core = HealthMonitor()._core
        return lambda: call(core)

    return recipe


def of_metrics(call: Callable[[PerformanceMetrics], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        metrics = PerformanceMetrics()
        return lambda: call(metrics)

    return recipe


def of_clock(call: Callable[[ManualClock], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        clock = ManualClock()
        return lambda: call(clock)

    return recipe


def of_service(call: Callable[[Any], object]) -> Recipe:
    def recipe() -> Callable[[], object]:
        service = CacheService()
        service.set_sync("ns", "k", 1)
        return lambda: call(service)

    return recipe


def leased(service: Any) -> Any:
    return service._lease(True, "ns", "other", None)[1]


def fork() -> None:
    try:
        _core._before_fork()
    finally:
        _core._after_fork_in_parent()


def new(make: Callable[[], object]) -> Recipe:
    return lambda: make


RECIPES: dict[str, Recipe] = {
    "Cache": new(filled),
    "Cache.__contains__": of_cache(lambda c: "k" in c),
    "Cache.__delitem__": of_cache(delete),
    "Cache.__getitem__": of_cache(lambda c: c["k"]),
    "Cache.__iter__": of_cache(list),
    "Cache.__len__": of_cache(len),
    "Cache.__setitem__": of_cache(lambda c: c.__setitem__("k", 2)),
    "Cache._depart_alone": of_cache(lambda c: c._depart_alone(missed(c)).abandon()),
    "Cache._fallback": of_cache(lambda c: c._fallback(missed(c), FRESHNESS)),
    "Cache._join": of_cache(lambda c: c._join(missed(c))[0].abandon()),
    "Cache._join_anew": of_cache(lambda c: c._join_anew(missed(c))[0].abandon()),
    "Cache._join_refresh": of_cache(lambda c: c._join_refresh(missed(c))[0].abandon()),
    "Cache._peek": of_cache(lambda c: c._peek("k")),
    "Cache._ready_or_lookup": of_cache(lambda c: c._ready_or_lookup("k")),
    "Cache._snapshot": of_cache(lambda c: c._snapshot()),
    "Cache.cleanup": of_cache(lambda c: c.cleanup()),
    "Cache.clear": of_cache(lambda c: c.clear()),
    "Cache.delete": of_cache(lambda c: c.delete("k")),
    "Cache.exists": of_cache(lambda c: c.exists("k")),
    "Cache.explain": of_cache(lambda c: c.explain("k")),
    "Cache.get": of_cache(lambda c: c.get("k")),
    "Cache.get_stats": of_cache(lambda c: c.get_stats()),
    "Cache.invalidate_tag": of_cache(lambda c: c.invalidate_tag("t")),
    "Cache.pop": of_cache(lambda c: c.pop("k", None)),
    "Cache.popitem": of_cache(popitem),
    "Cache.reset_stats": of_cache(lambda c: c.reset_stats()),
    "Cache.setdefault": of_cache(lambda c: c.setdefault("k", 2)),
    "Cache.set": of_cache(lambda c: c.set("k", 1, ttl=5, tags=["t"])),
    "CacheService": new(CacheService),
    "CacheService._await": of_service(lambda s: s._await(True, "ns", "k", 1)),
    "CacheService._close": of_service(lambda s: s._close(1.0)),
    "CacheService._figures": of_service(lambda s: s._figures()),
    "CacheService._lease": of_service(lambda s: s._lease(True, "ns", "k", None)),
    "CacheService._lease_here": of_service(lambda s: s._lease_here("ns", "k")),
    "CacheService._set_loaded": of_service(
        lambda s: s._set_loaded(True, "ns", "k", 1, None, None, leased(s))
    ),
    "CacheService.delete": of_service(lambda s: awaited(s.delete("ns", "k"))),
    "CacheService.delete_sync": of_service(lambda s: s.delete_sync("ns", "k")),
    "CacheService.exists": of_service(lambda s: awaited(s.exists("ns", "k"))),
    "CacheService.exists_sync": of_service(lambda s: s.exists_sync("ns", "k")),
    "CacheService.get": of_service(lambda s: awaited(s.get("ns", "k"))),
    "CacheService.get_sync": of_service(lambda s: s.get_sync("ns", "k")),
    "CacheService.health_check": of_service(lambda s: awaited(s.health_check())),
    "CacheService.health_check_sync": of_service(lambda s: s.health_check_sync()),
    "CacheService.invalidate_namespace": of_service(
        lambda s: awaited(s.invalidate_namespace("ns"))
    ),
    "CacheService.invalidate_namespace_sync": of_service(
        lambda s: s.invalidate_namespace_sync("ns")
    ),
    "CacheService.invalidate_tag": of_service(lambda s: awaited(s.invalidate_tag("t"))),
    "CacheService.invalidate_tag_sync": of_service(lambda s: s.invalidate_tag_sync("t")),
    "CacheService.reset_stats": of_service(lambda s: s.reset_stats()),
    "CacheService.set": of_service(lambda s: awaited(s.set("ns", "k", 1))),
    "CacheService.set_sync": of_service(lambda s: s.set_sync("ns", "k", 1)),
    "CachedFunction": new(lambda: cached(double.__wrapped__)),
    "CachedFunction.__call__": of_function(lambda f: f(1)),
    "CachedFunction.__class_getitem__": new(lambda: _core.CachedFunction[[int], int]),
    "CachedFunction.__delattr__": of_function(set_and_delete_attribute),
    "CachedFunction.__get__": new(lambda: Service.method),
    "CachedFunction.__getattribute__": of_function(lambda f: f.__name__),
    "CachedFunction.__reduce__": of_function(lambda f: f.__reduce__()),
    "CachedFunction.__repr__": of_function(repr),
    "CachedFunction.__setattr__": of_function(set_and_delete_attribute),
    "CachedFunction._doc": of_function(lambda f: f._doc),
    "CachedFunction.cache_bypass": of_function(lambda f: f.cache_bypass(1)),
    "CachedFunction.cache_clear": of_function(lambda f: f.cache_clear()),
    "CachedFunction.cache_info": of_function(lambda f: f.cache_info()),
    "CachedFunction.cache_invalidate": of_function(lambda f: f.cache_invalidate(1)),
    "CachedFunction.cache_key": of_function(lambda f: f.cache_key(1)),
    "CachedFunction.cache_parameters": of_function(lambda f: f.cache_parameters()),
    "CachedFunction.cache_refresh": of_function(lambda f: f.cache_refresh(1)),
    "CachedMethod.__call__": of_method(lambda m: m(1)),
    "CachedMethod.__getattribute__": of_method(lambda m: m.__name__),
    "CachedMethod.__reduce__": of_method(lambda m: m.__reduce__()),
    "CachedMethod.__repr__": of_method(repr),
    "CachedMethod.__wrapped__": of_method(lambda m: m.__wrapped__(1)),
    "CachedMethod._doc": of_method(lambda m: m._doc),
    "CachedMethod.cache_bypass": of_method(lambda m: m.cache_bypass(1)),
    "CachedMethod.cache_clear": of_method(lambda m: m.cache_clear()),
    "CachedMethod.cache_info": of_method(lambda m: m.cache_info()),
    "CachedMethod.cache_invalidate": of_method(lambda m: m.cache_invalidate(1)),
    "CachedMethod.cache_key": of_method(lambda m: m.cache_key(1)),
    "CachedMethod.cache_parameters": of_method(lambda m: m.cache_parameters()),
    "CachedMethod.cache_refresh": of_method(lambda m: m.cache_refresh(1)),
    "CircuitBreaker": new(lambda: CircuitBreaker("api")),
    "CircuitBreaker.__aenter__": of_breaker(lambda b: awaited(b.__aenter__())),
    "CircuitBreaker.__aexit__": of_breaker(lambda b: awaited(b.__aexit__(None, None, None))),
    "CircuitBreaker.__enter__": of_breaker(lambda b: b.__enter__()),
    "CircuitBreaker.__exit__": of_breaker(lambda b: b.__exit__(None, None, None)),
    "CircuitBreaker.__reduce__": of_breaker(no_copy),
    "CircuitBreaker._after_fork": of_breaker(lambda b: b._after_fork()),
    "CircuitBreaker._watch": of_breaker(lambda b: b.on_open(id)),
    "CircuitBreaker.call": of_breaker(lambda b: awaited(b.call(guarded_calls.double_later, 1))),
    "CircuitBreaker.call_sync": of_breaker(lambda b: b.call_sync(guarded_calls.double, 1)),
    "CircuitBreaker.disable": of_breaker(lambda b: b.disable()),
    "CircuitBreaker.force_open": of_breaker(lambda b: (b.force_open(), b.reset())),
    "CircuitBreaker.get_stats": of_breaker(lambda b: b.get_stats()),
    "CircuitBreaker.is_open": of_breaker(lambda b: b.is_open()),
    "CircuitBreaker.metrics_only": of_breaker(lambda b: b.metrics_only()),
    "CircuitBreaker.record_waste": of_breaker(lambda b: b.record_waste(usd=1.0, tokens=5)),
    "CircuitBreaker.reset": of_breaker(lambda b: b.reset()),
    "CircuitBreaker.state": of_breaker(lambda b: b.state),
    "Denial.__repr__": of_denial(repr),
    "Denial.limit": of_denial(lambda d: d.limit),
    "Denial.remaining": of_denial(lambda d: d.remaining),
    "Decision.__repr__": of_limiter(lambda r: repr(r.try_acquire())),
    "Flight.abandon": of_flight(lambda f: f.abandon()),
    "Flight.enroll": of_flight(enroll),
    "Flight.handle": of_flight(lambda f: f.handle()),
    "Flight.is_of_this_thread": of_flight(lambda f: f.is_of_this_thread()),
    "Flight.land_error": of_flight(lambda f: f.land_error((ValueError(), None, None))),
    "Flight.land_value": of_flight(lambda f: f.land_value(1)),
    "Flight.leave": of_flight(lambda f: f.leave(enroll(f))),
    "Flight.move_here": of_flight(lambda f: f.move_here()),
    "Flight.outdate": of_flight(lambda f: f.outdate()),
    "Flight.outcome": of_flight(lambda f: landed(f).outcome()),
    "Flight.store": of_flight(lambda f: f.store(missed(filled()), 1, FRESHNESS)),
    "Flight.store_failure": of_flight(
        lambda f: f.store_failure(missed(filled()), ValueError(), 5, 0)
    ),
    "Flight.tag": of_flight(lambda f: f.tag(["t"])),
    "Flight.wait": of_flight(lambda f: landed(f).wait(1.0)),
    "Flight.waiting": of_flight(lambda f: f.waiting()),
    "Freshness": new(lambda: _core.Freshness(ttl=5)),
    "Freshness.negative_ttl": new(lambda: FRESHNESS.negative_ttl(ValueError())),
    "Freshness.skips": new(lambda: FRESHNESS.skips(1)),
    "HealthCore": new(HealthMonitor),
    "HealthCore.alert_counts": of_health(lambda h: h.alert_counts()),
    "HealthCore.alert_history": of_health(lambda h: h.alert_history()),
    "HealthCore.alerts": of_health(lambda h: h.alerts()),
    "HealthCore.evaluate": of_health(lambda h: h.evaluate(memory_percent=50.0)),
    "HealthCore.now": of_health(lambda h: h.now()),
    "HealthCore.resolve": of_health(lambda h: h.resolve("x")),
    "HealthCore.sample": of_health(lambda h: h.sample()),
    "HealthCore.unix": of_health(lambda h: h.unix()),
    "AdaptiveConcurrency": new(AdaptiveConcurrency),
    "AdaptiveConcurrency.__repr__": new(lambda: repr(AdaptiveConcurrency())),
    "Limit": new(lambda: Limit(1, 60)),
    "Limit.__reduce__": new(lambda: Limit(1, 60).__reduce__()),
    "Limit.__repr__": new(lambda: repr(Limit(1, 60))),
    "Limit._of_nanos": new(lambda: Limit._of_nanos(1, 60)),
    "Limit.__str__": new(lambda: str(Limit(1, 60))),
    "ManualClock": new(ManualClock),
    "ManualClock.__repr__": of_clock(repr),
    "ManualClock._advance": of_clock(lambda c: c.advance(1)),
    "ManualClock._advance_ns": of_clock(lambda c: c._advance_ns(1)),
    "PerformanceMetrics": new(PerformanceMetrics),
    "PerformanceMetrics.__repr__": of_metrics(repr),
    "PerformanceMetrics.get_stats": of_metrics(lambda m: m.get_stats()),
    "PerformanceMetrics.record_generation": of_metrics(
        lambda m: m.record_generation(True, 0.1, 5, 1, 0.1)
    ),
    "PerformanceMetrics.reset": of_metrics(lambda m: m.reset()),
    "LLMLimiter": new(lambda: LLMLimiter(requests_per_minute=1)),
    "LLMLimiter._adaptive_stats": of_llm_limiter(lambda r: r.get_stats()),
    "LLMLimiter._reset": of_llm_limiter(lambda r: r._reset()),
    "LLMLimiter._after_fork": of_llm_limiter(lambda r: r._after_fork()),
    "LLMLimiter._clock_moved": of_llm_limiter(lambda r: r._clock_moved()),
    "LLMLimiter._refused": of_llm_limiter(lambda r: r.observe({}, 429)),
    "LLMLimiter._stats": of_llm_limiter(lambda r: r.get_stats()),
    "LLMLimiter._update": of_llm_limiter(lambda r: r.update(requests_per_minute=5_000)),
    "LLMLimiter.eta": of_llm_limiter(lambda r: r.eta()),
    "LLMLimiter.learn": of_llm_limiter(lambda r: r.learn("requests", remaining=5_000)),
    "LLMLimiter.limits": of_llm_limiter(lambda r: r.limits),
    "LLMLimiter.pause": of_llm_limiter(lambda r: (r.pause(1), r.resume())),
    "LLMLimiter.reserve": of_llm_limiter(lambda r: awaited(r.reserve(model="m", timeout=5))),
    "LLMLimiter.reserve_sync": of_llm_limiter(lambda r: r.reserve_sync(tenant="t")),
    "LLMLimiter.resume": of_llm_limiter(lambda r: r.resume()),
    "LLMLimiter.try_reserve": of_llm_limiter(lambda r: r.try_reserve(cost_usd=0.1)),
    "RateLimiter": new(lambda: RateLimiter("1/second")),
    "RateLimiter.__aenter__": of_limiter(lambda r: awaited(r.__aenter__())),
    "RateLimiter.__aexit__": of_limiter(lambda r: awaited(r.__aexit__(None, None, None))),
    "RateLimiter.__enter__": of_limiter(lambda r: r.__enter__()),
    "RateLimiter.__exit__": of_limiter(lambda r: r.__exit__(None, None, None)),
    "RateLimiter._after_fork": of_limiter(lambda r: r._after_fork()),
    "RateLimiter._check": of_limiter(lambda r: r._check(1, None)),
    "RateLimiter._clock_moved": of_limiter(lambda r: r._clock_moved()),
    "RateLimiter._hold": of_limiter(lambda r: r._hold(1, None)),
    "RateLimiter._sharing": of_limiter(lambda r: r._sharing()),
    "RateLimiter._adaptive_stats": of_limiter(lambda r: r.get_stats()),
    "RateLimiter._stats": of_limiter(lambda r: r.get_stats()),
    "RateLimiter._reset": of_limiter(lambda r: r._reset()),
    "RateLimiter._update": of_limiter(lambda r: r.update("5/second")),
    "RateLimiter.acquire": of_limiter(lambda r: awaited(r.acquire(1, "key", 5))),
    "RateLimiter.acquire_sync": of_limiter(lambda r: r.acquire_sync(1, "key", 5)),
    "RateLimiter.eta": of_limiter(lambda r: r.eta(1)),
    "RateLimiter.limits": of_limiter(lambda r: r.limits),
    "RateLimiter.try_acquire": of_limiter(lambda r: r.try_acquire(1, "key")),
    "Ready.throw": of_cache(throw),
    "RetryBudget": new(RetryBudget),
    "RetryBudget._reset": new(lambda: RetryBudget()._reset()),
    "RetryBudget._withdraw": new(lambda: RetryBudget()._withdraw()),
    "RetryBudget._stats": new(lambda: RetryBudget().get_stats()),
    "RetryPolicy": new(RetryPolicy),
    "RetryPolicy._stats": new(lambda: RetryPolicy().get_stats()),
    "RetryPolicy.call": new(lambda: awaited(RetryPolicy().call(asyncio.sleep, 0))),
    "RetryPolicy.call_sync": new(lambda: RetryPolicy().call_sync(int)),
    "RetryPolicy.attempts_for": new(lambda: RetryPolicy(on=OSError).attempts_for(OSError())),
    "Reservation.__aenter__": of_reservation(lambda r: awaited(r.__aenter__())),
    "Reservation.__aexit__": of_reservation(lambda r: awaited(r.__aexit__(None, None, None))),
    "Reservation.__exit__": of_reservation(lambda r: r.__exit__(None, None, None)),
    "Reservation.__repr__": of_reservation(repr),
    "Reservation.first_token": of_reservation(lambda r: r.first_token()),
    "Reservation.release": of_reservation(lambda r: r.release()),
    "Reservation.settle": of_reservation(lambda r: r.settle(output_tokens=1)),
    "_Hold.__aenter__": of_limiter(lambda r: awaited(r._hold(1, None).__aenter__())),
    "_Hold.__aexit__": of_limiter(lambda r: awaited(r._hold(1, None).__aexit__(None, None, None))),
    "_Hold.__enter__": of_limiter(lambda r: r._hold(1, None).__enter__()),
    "_Lease.release": of_service(lambda s: leased(s).release()),
    "_Hold.__exit__": of_limiter(lambda r: r._hold(1, None).__exit__(None, None, None)),
    "_Ticket.cancel": of_ticket(lambda t: t.cancel()),
    "_Ticket.poll": of_ticket(lambda t: (t.poll(Waiter()), t.cancel())),
    "_seed": new(lambda: _core._seed(7)),
    "_before_fork": new(fork),
    "_check_breaker_config": new(CircuitBreakerConfig),
    "_check_tags": new(lambda: _core._check_tags(["t"])),
    "parse_rate_limit_headers": new(lambda: _core.parse_rate_limit_headers({"retry-after": "1"})),
    "cache_key": new(lambda: ferrogate.cache_key(1, x=[2])),
    **budget_calls.RECIPES,
    **guarded_calls.RECIPES,
}

#: Exported under one name, goes through the edge of another.
THROUGH = {
    "Cache.__contains__": "Cache.exists",
    "CachedFunction._doc": "CachedFunction.__doc__",
    "CachedMethod._doc": "CachedMethod.__doc__",
    **guarded_calls.THROUGH,
}

READS = "reads a field"
COMPARES = "compares or hashes numbers and addresses"
C_API = "talks to CPython's C API only; there is nothing of Rust's in it that could panic"

#: Not through the edge, and why.
EXCUSED = {
    **budget_calls.EXCUSED,
    **guarded_calls.EXCUSED,
    "Cache.enabled": READS,
    "Cache.max_bytes": READS,
    "Cache.max_size": READS,
    "Cache.name": READS,
    "Cache.policy": READS,
    "Cache.tti": READS,
    "Cache.ttl": READS,
    "CacheService.closed": READS,
    "CacheService.name": READS,
    "CachedFunction.__dict__": READS,
    "CachedFunction.__set_name__": "sets two flags",
    "CachedFunction.cache": READS,
    "CachedMethod.__eq__": COMPARES,
    "CachedMethod.__func__": READS,
    "CachedMethod.__hash__": COMPARES,
    "CachedMethod.__self__": READS,
    "CircuitBreaker.enabled": READS,
    "CircuitBreaker.name": READS,
    "Decision.__bool__": READS,
    "Decision.granted": READS,
    "Decision.limit": READS,
    "Decision.reason": READS,
    "Decision.remaining": READS,
    "Decision.reset_after": READS,
    "Decision.retry_after": READS,
    "Failure.context": READS,
    "Failure.error": READS,
    "Flight.id": READS,
    "Flight.unattended": READS,
    "Flight.weighs": READS,
    "Freshness.needs_ttl": READS,
    "AdaptiveConcurrency.initial": READS,
    "AdaptiveConcurrency.law": READS,
    "AdaptiveConcurrency.least": READS,
    "AdaptiveConcurrency.most": READS,
    "AdaptiveConcurrency.signal": READS,
    "Limit.__eq__": COMPARES,
    "Limit.__hash__": COMPARES,
    "Limit.count": READS,
    "Limit.period": READS,
    "ManualClock.now": READS,
    "ManualClock.now_ns": READS,
    "PerformanceMetrics.name": READS,
    "Denial.__bool__": READS,
    "Denial.dimension": READS,
    "Denial.granted": READS,
    "Denial.reason": READS,
    "Denial.retry_after": READS,
    "LLMLimiter.concurrency": READS,
    "LLMLimiter.enabled": READS,
    "LLMLimiter.fairness": READS,
    "LLMLimiter.name": READS,
    "RateLimiter.algorithm": READS,
    "RateLimiter.burst": READS,
    "RateLimiter.enabled": READS,
    "RateLimiter.max_keys": READS,
    "RateLimiter.name": READS,
    "Ready.__await__": C_API,
    "Ready.__iter__": C_API,
    "Ready.__next__": C_API,
    "Ready.close": "its only Rust, giving back a grant, goes through the edge",
    "Ready.cr_await": C_API,
    "Ready.cr_frame": C_API,
    "Ready.cr_running": C_API,
    "Ready.send": C_API,
    "RetryBudget.enabled": READS,
    "RetryBudget.name": READS,
    "RetryBudget.ratio": READS,
    "RetryBudget.usd_per_minute": READS,
    "RetryPolicy.attempts": READS,
    "RetryPolicy.budget": READS,
    "RetryPolicy.enabled": READS,
    "RetryPolicy.name": READS,
    "Reservation.__enter__": READS,
    "Reservation.cost_usd": READS,
    "Reservation.granted": READS,
    "Reservation.input_tokens": READS,
    "Reservation.mark_sent": "stores one flag",
    "Reservation.output_tokens": READS,
    "Reservation.sent": READS,
    "Reservation.state": READS,
    "_Ticket.kept": "a grant would be lost if it could fail: it stores, and drops, without more",
    "_Ticket.result": READS,
    "_after_fork_in_child": "a hook whose errors nobody could catch",
    "_after_fork_in_parent": "a hook whose errors nobody could catch",
    "_shutdown": "goes through the edge, and could be called only once",
}

#: What every class has: no code of ours. The other comparisons come with ``__eq__``.
NOT_OURS = {"__doc__", "__module__", "__weakref__"}
WITH_EQ = {"__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
ITSELF = {"_arm_failpoint", "_seen_failpoints"}


def exported() -> set[str]:
    names: set[str] = set()
    for name, value in vars(_core).items():
        if isinstance(value, type) and not issubclass(value, Exception):
            own = vars(value).keys() - NOT_OURS - (WITH_EQ if "__eq__" in vars(value) else set())
            names |= {
                name if attribute == "__new__" else f"{name}.{attribute}" for attribute in own
            }
        elif callable(value) and not isinstance(value, type) and name not in ITSELF:
            names.add(name)
    return names


def test_every_exported_callable_is_listed() -> None:
    known = RECIPES.keys() | EXCUSED.keys()
    assert not RECIPES.keys() & EXCUSED.keys()
    missing, gone = exported() - known, known - exported()
    assert not missing, f"give them a recipe, or a reason why they cannot panic: {sorted(missing)}"
    assert not gone, f"not exported any more: {sorted(gone)}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_panic_is_an_internal_error(name: str) -> None:
    edge = THROUGH.get(name, name)
    call = RECIPES[name]()
    call()
    assert edge in seen(), f"{name} does not go through the edge {edge!r}"
    arm(edge)
    try:
        with pytest.raises(ferrogate.InternalError, match=r"injected by a failpoint") as caught:
            call()
    finally:
        arm(None)
    assert str(caught.value).startswith(f"{edge}: ")
    assert isinstance(caught.value, Exception)
    call()  # the same object, once more
    call()


#: Panics half-way through something larger, while others depend on it.
CHAINS = {
    "Cache._join": "",
    "Flight.store": "",
    "Flight.land_value": "",
    "Flight.land_error": "fails",
    "Flight.wait": "",
    "Flight.enroll": "async",
    "Flight.outcome": "",
}


@pytest.mark.parametrize("edge", CHAINS)
def test_a_panic_inside_a_load_leaves_nobody_waiting(edge: str) -> None:
    done = run(
        f"""
import asyncio, threading, time
from ferrogate import Cache, InternalError, _core
cache, kind = Cache(10), {CHAINS[edge]!r}
calls, ends = 0, []
class Refused(Exception): pass
def load():
    global calls
    calls += 1
    time.sleep(0.1)
    if kind == "fails": raise Refused
    return 5
async def load_async():
    global calls
    calls += 1
    await asyncio.sleep(0.1)
    return 5
def ask():
    try:
        if kind == "async":
            ends.append(asyncio.run(cache.get_or_set("k", load_async)))
        else:
            ends.append(cache.get_or_set_sync("k", load))
    except (InternalError, Refused) as error:
        ends.append(type(error).__name__)
threads = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
for t in threads[:3]: t.start()
_core._arm_failpoint({edge!r})
for t in threads[3:]: t.start()
for t in threads:
    t.join(10)
    assert not t.is_alive(), ends
assert len(ends) == 6 and set(ends) <= {{5, "InternalError", "Refused"}}, ends
_core._arm_failpoint(None)
kind = ""
assert cache.get_or_set_sync("k", load) == 5
assert cache.get_stats()["loading"] == 0
print("done")
"""
    )
    # Rust's own message about the panic is on stderr.
    assert (done.code, done.stdout) == (0, "done\n"), str(done)


#: Panics on the way of a refresh or of a failure to be remembered.
STATES = ("Cache._join_refresh", "Flight.move_here", "Flight.store", "Flight.land_error")
STATES += ("Flight.land_value", "Flight.handle", "Flight.store_failure", "Freshness.negative_ttl")


@pytest.mark.parametrize("edge", STATES)
def test_a_panic_inside_a_refresh_leaves_the_value_and_the_key(edge: str) -> None:
    done = run(
        f"""
import time
from ferrogate import InternalError, _core, cached, _refresh
from ferrogate.testing import ManualClock
clock, calls, fails = ManualClock(), 0, {"fail" in edge or "error" in edge or "neg" in edge}
@cached(ttl=10, clock=clock, stale_while_revalidate=1000, negative_ttl={{ValueError: 50}})
def f(x):
    global calls
    calls += 1
    if fails and calls > 1: raise ValueError("no")
    return calls
def settled():
    end = time.monotonic() + 10
    while len(_refresh._threads._alive) > _refresh._threads._waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
f(1)
clock.advance(10)
_core._arm_failpoint({edge!r})
assert f(1) == 1
settled()
_core._arm_failpoint(None)
assert f.cache.get_stats()["loading"] == 0
fails = False
clock.advance(1)
f(1)
settled()
assert f(1) == calls > 1
try: f.cache_refresh(1)
except InternalError: pass
assert f.cache.get_stats()["loading"] == 0
print("done")
"""
    )
    assert (done.code, done.stdout) == (0, "done\n"), str(done)


def test_a_panic_does_not_end_the_clean_up_thread() -> None:
    try:
        cache: Cache[str, int] = Cache(10, ttl=0.01, cleanup_interval=0.005)
        swept = threading.Event()
        arm("Cache.cleanup")
        listened: Cache[str, int] = Cache(
            10, ttl=0.01, cleanup_interval=0.005, on_evict=lambda *_: swept.set()
        )
        threading.Event().wait(0.1)
        listened["a"] = cache["a"] = 1
        assert swept.wait(10)
    finally:
        arm(None)
