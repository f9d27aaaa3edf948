"""`@cached`: which calls are the same, and what is kept."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta
from typing import Any

import pytest
from decorated import asquare, calls, square

from ferrogate import CacheInfo, cached
from ferrogate.testing import ManualClock

# The functools-like surface.


def test_a_function_remembers() -> None:
    assert [square(2), square(2), square(3)] == [4, 4, 9]
    assert calls == [2, 3]
    assert square.cache_info() == (1, 2, 1000, 2)
    assert isinstance(square.cache_info(), CacheInfo)
    assert square.cache_info()._fields == functools.lru_cache(square).cache_info()._fields
    assert square.cache_invalidate(2)
    assert not square.cache_invalidate(2)
    assert not square.cache_invalidate(x=5)
    square(2)
    assert calls == [2, 3, 2]
    square.cache_clear()
    assert square.cache_info() == (0, 0, 1000, 0)
    assert square.__wrapped__(7) == 49
    assert square.cache.get_stats()["name"].endswith("square")
    assert "square (0 of 1000 entries" in repr(square)


def test_cache_parameters() -> None:
    parameters = asquare.cache_parameters()
    assert parameters == {
        "max_size": 1000,
        "ttl": 60.0,
        "typed": False,
        "ignore": (),
        "policy": "lru",
        "stale_while_revalidate": None,
        "stale_if_error": None,
        "negative_ttl": None,
        "skip_if": None,
        "bypass_if": None,
        "ttl_jitter": None,
        "early_refresh": None,
        "single_flight": True,
        "enabled": True,
    }
    parameters.clear()
    assert asquare.cache_parameters()["ttl"] == 60.0


def test_a_coroutine_function_remembers() -> None:
    async def main() -> None:
        assert [await asquare(2), await asquare(2), await asquare(x=2)] == [4, 4, 4]
        assert await asyncio.gather(asquare(3), asquare(3)) == [9, 9]

    asyncio.run(main())
    assert calls == [2, 3]
    assert asquare.cache_info()[:2] == (2, 3)


def test_the_bound_and_the_ttl() -> None:
    clock = ManualClock()

    @cached(max_size=2, ttl=timedelta(seconds=10), clock=clock, name="small")
    def f(x: int) -> int:
        calls.append(x)
        return x

    for x in (1, 2, 1, 3, 2):
        f(x)
    assert calls == [1, 2, 3, 2]
    assert f.cache_info().currsize == 2
    clock.advance(10)
    f(2)
    assert calls == [1, 2, 3, 2, 2]
    assert f.cache_info().currsize == 1
    assert f.cache.name == "small"


def test_none_and_other_falsy_results_are_results() -> None:
    for value in (None, 0, False, "", [], StopIteration(3), (1, 2), NotImplemented):

        @cached
        def f(value: Any = value) -> Any:
            calls.append(1)
            return value

        @cached
        async def g(value: Any = value) -> Any:
            calls.append(1)
            return value

        async def main(g: Any = g, value: Any = value) -> None:
            assert await g() is value
            assert await g() is value

        calls.clear()
        assert f() is value
        assert f() is value
        asyncio.run(main())
        assert len(calls) == 2


# Which calls are the same.


def test_arguments_are_bound_before_they_are_compared() -> None:
    @cached
    def f(a: Any, /, b: Any, c: Any = 3, *rest: Any, d: Any, e: Any = 5, **more: Any) -> Any:
        calls.append(1)
        return (a, b, c, rest, d, e, more)

    one = f(1, 2, d=4)
    assert one == (1, 2, 3, (), 4, 5, {})
    for same in (
        lambda: f(1, b=2, d=4),
        lambda: f(1, d=4, b=2),
        lambda: f(1, 2, 3, d=4),
        lambda: f(1, 2, d=4, e=5),
        lambda: f(1, 2, c=3, e=5, d=4),
        lambda: f(True, 2.0, d=4),
    ):
        assert same() is one
    assert len(calls) == 1
    others = [
        f(2, 1, d=4),
        f(1, 2, 3, 4, d=4),
        f(1, 2, d=4, a=1),
        f(1, 2, d=4, x=1),
        f(1, 2, d=5),
        f(1, 2, d=4, x=1, y=2),
    ]
    assert len(calls) == 1 + len(others)
    assert f(1, 2, d=4, y=2, x=1) is others[-1]
    assert f.cache_key(1, b=2, d=4) == f.cache_key(1, 2, 3, d=4)
    assert f.cache_key(1, 2, d=4).startswith(f"{__name__}.")


def test_defaults_are_read_at_each_call() -> None:
    @cached
    def f(x: int, scale: int = 2) -> int:
        return x * scale

    assert f(1) == 2
    f.__wrapped__.__defaults__ = (5,)
    assert f(1) == 5
    assert f(1, 2) == 2
    assert f.cache_info().currsize == 2


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2), {}), ((1,), {"x": 1}), ((), {"y": 1}), ((1,), {"y": 2})],
)
def test_wrong_arguments_raise_the_functions_own_error(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for function in (square, asquare):
        with pytest.raises(TypeError) as expected:
            function.__wrapped__(*args, **kwargs)
        with pytest.raises(TypeError) as got:
            function(*args, **kwargs)
        assert str(got.value) == str(expected.value)
        with pytest.raises(TypeError, match="these arguments do not fit"):
            function.cache_invalidate(*args, **kwargs)
        with pytest.raises(TypeError, match="these arguments do not fit"):
            function.cache_key(*args, **kwargs)
    assert calls == []


def test_ignore_key_and_typed() -> None:
    @cached(ignore=["client", "trace"])
    def ignoring(client: Any, x: int, *, trace: Any = None) -> object:
        return object()

    assert ignoring(object(), 1, trace=[]) is ignoring(None, 1)
    assert ignoring(None, 1) is not ignoring(None, 2)

    @cached(ignore=("rest", "more"))
    def ignoring_rest(x: int, *rest: Any, **more: Any) -> object:
        return object()

    assert ignoring_rest(1, 2, a=object()) is ignoring_rest(1)

    @cached(key=lambda request: request["id"])
    def chosen(request: dict[str, Any]) -> object:
        return object()

    assert chosen({"id": 1, "t": object()}) is chosen({"id": 1})
    with pytest.raises(KeyError, match="id"):
        chosen({})

    @cached(typed=True)
    def typed(x: Any) -> object:
        return object()

    assert len({id(typed(x)) for x in (1, 1.0, True, "1", 1, True)}) == 4


def test_a_callable_without_code() -> None:
    class Adder:
        def __call__(self, a: int, b: int = 1) -> object:
            calls.append((a, b))
            return object()

    for function in (functools.partial(lambda *a, **k: object(), 1), Adder(), object):
        f = cached(function)  # type: ignore[var-annotated]
        arguments = () if function is object else (2,)
        assert f(*arguments) is f(*arguments)
        assert f.cache_info()[:2] == (1, 1)
        assert "cached function" in repr(f)
        assert ":" in f.cache_key(*arguments)
        with pytest.raises(TypeError, match="ignore: needs a Python function"):
            cached(ignore=("a",))(function)


def test_a_bound_method_of_somebody_else() -> None:
    class Counter:
        def __init__(self) -> None:
            self.n = 0

        def count(self, x: int = 0) -> int:
            self.n += 1
            return self.n

        def rest(*args: Any) -> int:
            args[0].n += 1
            return len(args)

    counter = Counter()
    f = cached(counter.count)
    assert [f(1), f(1), f(x=1), f(2), f()] == [1, 1, 1, 2, 3]
    assert f(0) == 3
    g = cached(counter.rest)
    assert [g(1), g(1), g(1, 2)] == [2, 2, 3]
    assert counter.n == 5
    with pytest.raises(ValueError, match=r'ignore: .* has no parameter "self"'):
        cached(ignore=("self",))(counter.count)
