"""What users call, and what a mistake tells them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from services import Open

from ferrogate import CacheClient, CacheService
from ferrogate._replies import later
from ferrogate.service import ServiceStats
from ferrogate.testing import ManualClock


async def five() -> int:
    return 5


# Call shapes


@pytest.mark.parametrize("url", ["memory://", "sqlite://{}/cache.db"])
def test_the_specification_writer_s_calls_by_name(url: str, tmp_path: Path) -> None:
    """SYSTEMS S2: ``get(key)``, ``set(key, value, ttl)``, ``delete(key)``, ``exists(key)``."""

    async def main() -> None:
        async with CacheClient(url.format(tmp_path)) as cache:
            assert await cache.set(key="k", value={"a": 1}, ttl=60)
            assert await cache.get(key="k") == {"a": 1}
            assert await cache.exists(key="k")
            assert await cache.delete(key="k")
            assert await cache.get("k", None) is None
            assert await cache.get("k", 7) == await cache.get(key="k", default=7) == 7
            assert await cache.set("k", value=2, ttl=60)
            assert await cache.set("k", 3, None)
            assert await cache.get("k", 7) == 3
            assert await cache.get_or_set("k", five) == 3
            assert await cache.get_or_set(key="other", factory=five, ttl=60, tags=["t"]) == 5

    asyncio.run(main())


def test_a_client_in_threads(tmp_path: Path) -> None:
    with CacheClient(tmp_path / "cache.db") as cache:
        assert cache.initialize_sync()
        assert cache.set_sync(key="k", value=1, ttl=60)
        assert cache.get_sync(key="k") == cache.get_sync("k", 7) == 1
        assert cache.health_check_sync()
        assert cache.delete_sync(key="k")
        assert not cache.exists_sync(key="k")
    assert cache.service.closed


@pytest.mark.parametrize("url", ["memory://", "sqlite://{}/cache.db"])
def test_a_closed_client_has_misses_until_it_is_opened_again(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = CacheClient(url.format(tmp_path))
    view_like = client.cached(name="five")(five)

    async def main() -> None:
        assert await client.set("k", 1)
        await client.close()
        await client.close()
        assert await client.get("k", 7) == 7
        assert await client.set("k", 2) is False
        assert await client.exists("k") is False
        assert await client.delete("k") is False
        assert await client.invalidate() is False
        assert await client.get_or_set("k", five) == 5
        assert await view_like() == 5
        assert client.get_or_set_sync("k", lambda: 6) == 6
        assert client.get_sync("k") is None
        assert not await client.health_check()
        assert not caplog.records
        assert await client.initialize()
        # What a file had is there again.
        assert await client.get("k") == (1 if "sqlite" in url else None)
        assert await client.set("k", 2)
        assert await view_like() == 5
        client.close_sync()

    asyncio.run(main())


def test_a_client_goes_on_in_memory_where_there_is_no_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "cache.db"
    client = CacheClient(path, max_entries=10)

    async def main() -> None:
        assert "its directory does not exist" in caplog.text
        assert "goes on in memory" in caplog.text
        assert await client.set("k", 1)
        assert await client.get("k") == 1
        assert not await client.initialize()
        path.parent.mkdir()
        assert await client.initialize()
        assert await client.get("k") is None
        assert await client.set("k", 2)
        await client.close()

    asyncio.run(main())
    assert path.exists()


def test_a_client_s_failures_are_misses(caplog: pytest.LogCaptureFixture) -> None:
    client = CacheClient("memory://")
    assert client.get_sync(object(), 7) == 7
    assert client.set_sync("k", 1, -1) is False
    assert client.set_sync(object(), 1) is False
    assert client.exists_sync(object()) is False
    assert client.get_or_set_sync("k", lambda: 5, ttl=-1) == 5
    assert len(caplog.records) == 5
    # But a call that says nothing is no failure of the store's.
    for call in (client.set_sync, lambda: client.set_sync("k"), client.get_sync):
        with pytest.raises(TypeError, match=r"^(key|value): "):
            call()
    strict = CacheClient("memory://", strict=True)
    assert strict.get_sync("k") is None


def test_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stores(*args: Any, **arguments: Any) -> bool:
        with CacheClient(*args, **arguments) as client:
            client.set_sync("k", 1)
            return client.get_sync("k") == 1

    url = f"sqlite://{tmp_path}/cache.db"
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("ENABLE_REDIS_CACHE", "false")
    assert CacheClient().service.url == "memory://"
    assert CacheClient(url).service.name == "sqlite"
    monkeypatch.setenv("ENABLE_MEMORY_CACHE", "off")
    assert not stores()
    assert stores(url)
    with CacheClient(url) as client:
        client.set_sync("k", 1)
        assert client.get_sync("k") == 1
        assert client.get_stats()["near_entries"] == 0
    monkeypatch.setenv("ENABLE_CACHING", "disabled")
    assert not stores(url)
    assert stores(url, enabled=True)
    monkeypatch.setenv("ENABLE_CACHING", "perhaps")
    with pytest.raises(ValueError, match=r"^ENABLE_CACHING: expected true or false"):
        CacheClient()
    monkeypatch.delenv("ENABLE_CACHING")
    for wrong in ("-1", "1h", "nan"):
        monkeypatch.setenv("TECH_SPEC_CACHE_TTL", wrong)
        with pytest.raises(ValueError, match=r"^TECH_SPEC_CACHE_TTL: expected"):
            CacheClient()


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ((), ValueError),
        (("a", "a"), ValueError),
        (("",), ValueError),
        ((None,), TypeError),
        (5, TypeError),
        ("a", TypeError),
        (("ttl", "model"), ValueError),
        (("tags",), ValueError),
        (("default",), ValueError),
        (("factory",), ValueError),
        (("value",), ValueError),
    ],
)
def test_names_that_no_field_can_have(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^key: "):
        CacheService().namespace("ns", key=key)


def test_fields_with_a_ttl_behind_them_and_any_names() -> None:
    clock = ManualClock(0.0)
    cache = CacheService(clock=clock)
    view = cache.namespace("ns", key=("self", "key"))
    assert view.set_sync("a", "b", 1, 60)
    assert view.set_sync(2, 60, self="a", key="c")
    assert view.get_sync("a", key="b") == 1
    assert view.get_or_set_sync("a", "d", lambda: 3, ttl=60, tags=["t"]) == 3
    assert view.get_sync(self="a", key="c") == 2
    with pytest.raises(TypeError, match=r"^key: expected the fields self, key, got 'a', kye="):
        view.get_sync("a", kye="b")
    with pytest.raises(TypeError, match=r"^value: expected one and a ttl behind it"):
        view.set_sync("a", "b", 1, 60, 7)
    with pytest.raises(TypeError, match=r"^value: missing"):
        view.set_sync("a", "b")
    with pytest.raises(TypeError, match=r"^factory: expected one"):
        view.get_or_set_sync("a", "b", int, int)
    cache.invalidate_tag_sync("t")
    assert view.get_sync("a", "d") is None
    clock.advance(61)
    assert view.get_sync("a", "b") is None


@pytest.mark.parametrize("name", ["\x1f", "x" * 1025, "\ud800"])
def test_names_that_no_store_can_keep(service: Open, name: str) -> None:
    cache = service()
    with pytest.raises(ValueError, match=r"^namespace: expected"):
        cache.namespace(name)
    with pytest.raises(ValueError, match=r"^tags: expected"):
        cache.namespace("ns", tags=[name])
    with pytest.raises(ValueError, match=r"^ns: expected"):
        cache.set_sync(name, "k", 1)
    with pytest.raises(ValueError, match=r"^tag: expected"):
        cache.invalidate_tag_sync(name)


def test_warming_in_threads_and_with_mistakes(service: Open) -> None:
    cache = service()
    seen: list[int] = []
    items = [("ns", str(n), n) for n in range(3)]
    assert cache.warm_sync(items, ttl=60, tags=["t"], progress=seen.append) == 3
    assert seen == [1, 2, 3]
    assert cache.get_sync("ns", "2") == 2
    for wrong in (5, [1], [("a", "b")]):
        with pytest.raises(TypeError, match=r"^items: expected"):
            asyncio.run(cache.warm(wrong))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^items: expected"):
            cache.warm_sync(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^progress: "):
        asyncio.run(cache.warm(items, progress=5))  # type: ignore[arg-type]


# Without asyncio


def test_awaiting_without_asyncio(sqlite: Open) -> None:
    cache = sqlite()
    for coroutine in (
        cache.get("ns", "k"),
        cache.set("ns", "k", 1),
        cache.delete("ns", "k"),
        cache.exists("ns", "k"),
        cache.invalidate_namespace("ns"),
        cache.invalidate_tag("t"),
        cache.health_check(),
        cache.namespace("ns").get("k"),
        later(cache.get, "ns", "k"),
    ):
        with pytest.raises(RuntimeError, match="no running event loop"):
            coroutine.send(None)


# Figures


def test_reset_stats_resets_all_that_is_counted(service: Open) -> None:
    cache = service(near_bytes=20_000)
    for n in range(300):
        cache.set_sync("ns", str(n), "x" * 100)
    assert cache.get_stats()["near_evictions"] > 0
    cache.reset_stats()
    stats = cache.get_stats()
    assert stats["evictions"] == stats["near_evictions"] == stats["sets"] == 0
    assert stats["near_entries"] > 0


def test_a_service_that_is_switched_off_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERROGATE_DISABLED", "1")
    assert CacheService().get_stats()["enabled"] is False
    monkeypatch.delenv("FERROGATE_DISABLED")
    assert CacheService().get_stats()["enabled"] is True


def test_all_figures_are_declared(service: Open) -> None:
    stats = service().get_stats()
    assert set(stats) <= set(ServiceStats.__annotations__)
    assert json.loads(json.dumps(stats)) == stats
    assert not math.isnan(stats["hit_rate"])


def test_no_log_without_a_mistake(service: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ferrogate")
    cache = service()
    view = cache.namespace("ns", ttl=60, key=("a", "b"))
    assert view.get_or_set_sync("x", "y", lambda: 1) == 1
    assert asyncio.run(view.get_or_set("x", "z", five)) == 5
    assert not caplog.records
