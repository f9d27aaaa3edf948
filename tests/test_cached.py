"""`@cached`: a decorated function stays what it was, and remembers."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import contextlib
import copy
import dataclasses
import doctest
import functools
import inspect
import io
import multiprocessing
import pickle
import pydoc
import sys
import types
import typing
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from children import child_output, is_collected

from ferrogate import Cache, CacheInfo, cached
from ferrogate.testing import ManualClock

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@cached
def square(x: int) -> int:
    """The square.

    >>> square(3)
    9
    """
    calls.append(x)
    return x * x


@cached(ttl=60)
async def asquare(x: int) -> int:
    """The square, awaited."""
    calls.append(x)
    return x * x


class Client:
    def __init__(self, name: str = "c") -> None:
        self.name = name

    @cached
    def ask(self, x: Any = 0) -> object:
        """Asks."""
        calls.append((self.name, x))
        return object()

    @cached
    async def aask(self, x: Any = 0) -> object:
        calls.append((self.name, x))
        return object()

    @classmethod
    @cached
    def of_class(cls, x: int = 0) -> object:
        calls.append(x)
        return object()

    @staticmethod
    @cached
    def static(x: int) -> object:
        calls.append(x)
        return object()

    @property
    @cached
    def prop(self) -> object:
        calls.append(self.name)
        return object()


@pytest.fixture(autouse=True)
def _clear() -> None:
    for function in (square, asquare, Client.ask, Client.aask):
        function.cache_clear()


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
    with pytest.raises(TypeError, match=r"write @cached\(max_size=128\)"):
        cached(128)  # type: ignore[call-overload]
    for decorator in (classmethod, staticmethod):
        with pytest.raises(TypeError, match=f"put @{decorator.__name__} above @cached"):
            cached(decorator(lambda x: x))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function, got str"):
        cached("f")  # type: ignore[call-overload]


def test_what_can_be_read_only_once_is_refused() -> None:
    def generator() -> Any:
        yield 1

    async def agenerator() -> Any:
        yield 1

    for function in (generator, agenerator):
        with pytest.raises(TypeError, match="is a generator function"):
            cached(function)

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
    assert child_output(code, FERROGATE_DISABLED="1") == expected


# Methods.


def test_a_methods_results_belong_to_the_instance() -> None:
    one, two = Client("one"), Client("two")
    assert one.ask(1) is one.ask(1) is one.ask(x=1) is Client.ask(one, 1)
    assert one.ask(1) is not two.ask(1)
    assert one.ask() is one.ask(0)
    assert len(calls) == 3
    assert one.ask.cache_invalidate(1)
    assert not one.ask.cache_invalidate(1)
    assert two.ask.cache_invalidate(x=1)
    assert Client.ask.cache_invalidate(one, 0)
    assert one.ask.cache_info().currsize == 0
    assert one.ask == one.ask
    assert hash(one.ask) == hash(one.ask)
    assert one.ask != two.ask
    assert one.ask.__self__ is one
    assert one.ask.__func__ is Client.ask
    assert one.ask.__wrapped__.__self__ is one
    assert one.ask.__name__ == "ask"
    assert one.ask.__doc__ == "Asks."
    assert "cached method Client.ask of" in repr(one.ask)
    assert str(inspect.signature(one.ask)) == "(x: 'Any' = 0) -> 'object'"

    async def main() -> None:
        assert await one.aask(1) is await one.aask(1)
        assert await one.aask(1) is not await two.aask(1)
        assert asyncio.iscoroutinefunction(one.aask)

    asyncio.run(main())


def test_an_instance_is_not_kept_and_its_entries_leave_with_it() -> None:
    def use(client: Client) -> None:
        client.ask(1)
        client.ask(2)
        asyncio.run(typing.cast(Any, client.aask(3)))
        assert client.prop is not None

    client = Client()
    use(client)
    prop = typing.cast(Any, Client.__dict__["prop"]).fget
    assert Client.ask.cache_info().currsize == 2
    assert prop.cache_info().currsize == 1
    gone = weakref.ref(client)
    del client
    assert is_collected(gone)
    for function in (Client.ask, Client.aask, prop):
        assert function.cache_info().currsize == 0
    # A younger instance at the same address starts with nothing.
    for n in range(200):
        fresh = Client(str(n))
        fresh.ask(0)
        assert calls[-1] == (str(n), 0)
        del fresh


def test_a_property_over_a_cached_function() -> None:
    one, two = Client("one"), Client("two")
    assert one.prop is one.prop
    assert one.prop is not two.prop


def test_a_decorator_between_the_class_and_the_cache() -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    class Service:
        @logged
        @cached
        def ask(self, x: int) -> object:
            return object()

    service, other = Service(), Service()
    assert service.ask(1) is service.ask(1)
    assert service.ask(1) is not other.ask(1)
    gone = weakref.ref(service)
    del service
    assert is_collected(gone)


def test_a_method_put_into_the_class_later() -> None:
    class Plain:
        pass

    def ask(this: Any, x: int) -> object:
        return object()

    Plain.ask = cached(ask)  # type: ignore[attr-defined]
    plain: Any = Plain()
    assert plain.ask(1) is plain.ask(1) is Plain.ask(plain, 1)  # type: ignore[attr-defined]
    gone = weakref.ref(plain)
    del plain
    assert is_collected(gone)


def test_a_function_that_a_class_merely_refers_to() -> None:
    @cached
    def helper(x: Any) -> object:
        return object()

    first = helper(1)

    @dataclasses.dataclass
    class Holder:
        function: Callable[[Any], object] = helper

    class Other:
        help_me = helper

    assert helper(1) is first
    assert Holder().function(1) is first
    assert helper("text") is helper("text")
    # As a method it gets the instance.
    other = Other()
    assert other.help_me() is other.help_me()  # type: ignore[call-arg]
    assert other.help_me() is helper(other)  # type: ignore[call-arg]


def test_classmethods_and_staticmethods() -> None:
    class Sub(Client):
        pass

    assert Client.of_class(1) is Client.of_class(1) is Client().of_class(1)
    assert Client.of_class(1) is not Sub.of_class(1)
    assert Client.static(1) is Client().static(1) is Client.static(x=1)
    assert Client.static.cache_invalidate(1)


def test_inheritance_and_super() -> None:
    class Base(abc.ABC):
        @cached
        def ask(self, x: int) -> list[str]:
            calls.append("base")
            return ["base"]

        @abc.abstractmethod
        @cached
        def first(self) -> int: ...

        @cached
        @abc.abstractmethod
        def second(self) -> int: ...

    class Sub(Base):
        @cached
        def ask(self, x: int) -> list[str]:
            calls.append("sub")
            return [*super().ask(x), "sub"]

        def first(self) -> int:
            return 1

        def second(self) -> int:
            return 2

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]
    sub = Sub()
    assert sub.ask(1) is sub.ask(1)
    assert sub.ask(1) == ["base", "sub"]
    assert Base.ask(sub, 1) == ["base"]
    assert calls == ["sub", "base"]


class Slotted:
    __slots__ = ("x",)

    @cached
    def ask(self) -> object:
        return object()

    @cached(ignore=("self",))
    def shared(self) -> object:
        return object()


class Keyed:
    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __cache_key__(self) -> str:
        return self.key

    @cached
    def ask(self, x: int) -> object:
        return object()


def test_instances_that_cannot_be_referenced_weakly() -> None:
    with pytest.raises(TypeError) as caught:
        Slotted().ask()
    assert str(caught.value) == (
        "self: instances of Slotted cannot be weakly referenced, so a cached method would keep "
        "them alive; add '__weakref__' to __slots__, give the class a __cache_key__() method, or "
        'leave self out with ignore=("self",)'
    )
    assert Slotted().shared() is Slotted().shared()
    assert Keyed("a").ask(1) is Keyed("a").ask(1)
    assert Keyed("a").ask(1) is not Keyed("b").ask(1)


def test_an_unhashable_instance_is_itself() -> None:
    @dataclasses.dataclass
    class Data:
        x: int

        @cached
        def ask(self) -> object:
            return object()

    one, two = Data(1), Data(1)
    assert one == two
    assert one.ask() is one.ask()
    assert one.ask() is not two.ask()


# It stays the function that it was.


def test_introspection() -> None:
    assert square.__name__ == "square"
    assert square.__qualname__ == "square"
    assert square.__module__ == __name__
    assert square.__doc__ == square.__wrapped__.__doc__
    assert square.__annotations__ == {"x": "int", "return": "int"}
    assert typing.get_type_hints(square) == {"x": int, "return": int}
    assert typing.get_type_hints(Client.ask) == {"x": Any, "return": object}
    assert str(inspect.signature(square)) == "(x: 'int') -> 'int'"
    assert inspect.signature(square, eval_str=True).parameters["x"].annotation is int
    assert inspect.unwrap(square) is square.__wrapped__
    assert square.__globals__ is globals()
    assert square.__code__ is square.__wrapped__.__code__
    assert square.__defaults__ is None
    assert callable(square)
    assert inspect.getsource(square).startswith("@cached\ndef square")
    for function in (asquare, Client.aask, Client().aask, functools.partial(asquare, 1)):
        assert inspect.iscoroutinefunction(function)
        assert asyncio.iscoroutinefunction(function)
    for function in (square, Client.ask, Client().ask):
        assert not inspect.iscoroutinefunction(function)
        assert not inspect.isgeneratorfunction(function)
    assert inspect.isroutine(square)
    with pytest.raises(AttributeError, match="no_such"):
        square.no_such  # noqa: B018


def test_attributes() -> None:
    @cached
    def f() -> int:
        return 1

    f.note = "x"
    assert f.note == "x"
    assert vars(f)["note"] == "x"
    del f.note
    assert not hasattr(f, "note")
    with pytest.raises(AttributeError):
        del f.note

    def g() -> int:
        return 2

    g.mark = "from g"  # type: ignore[attr-defined]
    assert cached(g).mark == "from g"
    assert weakref.ref(f)() is f
    method = weakref.ref(Client().ask)
    assert method() is None


def test_help_and_doctest() -> None:
    module = sys.modules.get(__name__) or types.ModuleType(__name__)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pydoc.Helper(output=out).help(square)
    assert "square(x: 'int') -> 'int'" in out.getvalue()
    assert "The square." in out.getvalue()
    found = doctest.DocTestFinder().find(square, "square", module=module, globs=globals())
    assert [test.name for test in found] == ["square"]
    results = [doctest.DocTestRunner(verbose=False).run(test) for test in found]
    assert results == [(0, 1)]
    holder = types.ModuleType("holder")
    holder.square = square  # type: ignore[attr-defined]
    square.__module__ = "holder"
    try:
        assert "holder.square" in [test.name for test in doctest.DocTestFinder().find(holder)]
    finally:
        square.__module__ = __name__


def test_wraps_and_decorating_twice() -> None:
    @functools.wraps(square)
    def wrapper(*args: Any) -> Any:
        return square(*args)

    assert wrapper.__name__ == "square"
    assert wrapper.__wrapped__ is square
    assert str(inspect.signature(wrapper)) == "(x: 'int') -> 'int'"
    twice = cached(ttl=1)(square)
    assert twice(3) == twice(3) == twice(x=3) == 9
    assert calls == [3]
    assert twice.cache_info().hits == 2
    assert square.cache_info()[:2] == (0, 1)
    atwice = cached(asquare)
    assert asyncio.iscoroutinefunction(atwice)

    async def main() -> None:
        assert await atwice(3) == await atwice(3) == 9

    asyncio.run(main())
    lru = functools.lru_cache(square)
    assert lru(4) == 16
    assert cached(functools.lru_cache(square.__wrapped__))(5) == 25


# Across processes. The child imports this module by name, as a program's own would be.

PROGRAM = """
import concurrent.futures, copy, multiprocessing, os, pickle, sys
from ferrogate import Cache, cached

@cached
def job(x):
    return (os.getpid(), x * x)

class Client:
    @cached
    def ask(self, x):
        return x + 1

def main(method):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(job, protocol)) is job
        assert pickle.loads(pickle.dumps(Client.ask, protocol)) is Client.ask
    assert copy.copy(job) is job and copy.deepcopy([job])[0] is job
    client = Client()
    method_copy = pickle.loads(pickle.dumps(client.ask))
    assert method_copy(1) == 2 and method_copy.__self__ is not client
    job(0)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(job, range(20)))
    assert [r for _, r in results] == [x * x for x in range(20)]
    assert os.getpid() not in {pid for pid, _ in results[1:]}
    with context.Pool(1) as pool:
        assert pool.apply(job, (7,))[1] == 49
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, client))
    process.start()
    assert queue.get() == 6
    process.join()
    assert process.exitcode == 0
    assert job.cache_info().currsize == 1
    print("fine")

def put(queue, client):
    queue.put(client.ask(5))

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.hostile
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_jobs_of_process_pools(method: str, tmp_path: Any) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    code = f"""
    import sys, runpy
    sys.argv = ["program", {method!r}]
    sys.path.insert(0, {str(tmp_path)!r})
    if __name__ == "__main__":
        import program
        program.main({method!r})
    """
    assert child_output(code, timeout=60) == "fine\n"


def test_pickling_what_has_no_name_fails_as_for_functions() -> None:
    @cached
    def local() -> int:
        return 1

    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(local)
    assert copy.copy(local) is local
    assert copy.deepcopy({"f": local})["f"] is local


def test_executors() -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, [3] * 20)) == [9] * 20
    assert calls == [3]
