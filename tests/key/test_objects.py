"""Objects with a key of their own, without one, and hostile structures."""

from __future__ import annotations

import gc
import numbers
import threading
import weakref
from typing import Any

import pytest
from keyed import (
    Plain,
    Point,
    same,
    same_digest,
)

from ferrogate import Cache, cache_key, cached

# Objects with their own mind.


class Keyed:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __cache_key__(self) -> Any:
        if isinstance(self.key, BaseException):
            raise self.key
        return self.key


class KeyedToo(Keyed):
    pass


def test_cache_key_methods() -> None:
    assert same(Keyed(1), Keyed(1.0))
    assert not same(Keyed(1), Keyed(2))
    assert not same(Keyed(1), 1)
    assert not same(Keyed(1), KeyedToo(1))
    assert same_digest(Keyed({"a": [1]}), Keyed({"a": [1]}))
    # On the class itself it is a method like any other; the class is no Keyed.
    assert not same(Keyed, Keyed(1))
    with pytest.raises(TypeError, match=r"parts\[0\]: cannot make a cache key from .* type type"):
        cache_key(Keyed)
    boom = ValueError("from the object")
    with pytest.raises(ValueError, match="from the object") as caught:
        cache_key([Keyed(boom)])
    assert caught.value is boom
    with pytest.raises(TypeError, match=r"parts\[0\]\.__cache_key__\(\)\[1\]: cannot make"):
        cache_key(Keyed((1, object())))


def test_a_cache_key_method_that_never_ends() -> None:
    class Endless:
        def __cache_key__(self) -> Any:
            return self

    with pytest.raises(ValueError, match="contains itself") as caught:
        cache_key(Endless())
    assert len(str(caught.value)) < 300


def test_encoding_inside_encoding() -> None:
    class Nested:
        def __cache_key__(self) -> Any:
            return cache_key("inner", [1, 2]), cache_key({"a": self.__class__.__name__})

    assert same_digest([Nested(), "after"], [Nested(), "after"])


def test_an_index_that_is_no_int() -> None:
    class Liar:
        def __index__(self) -> Any:
            return "five"  # noqa: PLE0305

        def __hash__(self) -> int:
            return 5

    numbers.Integral.register(Liar)
    with pytest.raises(TypeError, match="__index__ returned non-int"):
        cache_key(Liar())


class Unhashable:
    __hash__ = None  # type: ignore[assignment]


THREE_WAYS = (
    "choose the key yourself with key=, leave the argument out with ignore=, "
    "or give its class a __cache_key__() method"
)


@pytest.mark.parametrize("make", [object, Unhashable, lambda: lambda: 0, threading.Lock])
def test_what_has_no_key_is_named_by_its_path(make: Any) -> None:
    value = make()
    request = [{"role": "user"}, {"role": "user"}, {"role": "user", "image": value}]
    with pytest.raises(TypeError) as caught:
        cache_key(messages=request)
    assert str(caught.value).startswith("messages[2].image: cannot make a cache key from an object")
    assert str(caught.value).endswith(THREE_WAYS)


def test_the_path_in_a_call() -> None:
    @cached
    def ask(messages: Any, **options: Any) -> None: ...

    bad = Unhashable()
    for call, path in [
        (lambda: ask([0, 0, {"image": bad}]), "messages[2].image"),
        (lambda: ask(1, extra={"not a name": bad}), "options.extra['not a name']"),
        (lambda: ask((bad,)), "messages[0]"),
        (lambda: ask({1: bad}), "messages[1]"),
        (lambda: ask(Plain(a=[bad])), "messages.a[0]"),
        (lambda: ask(Point(0, bad)), "messages[1]"),
        (lambda: ask(Keyed(bad)), "messages.__cache_key__()"),
    ]:
        with pytest.raises(TypeError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(path + ": cannot make a cache key from"), text
        assert text.endswith(THREE_WAYS)
    with pytest.raises(TypeError, match=r"^key: cannot make a cache key"):
        Cache(1)[Unhashable()] = 1


def test_the_three_ways_out() -> None:
    bad = Unhashable()
    chosen = cached(key=lambda client, x: x)(lambda client, x: object())
    assert chosen(bad, 1) is chosen(Unhashable(), 1)
    left_out = cached(ignore=("client",))(lambda client, x: object())
    assert left_out(bad, 1) is left_out(Unhashable(), 1)
    own = cached(lambda client, x: object())
    assert own(Keyed(5), 1) is own(Keyed(5), 1)


def test_a_failing_hash_or_equality_goes_through_unchanged() -> None:
    class Failing:
        def __init__(self, hashes: bool) -> None:
            self.hashes = hashes

        def __hash__(self) -> int:
            if not self.hashes:
                raise ZeroDivisionError("hash")
            return 1

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("eq")

    cache: Cache[Any, int] = Cache(10)
    with pytest.raises(ZeroDivisionError, match="hash"):
        cache[Failing(False)] = 1
    one = Failing(True)
    cache[one] = 1
    assert cache[one] == 1  # identity comes first, as in a dict
    with pytest.raises(ZeroDivisionError, match="eq"):
        cache[Failing(True)] = 2
    assert len(cache) == 1


# Hostile structures.


def test_cycles_and_depth() -> None:
    loop: list[Any] = []
    loop.append(loop)
    dict_loop: dict[str, Any] = {}
    dict_loop["self"] = dict_loop
    pair = Point([], 1)
    pair.x.append(pair)
    plain = Plain(None)
    plain.a = plain
    for cycle in (loop, dict_loop, pair, plain):
        with pytest.raises(ValueError, match="it contains itself") as caught:
            cache_key(cycle)
        assert str(caught.value).startswith("parts[0]")
        assert "…" in str(caught.value)
        assert len(str(caught.value)) < 250
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match=r"nested too deeply \(the limit is 128 levels\)"):
        cache_key(deep)
    # A value that occurs twice is no cycle.
    twice = [1]
    assert same([twice, twice], [[1], [1]])
    fine: Any = 0
    for _ in range(120):
        fine = {"k": [fine]} if isinstance(fine, int) else [fine]
    assert same_digest(fine, fine)


@pytest.mark.parametrize("count", [3, 40])
def test_containers_that_change_while_they_are_read(count: int) -> None:
    class Meddler:
        def __init__(self, action: Any) -> None:
            self.action = action

        def __cache_key__(self) -> int:
            self.action()
            return 1

    items: list[Any] = [*range(count)]
    items[0] = Meddler(items.pop)
    with pytest.raises(RuntimeError, match="list changed"):
        cache_key(items)

    table: dict[Any, Any] = dict.fromkeys(range(count), 0)
    table[0] = Meddler(lambda: table.__setitem__("new", 1))
    with pytest.raises(RuntimeError, match="dict changed"):
        cache_key(table)

    # The same size again, but not the same items.
    swap: dict[Any, Any] = dict.fromkeys(range(count), 0)

    def exchange() -> None:
        size = len(swap)
        swap.clear()
        swap.update(dict.fromkeys(range(100, 100 + size), 0))

    swap[count - 1] = Meddler(exchange)
    try:
        cache_key(swap)
    except RuntimeError as error:
        assert "dict changed" in str(error)  # noqa: PT017

    # A small dict of text keys is read as it was.
    small: dict[str, Any] = {"a": 0, "b": 2}
    small["a"] = Meddler(small.clear)
    assert cache_key(small) == cache_key({"a": Meddler(int), "b": 2})

    group = {Meddler(lambda: group.add(object()))} | set(range(count))
    with pytest.raises(RuntimeError, match=r"[sS]et changed"):
        cache_key(group)


def test_keys_are_made_in_many_threads_at_once() -> None:
    value = {"messages": [{"role": "user", "content": "x" * 500}] * 20, "t": {1, 2, 3}}
    expected = cache_key(value)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(200):
            got = cache_key(value)
            if got != expected:
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_interned_keys_leave_with_their_entries() -> None:
    class Opaque:
        def __init__(self, n: int) -> None:
            self.n = n

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Opaque) and self.n == other.n

        def __hash__(self) -> int:
            return self.n % 3

    cache: Cache[Any, int] = Cache(50)
    alive = weakref.WeakSet()  # type: ignore[var-annotated]
    for n in range(500):
        key = Opaque(n)
        alive.add(key)
        cache[key] = n
        cache[(key, [n])] = n
        assert cache[Opaque(n)] == n
        assert cache.get(Opaque(n + 1)) is None
    del key
    gc.collect()
    assert len(cache) == 50
    assert len(alive) == 25
    cache.clear()
    gc.collect()
    assert not alive
