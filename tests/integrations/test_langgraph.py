"""LangGraph's cache interface, and a graph that uses it."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from typing import Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.cache.memory import InMemoryCache
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy

from ferrogate.integrations.langgraph import FerrogateCache
from ferrogate.testing import ManualClock

VALUES = [1, None, "x", [1, {"a": 2.5}], b"\0\xff", AIMessage("hello"), {"m": [HumanMessage("a")]}]


@pytest.mark.parametrize("codec", ["json", "msgpack", "bytes"])
def test_what_is_set_is_got(make: Any, codec: str) -> None:
    cache: FerrogateCache[Any] = FerrogateCache(make(codec=codec))
    keys = [(("a", "b"), str(number)) for number in range(len(VALUES))]
    cache.set({key: (value, None) for key, value in zip(keys, VALUES, strict=True)})
    assert cache.get(keys) == dict(zip(keys, VALUES, strict=True))
    assert cache.get([(("a",), "0"), (("a", "b"), "none"), *keys[:1]]) == {keys[0]: 1}
    assert cache.get([]) == {}

    async def main() -> None:
        await cache.aset(
            {key: (value, None) for key, value in zip(keys, VALUES[::-1], strict=True)}
        )
        assert await cache.aget(keys) == dict(zip(keys, VALUES[::-1], strict=True))

    asyncio.run(main())


def test_seconds_to_live(make: Any) -> None:
    clock = ManualClock()
    cache: FerrogateCache[int] = FerrogateCache(make(clock=clock, default_ttl=100))
    cache.set({(("a",), "k"): (1, 10), (("a",), "l"): (2, None)})
    assert cache.get([(("a",), "k"), (("a",), "l")]) == {(("a",), "k"): 1, (("a",), "l"): 2}


def test_namespaces_are_cleared_alone(make: Any) -> None:
    service = make()
    cache: FerrogateCache[int] = FerrogateCache(service)
    keys = [(("a", "bc"), "k"), (("ab", "c"), "k"), (("d",), "k"), ((), "k")]
    cache.set(dict.fromkeys(keys, (1, None)))
    service.set_sync("another", "k", 1)
    cache.clear([("a", "bc")])
    assert set(cache.get(keys)) == set(keys[1:])
    asyncio.run(cache.aclear([("d",), ()]))
    assert set(cache.get(keys)) == {keys[1]}
    cache.clear()
    assert cache.get(keys) == {}
    cache.set({keys[0]: (2, None)})
    asyncio.run(cache.aclear())
    assert cache.get(keys) == {}
    assert service.get_sync("another", "k") == 1


def test_what_cannot_be_read_or_kept_is_a_miss(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    service = make(max_value_bytes=1000)
    cache: FerrogateCache[Any] = FerrogateCache(service)
    key = (("a",), "k")
    for garbage in ("not base64!", "AAAA", 5, {"a": 1}):
        service.set_sync("langgraph", key, garbage)
        assert [cache.get([key]), asyncio.run(cache.aget([key]))] == [{}, {}]
        service.set_sync("langgraph", key, garbage)
        assert [asyncio.run(cache.aget([key])), cache.get([key])] == [{}, {}]
    # What cannot be read is found once, and then forgotten.
    stats = service.get_stats()
    assert (stats["hits"], stats["misses"]) == (8, 8)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ferrogate"):
        cache.set({key: ("x" * 5000, None), (("a",), "l"): (1, None)})
        asyncio.run(cache.aset({(("a",), "m"): ("x" * 5000, None), (("a",), "n"): (2, None)}))
    # One reason, and so one warning.
    assert [each.partition(":")[0] for each in told()] == ["langgraph cache"]
    assert cache.get([(("a",), name) for name in "klmn"]) == {(("a",), "l"): 1, (("a",), "n"): 2}


def test_a_graph_runs_a_node_once(make: Any) -> None:
    class State(TypedDict):
        x: int
        y: int

    calls: list[int] = []

    def node(state: State) -> dict[str, int]:
        calls.append(state["x"])
        return {"y": state["x"] * 2}

    def graph() -> Any:
        builder = StateGraph(State)
        builder.add_node("node", node, cache_policy=CachePolicy(ttl=100))
        builder.add_edge(START, "node")
        return builder.compile(cache=FerrogateCache(make()))

    first = graph()
    assert first.invoke({"x": 3})["y"] == 6
    assert first.invoke({"x": 3})["y"] == 6
    assert asyncio.run(first.ainvoke({"x": 3}))["y"] == 6
    assert calls == [3]
    assert first.invoke({"x": 4})["y"] == 8
    assert calls == [3, 4]
    first.clear_cache()
    assert first.invoke({"x": 3})["y"] == 6
    assert calls == [3, 4, 3]


def test_what_is_no_service() -> None:
    with pytest.raises(TypeError, match=r"^service: expected a ferrogate.CacheService, got str"):
        FerrogateCache("memory://")  # type: ignore[arg-type]


LONG = "x" * 5000
#: What LangGraph's own cache takes.
NAMESPACES: list[tuple[Any, ...]] = [
    (),
    ("",),
    ("", ""),
    (LONG,),
    (LONG + "x",),
    ("a\x1fb",),
    ("a", "b"),
    ("a/b",),
    ("1:a1:b",),
    ("\0",),
    ("\ud800",),
    ("\ud801",),
    ("?",),
    (1,),
    ("1",),
]


@pytest.mark.parametrize("awaited", [False, True])
def test_any_namespace_is_one_of_its_own(make: Any, awaited: bool) -> None:
    keys = [(namespace, key) for namespace in NAMESPACES for key in ("k", LONG, "\ud800\x1f")]
    left: list[list[dict[Any, Any]]] = []
    for cache in (FerrogateCache[Any](make()), InMemoryCache[Any]()):
        cache.set({key: (number, None) for number, key in enumerate(keys)})
        assert cache.get(keys) == {key: number for number, key in enumerate(keys)}
        left.append([])
        for namespace in [("nobody's",), *NAMESPACES]:
            if awaited:
                asyncio.run(cache.aclear([namespace]))
            else:
                cache.clear([namespace])
            left[-1].append(cache.get(keys))
        cache.clear([])
    assert left[0] == left[1]
    assert left[0][-1] == {}


def test_two_caches_of_one_service_are_cleared_alone(make: Any) -> None:
    service = make()
    caches: list[FerrogateCache[int]] = [
        FerrogateCache(service, namespace=name) for name in ("a", "b", "y" * 1024)
    ]
    key = (("n",), "k")
    for cache in caches:
        cache.set({key: (1, None)})
    caches[0].clear([("n",)])
    assert [cache.get([key]) for cache in caches] == [{}, {key: 1}, {key: 1}]
    caches[2].clear([("n",)])
    assert [cache.get([key]) for cache in caches] == [{}, {key: 1}, {}]


def test_a_value_that_lives_for_no_time(make: Any, told: Any) -> None:
    key, other = (("n",), "k"), (("n",), "l")
    for cache in (FerrogateCache[Any](make()), InMemoryCache[Any]()):
        for ttl in (0, -1):
            cache.set({key: (1, None), other: (1, None)})
            cache.set({key: (2, ttl)})
            asyncio.run(cache.aset({other: (2, ttl)}))
            assert cache.get([key, other]) == {}
    assert not told()


def test_a_cancelled_aset_leaves_nothing_behind(make: Any) -> None:
    cache: FerrogateCache[int] = FerrogateCache(make())

    async def main() -> None:
        for turns in range(4):
            pairs = {(("n",), f"{turns} {number}"): (number, None) for number in range(5)}
            writing = asyncio.create_task(cache.aset(pairs))
            for _ in range(turns):
                await asyncio.sleep(0)
            writing.cancel()
            try:
                await writing
            except asyncio.CancelledError:
                continue
            assert len(await cache.aget(list(pairs))) == 5

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [str(each.message) for each in caught if "never awaited" in str(each.message)] == []


def test_what_is_no_serializer(make: Any) -> None:
    with pytest.raises(TypeError, match=r"^serde: expected LangGraph's Serial.*, got int$"):
        FerrogateCache(make(), serde=5)  # type: ignore[arg-type]
