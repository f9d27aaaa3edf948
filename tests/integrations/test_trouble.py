"""The frameworks go on whatever happens to the service, and are told of wrong arguments at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import dspy
import litellm
import pytest
from langchain_core.language_models import FakeListLLM
from langchain_core.outputs import Generation
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy
from services import locked

from ferrogate import CacheService, CacheUnavailable
from ferrogate.integrations import dspy as for_dspy
from ferrogate.integrations import langchain as for_langchain
from ferrogate.integrations import langgraph as for_langgraph
from ferrogate.integrations import litellm as for_litellm

PICKLED: dict[str, Any] = {"codec": "pickle", "hmac_key": b"0123456789abcdef"}
Ask = Callable[[], list[Any]]


def langchain(service: CacheService, awaited: bool) -> Ask:
    llm = FakeListLLM(responses=["one"], cache=for_langchain.FerrogateCache(service))
    return lambda: [asyncio.run(llm.ainvoke("a")) if awaited else llm.invoke("a")]


class State(TypedDict):
    """What the graph is about."""

    x: str


def langgraph(service: CacheService, awaited: bool) -> Ask:
    builder = StateGraph(State)
    builder.add_node("node", lambda state: {"x": "one"}, cache_policy=CachePolicy(ttl=100))
    builder.add_edge(START, "node")
    graph: Any = builder.compile(cache=for_langgraph.FerrogateCache(service))
    asked = {"x": "a"}
    return lambda: [(asyncio.run(graph.ainvoke(asked)) if awaited else graph.invoke(asked))["x"]]


def litellm_(service: CacheService, awaited: bool) -> Ask:
    litellm.cache = litellm.Cache(type="local")  # type: ignore[attr-defined]
    litellm.cache.cache = for_litellm.FerrogateCache(service)
    how: dict[str, Any] = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "mock_response": "one",
        "caching": True,
    }

    def ask() -> list[Any]:
        answer = asyncio.run(litellm.acompletion(**how)) if awaited else litellm.completion(**how)
        return [answer.choices[0].message.content]

    return ask


def dspy_(service: CacheService, awaited: bool) -> Ask:
    dspy.cache = for_dspy.FerrogateCache(service)
    lm = dspy.LM("openai/gpt-4o", mock_response="one", api_key="none")
    return lambda: list(asyncio.run(lm.acall("hi")) if awaited else lm("hi"))


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = dspy.cache
    yield
    dspy.cache = before
    litellm.cache = None


FRAMEWORKS = pytest.mark.parametrize(
    "framework", [langchain, langgraph, litellm_, dspy_], ids=lambda each: each.__name__
)
AWAITED = pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])


@FRAMEWORKS
@AWAITED
def test_a_closed_service(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any, framework: Any, awaited: bool
) -> None:
    service = make(**PICKLED)
    ask = framework(service, awaited)
    service.close_sync()
    with caplog.at_level(logging.WARNING):
        assert [*ask(), *ask()] == ["one", "one"]
    said = told()
    # At most once for reading and once for keeping.
    assert 1 <= len(said) == len(set(said)) <= 2
    assert all("the cache service is closed" in each for each in said)
    # Nothing reached the framework.
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.WARNING] == []


@FRAMEWORKS
@AWAITED
def test_a_strict_service_whose_store_is_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: Any, framework: Any, awaited: bool
) -> None:
    url = f"sqlite:///{tmp_path}/cache.db"
    with CacheService(url, strict=True, busy_seconds=0.01, **PICKLED) as service:
        assert service.health_check_sync()
        ask = framework(service, awaited)
        with locked(tmp_path / "cache.db") as (lock, unlock):
            lock()
            with caplog.at_level(logging.WARNING, "ferrogate"):
                assert [*ask(), *ask()] == ["one", "one"]
            unlock()
        said = [each for each in told() if "was" in each]
        assert len(said) == len(set(said))


def test_a_service_that_is_closed_while_the_model_answers(make: Any) -> None:
    service = make()

    class Slow(FakeListLLM):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            service.close_sync()
            return "paid for"

    llm = Slow(responses=["one"], cache=for_langchain.FerrogateCache(service))
    assert llm.invoke("a") == "paid for"


def test_forgetting_is_an_order_and_says_when_it_fails(make: Any) -> None:
    service = make(**PICKLED)
    orders: list[Callable[[], Any]] = [
        for_langchain.FerrogateCache(service).clear,
        for_langgraph.FerrogateCache(service).clear,
        for_litellm.FerrogateCache(service).flush_cache,
        for_dspy.FerrogateCache(service).clear,
    ]
    for order in orders:
        order()
    service.close_sync()
    for order in orders:
        with pytest.raises(RuntimeError, match="closed"):
            order()


def test_a_strict_service_tells_those_who_ask_it_themselves(tmp_path: Path) -> None:
    """So that the tests above are about something."""
    url = f"sqlite:///{tmp_path}/cache.db"
    with CacheService(url, strict=True, busy_seconds=0.01) as service:
        assert service.health_check_sync()
        with locked(tmp_path / "cache.db") as (lock, unlock):
            lock()
            with pytest.raises(CacheUnavailable):
                service.set_sync("ns", "k", 1)
            cache = for_langchain.FerrogateCache(service)
            cache.update("p", "l", [Generation(text="x")])
            unlock()


ADAPTERS = pytest.mark.parametrize(
    "adapter",
    [for_langchain, for_langgraph, for_litellm, for_dspy],
    ids=lambda each: each.__name__.rpartition(".")[2],
)


@ADAPTERS
def test_wrong_arguments_are_named(make: Any, adapter: Any) -> None:
    service = make(**PICKLED)
    wrong: list[tuple[str, Any, type[Exception]]] = [
        ("namespace", 5, TypeError),
        ("namespace", None, TypeError),
        ("namespace", "a\x1fb", ValueError),
        ("namespace", "\ud800", ValueError),
        ("namespace", "é" * 513, ValueError),
    ]
    if adapter is not for_langgraph:
        wrong += [
            ("ttl", -1, ValueError),
            ("ttl", 0, ValueError),
            ("ttl", float("nan"), ValueError),
            ("ttl", "x", TypeError),
            ("ttl", True, TypeError),
        ]
    for name, value, kind in wrong:
        with pytest.raises(kind, match=rf"^{name}: expected "):
            adapter.FerrogateCache(service, **{name: value})
    for value in ("memory://", None, CacheService):
        with pytest.raises(TypeError, match=r"^service: expected a ferrogate.CacheService, got "):
            adapter.FerrogateCache(value)
    for namespace in ("", "é" * 512):
        adapter.FerrogateCache(service, namespace=namespace)
