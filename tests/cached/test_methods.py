"""A method's results belong to its instance and leave with it."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import enum
import functools
import inspect
import typing
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from child import is_collected
from decorated import Client, calls

from ferrogate import cached

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


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

    @cached
    def ask(self, x: int = 0) -> object:
        return object()


class Grade(enum.IntEnum):
    LOW = 1
    ask = Level.ask


class Place(typing.NamedTuple):
    x: Any

    @cached
    def ask(self) -> object:
        return object()


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Any

    @cached
    def ask(self) -> object:
        return object()


@dataclasses.dataclass(slots=True)
class Mutable:
    x: Any

    @cached
    def ask(self) -> object:
        return object()


def test_instances_that_are_nothing_but_their_value() -> None:
    assert Level.LOW.ask() is Level.LOW.ask(0) is Level.ask(Level(1))
    assert Level.LOW.ask() is not Level.HIGH.ask()
    assert Level.LOW.ask() is not Level.LOW.ask(1)
    assert Level.ask.cache_info().currsize == 3
    for kind in (Place, Frozen):
        one = kind(1)
        assert one.ask() is kind(1).ask() is kind(1.0).ask() is one.ask()
        assert one.ask() is not kind(2).ask()
        assert kind(1).ask.cache_invalidate()
        assert not one.ask.cache_invalidate()
    # What equals them need not have the same methods behind it.
    assert Grade.LOW == Level.LOW
    assert Grade.LOW.ask() is not Level.LOW.ask()
    made = [dataclasses.make_dataclass("Made", ["x"], slots=True, frozen=True) for _ in range(2)]
    shared = cached(lambda self: object())
    for cls in made:
        cls.ask = shared  # type: ignore[attr-defined]
        shared.__set_name__(cls, "ask")
    first, second = (cls(1) for cls in made)
    assert first.ask() is first.ask()  # type: ignore[attr-defined]
    assert first.ask() is not second.ask()  # type: ignore[attr-defined]
    # Those that hold what has no value, or may change, would be kept alive.
    for other in (Frozen(object()), Place([object()]), Mutable(1)):
        with pytest.raises(TypeError, match=r"^self: instances of .* cannot be weakly referenced"):
            other.ask()


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
