"""`@cached`: tags, shared caches, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from child import run_well
from decorated import calls

from ferrogate import Cache, cached
from ferrogate.testing import ManualClock

# Tags and shared caches.


def test_tags() -> None:
    shared: Cache[Any, Any] = Cache(100)

    @cached(cache=shared, tags=["all"])
    def f(x: int) -> object:
        return object()

    @cached(cache=shared, tags=lambda user, x: [f"user:{user}", "all"])
    def g(user: int, x: int) -> object:
        return object()

    one, two, three = f(1), g(1, 1), g(2, 1)
    assert shared.invalidate_tag("user:1") == 1
    assert f(1) is one
    assert g(1, 1) is not two
    assert g(2, 1) is three
    assert shared.invalidate_tag("all") == 3
    assert f.cache_info().currsize == g.cache_info().currsize == 0
    for wrong in ("all", [1], 5):
        with pytest.raises(TypeError, match="tags: expected an iterable of str"):
            cached(tags=wrong)(lambda: 0)  # type: ignore[arg-type]
    bad = cached(tags=lambda: "letters")(lambda: 0)
    with pytest.raises(TypeError, match="tags: expected an iterable of str"):
        bad()
    failing = cached(tags=lambda: 1 / 0)(lambda: 0)
    with pytest.raises(ZeroDivisionError):
        failing()


def test_a_disabled_function_goes_past_a_shared_cache() -> None:
    shared: Cache[Any, Any] = Cache(100)
    calls: list[int] = []

    @cached(cache=shared, enabled=False)
    def f(x: int) -> int:
        calls.append(x)
        return x

    assert (f(1), f(1), calls) == (1, 1, [1, 1])
    assert f.cache_info()[:2] == (0, 2)
    assert len(shared) == 0
    assert f.cache_parameters()["enabled"] is False
    assert f.cache_parameters()["max_size"] == 100


@pytest.mark.parametrize(
    "wrong", [{"max_size": 1000}, {"clock": ManualClock()}, {"name": "mine"}], ids=str
)
def test_what_belongs_to_the_cache_is_refused_beside_a_shared_one(wrong: dict[str, Any]) -> None:
    shared: Cache[Any, Any] = Cache(100)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: belongs to the cache"):
        cached(cache=shared, **wrong)(lambda: 0)


@pytest.mark.parametrize("number", [60, 0.5, timedelta(minutes=1)], ids=str)
def test_a_bare_number_is_told_both_ways(number: Any) -> None:
    with pytest.raises(TypeError, match=r"by keyword: write @cached\(ttl=.* @cached\(max_size="):
        cached(number)(lambda: 0)


def test_one_function_with_other_keys_does_not_find_their_results() -> None:
    shared: Cache[Any, Any] = Cache(100)

    def f(a: float, b: int = 0) -> tuple[float, int]:
        return (a, b)

    last_digit = cached(cache=shared, key=lambda a: a % 10)(f)
    plain, typed = cached(cache=shared)(f), cached(cache=shared, typed=True)(f)
    blind = cached(cache=shared, ignore=["b"])(f)
    assert last_digit(15) == (15, 0)
    assert plain(5) == (5, 0)
    assert blind(5, 1) == (5, 1)
    assert blind(5, 2) == (5, 1)
    assert plain(5, 2) == (5, 2)
    assert repr(typed(5.0)) == "(5.0, 0)"
    # The same again is the same function.
    assert cached(cache=shared, ignore=("b",))(f)(5, 3) == (5, 1)


def test_functions_share_a_cache_without_sharing_results() -> None:
    shared: Cache[Any, Any] = Cache(100, ttl=60)

    def scaled(by: int) -> Callable[[int], int]:
        @cached(cache=shared)
        def inner(x: int) -> int:
            return x * by

        return inner

    double, triple = scaled(2), scaled(3)
    lambdas = [cached(cache=shared)(lambda x, n=n: x + n) for n in range(3)]
    assert (double(5), triple(5)) == (10, 15)
    assert [f(5) for f in lambdas] == [5, 6, 7]
    assert len(shared) == 5
    assert double.cache_info()[:2] == (0, 1)
    double(5)
    assert double.cache_info() == (1, 1, 100, 1)
    assert triple.cache_info() == (0, 1, 100, 1)
    triple.cache_clear()
    assert triple.cache_info() == (0, 0, 100, 0)
    assert len(shared) == 4
    assert double.cache is shared
    # The same function decorated again finds its results again.
    again = cached(cache=shared)(double.__wrapped__)
    assert again(5) == 10
    assert again.cache_info()[:2] == (1, 0)
    # And the number that keeps them apart is no part of the key that leaves the process.
    assert double.cache_key(5) == cached(double.__wrapped__).cache_key(5)
    # Marks of ours are not the user's tags.
    tagged = cached(cache=shared, tags=["mine"], key=lambda: "k")(lambda: 1)
    tagged()
    assert shared.cleanup() == 0


def test_wrong_options() -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"max_size": 0}, ValueError, "max_size"),
        ({"max_size": -1}, ValueError, "max_size"),
        ({"max_size": 1.5}, TypeError, "max_size"),
        ({"max_size": None}, TypeError, "max_size"),
        ({"ttl": 0}, ValueError, "ttl"),
        ({"ttl": -1}, ValueError, "ttl"),
        ({"ttl": float("nan")}, ValueError, "ttl"),
        ({"ttl": "60"}, TypeError, "ttl"),
        ({"ttl": True}, TypeError, "ttl"),
        ({"ttl": timedelta(0)}, ValueError, "ttl"),
        ({"ttl": "60", "cache": Cache(1)}, TypeError, "ttl"),
        ({"key": 5}, TypeError, "key"),
        ({"ignore": "x"}, TypeError, "ignore"),
        ({"ignore": ["y"]}, ValueError, "ignore"),
        ({"ignore": [1]}, TypeError, "ignore"),
        ({"ignore": 3}, TypeError, "ignore"),
        ({"typed": 1}, TypeError, "typed"),
        ({"single_flight": 3}, TypeError, "single_flight"),
        ({"tags": "x"}, TypeError, "tags"),
        ({"policy": "mru"}, ValueError, "policy"),
        ({"cache": {}}, TypeError, "cache"),
        ({"clock": 5}, TypeError, "clock"),
        ({"name": 5}, TypeError, "name"),
        ({"enabled": "no"}, TypeError, "enabled"),
        ({"unknown": 5}, TypeError, "unknown"),
    ]
    for options, error, name in wrong:
        with pytest.raises(error, match=name):
            cached(**options)(lambda x: x)
    with pytest.raises(TypeError, match=r"write @cached\(ttl=128\)"):
        cached(128)  # type: ignore[call-overload]
    for decorator in (classmethod, staticmethod):
        with pytest.raises(TypeError, match=f"put @{decorator.__name__} above @cached"):
            cached(decorator(lambda x: x))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function, got str"):
        cached("f")  # type: ignore[call-overload]


def test_what_can_be_read_only_once_is_refused() -> None:
    def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match="is a generator function"):
        cached(generator)

    async def real() -> int:
        return 1

    @cached
    def returns_a_coroutine() -> Any:
        return real()

    for _ in range(2):
        with pytest.raises(TypeError, match="returned a coroutine, which can be awaited only once"):
            returns_a_coroutine()
    alone = cached(single_flight=False)(returns_a_coroutine.__wrapped__)
    with pytest.raises(TypeError, match="returned a coroutine"):
        alone()
    assert returns_a_coroutine.cache_info().currsize == 0


def test_exceptions_are_not_cached() -> None:
    @cached
    def f(x: int) -> int:
        calls.append(x)
        raise LookupError(x)

    @cached
    async def g(x: int) -> int:
        calls.append(x)
        raise LookupError(x)

    for _ in range(2):
        with pytest.raises(LookupError):
            f(1)
        with pytest.raises(LookupError):
            asyncio.run(g(1))
    assert calls == [1, 1, 1, 1]
    assert f.cache_info() == (0, 2, 1000, 0)


def test_disabled() -> None:
    @cached(enabled=False)
    def f(x: int) -> int:
        calls.append(x)
        return x

    @cached(enabled=False)
    async def g(x: int) -> int:
        calls.append(x)
        return x

    async def main() -> None:
        assert await g(2) == await g(2) == 2

    assert f(1) == f(1) == 1
    asyncio.run(main())
    assert calls == [1, 1, 2, 2]
    assert f.cache_info() == (0, 2, 1000, 0)
    assert not f.cache_parameters()["enabled"]
    code = """
    from ferrogate import cached
    @cached
    def f(x):
        print(x)
        return x
    f(1); f(1)
    print(f.cache_info())
    """
    expected = "1\n1\nCacheInfo(hits=0, misses=2, maxsize=1000, currsize=0)\n"
    assert run_well(code, env={"FERROGATE_DISABLED": "1"}) == expected
