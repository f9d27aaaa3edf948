"""Targets that make no sense, and functions that have no place for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from routing import breaker

from ferrogate import CircuitBreaker, CircuitBreakerConfig, Guard, RateLimiter, Target


def test_wrong_arguments() -> None:
    target = Target("a", None)
    twice = r"targets: expected names that differ, got 'a' twice"
    for error, match, options in (
        (
            TypeError,
            "targets: expected a list of ferrogate.Target, got Target",
            {"targets": target},
        ),
        (TypeError, "targets: expected ferrogate.Target objects, got str", {"targets": ["a"]}),
        (TypeError, "targets: expected a list", {"targets": "a"}),
        (ValueError, "targets: expected at least one", {"targets": []}),
        (ValueError, twice, {"targets": [target, Target("a", 1)]}),
        (ValueError, "route: expected one of", {"targets": [target], "route": "best"}),
        (TypeError, "route: expected a str", {"targets": [target], "route": 1}),
        (ValueError, "route: for a guard with targets", {"route": "ordered"}),
        (
            ValueError,
            "targets: expected a price of 'a'",
            {"targets": [target], "route": "cheapest"},
        ),
        (
            ValueError,
            "limiter: expected none",
            {"targets": [target], "limiter": RateLimiter("1/s")},
        ),
        (ValueError, "bulkhead: expected none", {"targets": [target], "bulkhead": 1}),
        (
            ValueError,
            "breaker: expected none",
            {"targets": [target], "breaker": breaker("b", None)},
        ),
        (ValueError, "usage: for limiter", {"targets": [target], "usage": len}),
    ):
        with pytest.raises(error, match=match):
            Guard("wrong", **options)  # type: ignore[arg-type]
    for error, match, options in (
        (TypeError, "name: expected a str", {"name": 1}),
        (ValueError, "name: expected at least one", {"name": ""}),
        (TypeError, "breaker: expected", {"breaker": 1}),
        (TypeError, "limiter: expected", {"limiter": "1/s"}),
        (ValueError, "bulkhead: expected at least 1", {"bulkhead": 0}),
        (TypeError, "bulkhead: expected an int", {"bulkhead": True}),
        (ValueError, "weight: expected at least 1", {"weight": 0}),
        (TypeError, "weight: expected an int", {"weight": 0.5}),
        (ValueError, "weight: expected at most 1000000", {"weight": 10**9}),
        (TypeError, "price: expected a number", {"price": "1"}),
        (ValueError, "price: expected US dollars", {"price": -1}),
        (ValueError, "price: expected US dollars", {"price": float("nan")}),
        (ValueError, "price: expected a number", {"price": (1, 2, 3)}),
        (TypeError, "price: expected a number", {"price": (1, None)}),
    ):
        with pytest.raises(error, match=match):
            Target(**{"name": "a", "value": None, **options})
    with pytest.raises(AttributeError, match="name: a Target stays"):
        target.name = "b"
    assert repr(Target("a", 1, price=(1, 2), weight=3)) == (
        "<Target 'a', weight 3, 1 and 2 USD per million tokens>"
    )


def test_a_function_must_have_a_place_for_the_target() -> None:
    guard = Guard("chat", targets=[Target("a", None)])

    async def without(prompt: str) -> None: ...

    def positional(target: Any, /) -> None: ...

    for function in (without, positional, len):
        with pytest.raises(TypeError, match="expected a parameter `target`"):
            guard(function)
    with pytest.raises(TypeError, match="without: expected a parameter `target`"):
        guard.call(without, "hi")
    with pytest.raises(TypeError, match="expected a parameter `target`"):
        guard.call_sync(positional)

    class Agent:
        @guard
        def method(self, *, target: Target[None]) -> str:
            return target.name

        def __call__(self, target: Target[None]) -> str:
            return target.name

    assert Agent().method() == "a"
    assert guard(Agent())() == "a"
    assert guard.get_stats()["targets"]["a"]["attempts"] == 2


def test_transports_say_that_they_take_none() -> None:
    httpx = pytest.importorskip("httpx", reason="needs httpx")
    from ferrogate.integrations.httpx import GuardedTransport

    with pytest.raises(ValueError, match="guard: expected one without targets"):
        GuardedTransport(Guard("chat", targets=[Target("a", httpx)]))


def test_a_caller_who_names_a_target_harms_none() -> None:
    breakers = [CircuitBreaker(name, CircuitBreakerConfig(minimum_calls=1)) for name in "ab"]
    targets = [Target(breaker.name, 1, breaker=breaker) for breaker in breakers]
    guard = Guard("g", targets=targets, fallback=lambda _: "fallen")

    @guard
    def ask(x: int, *, target: Any = Target.chosen) -> Any:
        return target.value + x

    @guard
    async def later(x: int, *, target: Any = Target.chosen) -> Any:
        return target.value + x

    @guard
    async def stream(*, target: Any = Target.chosen) -> AsyncIterator[Any]:
        yield target.value

    for wrong in (
        lambda: ask(1, target=5),
        lambda: later(1, target=5),
        lambda: stream(target=5),
        lambda: guard.call_sync(ask.__wrapped__, 1, target=5),  # type: ignore[attr-defined]
        lambda: guard.call(later.__wrapped__, 1, target=5),  # type: ignore[attr-defined]
    ):
        with pytest.raises(TypeError, match="target: filled in by the guard"):
            wrong()
    assert [breaker.get_stats()["calls"] for breaker in breakers] == [0, 0]
    assert ask(1) == 2
