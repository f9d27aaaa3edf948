"""Views of one namespace, and the call shapes of those who come from elsewhere."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest
from services import Open

from ferrogate import CacheClient, CacheService, ResultCache
from ferrogate.testing import ManualClock


@pytest.mark.parametrize("url", ["memory://", "sqlite://{}/cache.db"])
def test_the_specification_writer_s_calls(url: str, tmp_path: Any) -> None:
    """SYSTEMS S2, verbatim."""

    async def main() -> None:
        cache = CacheClient(url.format(tmp_path))
        await cache.initialize()
        assert await cache.get("tech_research:web:1") is None
        assert await cache.set("tech_research:web:1", {"found": ["axum"]}, 86400) is True
        assert await cache.get("tech_research:web:1") == {"found": ["axum"]}
        assert await cache.exists("tech_research:web:1")
        assert await cache.delete("tech_research:web:1")
        assert await cache.health_check()
        # Any failure is a miss.
        assert await cache.set("k", object(), ttl=60) is False
        await cache.close()
        assert not await cache.health_check()

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("REDIS_URL", f"sqlite://{tmp_path}/cache.db")
    monkeypatch.setenv("TECH_SPEC_CACHE_TTL", "3600")
    client = CacheClient()
    assert client.service.name == "sqlite"
    assert asyncio.run(client.set("k", 1))
    asyncio.run(client.close())
    monkeypatch.setenv("ENABLE_CACHING", "false")
    client = CacheClient("memory://")
    assert asyncio.run(client.set("k", 1)) is False
    assert asyncio.run(client.get("k")) is None


def test_fields(service: Open) -> None:
    cache = service()
    research = cache.namespace("tech_research", ttl=86400, key=("category", "language"))

    async def main() -> None:
        await research.set("web", "python", {"best": "fastapi"})
        assert await research.get(category="web", language="python") == {"best": "fastapi"}
        assert await research.get("web", language="python") == {"best": "fastapi"}
        assert await research.get("web", "rust") is None
        await research.set({"best": "axum"}, category="web", language="rust")
        await research.set(category="db", language="rust", value={"best": "sqlx"})
        assert await research.get("web", "rust") == {"best": "axum"}
        assert await research.get("db", "rust") == {"best": "sqlx"}
        assert await research.exists("db", "rust")
        assert await research.delete("db", "rust")
        assert await research.invalidate()
        assert await research.get("web", "rust") is None
        assert await research.get_or_set("web", "go", factory=lambda: asyncio.sleep(0, 5)) == 5

    asyncio.run(main())
    assert research.get_sync("web", "go") == 5
    assert research.get_or_set_sync("web", "c", factory=lambda: 6) == 6
    assert research.set_sync("web", "zig", 7)
    assert research.exists_sync("web", "zig")
    assert research.delete_sync("web", "zig")
    assert research.invalidate_sync()
    key = research.cache_key("web", "python")
    assert key == research.cache_key(language="python", category="web")
    assert key.startswith("tech_research:web:")


def test_the_key_of_a_context_does_not_depend_on_the_order_of_its_dicts(service: Open) -> None:
    view = service().namespace("api_inference", key=("project", "context"))
    assert view.cache_key("p", {"a": 1, "b": 2}) == view.cache_key("p", {"b": 2, "a": 1})
    assert view.cache_key("p", {"a": 1}) != view.cache_key("p", {"a": 2})


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ((), {}),
        (("a",), {}),
        (("a", "b", "c"), {}),
        (("a", "b"), {"category": "x"}),
        (("a",), {"x": 1}),
    ],
)
def test_wrong_fields(service: Open, args: tuple[str, ...], fields: dict[str, Any]) -> None:
    view = service().namespace("ns", key=("category", "language"))
    with pytest.raises(TypeError, match="expected the fields"):
        asyncio.run(view.get(*args, **fields))


def test_a_view_raises_what_the_codec_cannot_carry(service: Open) -> None:
    view = service().namespace("ns")
    with pytest.raises(TypeError, match=r"value\['a'\]: set"):
        asyncio.run(view.set("k", {"a": {1}}))
    with pytest.raises(TypeError, match="names of fields such as"):
        service().namespace("ns", key="category")


def test_a_view_has_its_own_ttl_and_tags(timed: Open) -> None:
    clock = ManualClock(1_000.0)
    cache = timed(clock=clock)
    short, tagged = cache.namespace("short", ttl=10), cache.namespace("tagged", tags=["t"])
    short.set_sync("k", 1)
    short.set_sync("longer", 1, ttl=100)
    tagged.set_sync("k", 1)
    clock.advance(11)
    assert short.get_sync("k") is None
    assert short.get_sync("longer") == 1
    assert tagged.get_sync("k") == 1
    cache.invalidate_tag_sync("t")
    assert tagged.get_sync("k") is None


def test_cached_functions(service: Open) -> None:
    cache = service()
    view = cache.namespace("functions", ttl=60)
    calls: list[Any] = []

    @view.cached(name="add")
    def add(x: int, y: int = 2, *, label: str = "") -> int:
        calls.append((x, y))
        return x + y

    @view.cached(ignore=("session",), tags=["slow"], name="slow")
    async def slow(x: int, session: object = None) -> list[int]:
        calls.append(x)
        await asyncio.sleep(0)
        return [x]

    assert add(1) == add(1, 2) == add(y=2, x=1) == 3
    assert add(1, label="other") == 3
    assert len(calls) == 2
    assert add.cache_invalidate(1)
    assert add(1) == 3
    assert len(calls) == 3

    async def main() -> None:
        assert await slow(1, object()) == await slow(1, object()) == [1]
        assert await asyncio.gather(*(slow(2) for _ in range(5))) == [[2]] * 5
        await cache.invalidate_tag("slow")
        assert await slow(1) == [1]

    asyncio.run(main())
    assert calls[3:] == [1, 2, 1]
    assert asyncio.iscoroutinefunction(slow)
    assert slow.__name__ == "slow"


def test_lambdas_have_no_name_to_be_kept_by() -> None:
    view = CacheService().namespace("functions")
    with pytest.raises(ValueError, match=r"^key: .*<lambda> has no name of its own"):
        view.cached(lambda x: x)
    assert view.cached(key=lambda x: x)(lambda x: x + 1)(2) == 3


def test_what_a_function_takes_from_around_it_is_in_no_key() -> None:
    view = CacheService().namespace("functions")

    def asker(model: str, suffix: str = "", **options: Any) -> Any:
        @view.cached(**options)
        def ask(question: str) -> str:
            return f"{model}: {question}{suffix}"

        return ask

    with pytest.raises(ValueError, match=r"^key: .*\.ask takes model, suffix from around it"):
        asker("small")
    told_apart = [asker(model, key=lambda question, m=model: (m, question)) for model in "ab"]
    assert [ask("?") for ask in told_apart] == ["a: ?", "b: ?"]
    named = [asker(model, name=f"ask {model}") for model in "ab"]
    assert [ask("?") for ask in named] == ["a: ?", "b: ?"]
    # Under one name they are one function, because somebody said so.
    assert asker("c", name="ask a")("?") == "a: ?"


def test_a_wrapper_has_what_it_wraps_around_it() -> None:
    view = CacheService().namespace("functions")

    def retrying(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args)

        return call

    class Base:
        def twice(self, x: int) -> int:
            return 2 * x

    @view.cached
    @retrying
    def once(x: int) -> int:
        return x

    class Thing(Base):
        @view.cached(ignore=("self",))
        def twice(self, x: int) -> int:
            return super().twice(x)

    assert once(1) == once(1) == 1
    assert Thing().twice(2) == Thing().twice(2) == 4


def test_what_has_no_name_cannot_be_cached() -> None:
    view = CacheService().namespace("functions")
    with pytest.raises(TypeError, match="a partial has no name; write a function"):
        view.cached(functools.partial(int, base=2))


def test_the_factory_s_calls() -> None:
    """SYSTEMS S3, verbatim."""
    clock = ManualClock()
    cache = ResultCache(ttl_seconds=3600, max_size=2, clock=clock)
    task = {"type": "dev", "file": "main.py", "needs": ["a", "b"]}
    assert cache.get(task) is None
    result = object()
    cache.set(task, result)
    assert cache.get(dict(reversed(task.items()))) is result
    cache.set({"n": 1}, 1)
    cache.set({"n": 2}, 2)
    stats = cache.get_stats()
    assert {"size", "hits", "misses", "evictions", "hit_rate"} <= set(stats)
    assert (stats["size"], stats["evictions"], stats["hit_rate"]) == (2, 1, 0.5)
    clock.advance(3600)
    assert cache.get({"n": 2}) is None
    assert len(cache) == 0
    cache.set({}, 0)
    assert cache.delete({})
    cache.clear()
    assert repr(cache) == "ResultCache(0 of 2 results, hit rate 33.3%)"


def test_result_cache_arguments() -> None:
    assert ResultCache(60, 10).get_stats()["max_size"] == 10
    with pytest.raises(ValueError, match="max_size"):
        ResultCache(max_size=0)
    with pytest.raises(ValueError, match="ttl_seconds"):
        ResultCache(ttl_seconds=0)
    with pytest.raises(TypeError, match="task: expected a mapping"):
        ResultCache().get("task")  # type: ignore[arg-type]
