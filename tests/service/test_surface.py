"""What users meet first: names, URLs, arguments, and what a mistake tells them."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from services import Open, locked

from ferrogate import CacheClient, CacheService, CacheUnavailable
from ferrogate._replies import later
from ferrogate.service import ServiceStats
from ferrogate.testing import ManualClock


async def five() -> int:
    return 5


class Loader:
    """Counts its calls, and does something before it returns."""

    def __init__(self, value: Any, before: Any = None) -> None:
        self.value, self.before, self.calls = value, before, 0

    async def __call__(self) -> Any:
        self.calls += 1
        if self.before is not None:
            await self.before()
        return self.value

    def sync(self) -> Any:
        self.calls += 1
        return self.value


# A value that a loader has returned


def test_a_load_outlives_the_service(service: Open, caplog: pytest.LogCaptureFixture) -> None:
    cache = service()
    load = Loader("paid", before=cache.close)
    assert asyncio.run(cache.get_or_set("ns", "k", load)) == "paid"
    assert "what was loaded is not kept: the cache service is closed" in caplog.text
    cache = service()

    def sync() -> str:
        cache.close_sync()
        return "paid"

    assert cache.get_or_set_sync("ns", "k", sync) == "paid"
    with pytest.raises(RuntimeError, match="closed"):
        cache.get_or_set_sync("ns", "k", sync)


def test_strict_does_not_cost_what_was_loaded(
    sqlite: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = sqlite(strict=True)
    cache.set_sync("ns", "k", 0)
    with locked(tmp_path / "cache.db") as (lock, unlock):

        def load() -> str:
            lock()
            return "paid"

        assert cache.get_or_set_sync("ns", "other", load) == "paid"
        assert "what was loaded is not kept" in caplog.text
        with pytest.raises(CacheUnavailable):
            cache.set_sync("ns", "third", 1)
        unlock()


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ({"ttl": 0}, ValueError, "ttl: "),
        ({"ttl": -1}, ValueError, "ttl: "),
        ({"ttl": "x"}, TypeError, "ttl: "),
        ({"tags": "llm"}, TypeError, "tags: "),
        ({"tags": ["a\x1f"]}, ValueError, "tags: "),
        ({"tags": [5]}, TypeError, "tags: "),
    ],
)
def test_wrong_terms_are_found_before_the_load(
    service: Open, terms: Any, error: type[Exception], message: str
) -> None:
    cache = service()
    load = Loader(1)
    with pytest.raises(error, match=f"^{message}"):
        asyncio.run(cache.get_or_set("ns", "k", load, **terms))
    with pytest.raises(error, match=f"^{message}"):
        cache.get_or_set_sync("ns", "k", load.sync, **terms)
    with pytest.raises(error, match=f"^{message}"):
        asyncio.run(cache.warm([("ns", "k", 1)], **terms))
    assert load.calls == 0


def test_a_service_refuses_what_it_cannot_carry_and_a_client_returns_it(
    service: Open, caplog: pytest.LogCaptureFixture
) -> None:
    cache, client = service(), CacheClient("memory://")
    with pytest.raises(TypeError, match=r"value\['a'\]: set"):
        asyncio.run(cache.get_or_set("ns", "k", Loader({"a": {1}})))
    with pytest.raises(ValueError, match="max_value_bytes"):
        service(max_value_bytes=10).get_or_set_sync("ns", "k", lambda: "x" * 20)
    assert not caplog.records
    load = Loader({"a": {1}})
    assert asyncio.run(client.get_or_set("k", load)) == {"a": {1}}
    assert client.get_or_set_sync("k", load.sync) == {"a": {1}}
    assert load.calls == 2
    assert caplog.text.count("what was loaded is not kept: value['a']: set") == 2

    @client.cached
    def answer() -> object:
        return {1, 2}

    assert answer() == answer() == {1, 2}


def test_what_many_wait_for_reaches_all_of_them_though_it_cannot_be_kept() -> None:
    client = CacheClient("memory://")
    load = Loader({1}, before=lambda: asyncio.sleep(0))

    async def main() -> None:
        assert await asyncio.gather(*(client.get_or_set("k", load) for _ in range(5))) == [{1}] * 5

    asyncio.run(main())
    assert load.calls == 1


@pytest.mark.parametrize("factory", [None, 5])
def test_what_is_no_factory(service: Open, factory: Any) -> None:
    cache = service()
    for call in (
        lambda: asyncio.run(cache.get_or_set("ns", "k", factory)),
        lambda: cache.get_or_set_sync("ns", "k", factory),
        lambda: asyncio.run(cache.namespace("ns").get_or_set("k", factory=factory)),
        lambda: CacheClient().get_or_set_sync("k", factory),
    ):
        with pytest.raises(TypeError, match=r"^factory: expected a function without arguments"):
            call()


def test_factories_of_the_other_kind(service: Open) -> None:
    cache = service()
    coroutine = five()
    with pytest.raises(TypeError, match=r"^factory: .*got coroutine; write lambda"):
        asyncio.run(cache.get_or_set("ns", "k", coroutine))  # type: ignore[arg-type]
    coroutine.close()
    with pytest.raises(TypeError, match=r"^factory: expected a coroutine function, .* int; "):
        asyncio.run(cache.get_or_set("ns", "k", lambda: 7))  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"^factory: .* returned a coroutine"):
        cache.get_or_set_sync("ns", "k", five)
    assert cache.get_sync("ns", "k") is None


# Names of functions

SCRIPT = """
import sys
from ferrogate import CacheService
cache = CacheService(sys.argv[1])
@cache.namespace("llm").cached
def ask(question):
    return WHO + ": " + question
WHO = {who!r}
print(ask("hi"))
cache.close_sync()
"""


def test_two_scripts_share_nothing(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/cache.db"

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command, url],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    for folder, who in (("one", "A"), ("other", "B")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "main.py").write_text(SCRIPT.format(who=who))
    assert run("one/main.py") == "A: hi"
    assert run("other/main.py") == "B: hi"
    # The same script, from elsewhere and another time.
    (tmp_path / "one" / "main.py").write_text(SCRIPT.format(who="A again"))
    assert run("other/../one/main.py") == "A: hi"
    # As a module it is what those have who import it.
    (tmp_path / "asker.py").write_text(SCRIPT.format(who="C"))
    assert run("-m", "asker") == "C: hi"
    (tmp_path / "asker.py").write_text(SCRIPT.format(who="C again"))
    assert run("-c", "import asker") == "C: hi"


def test_a_notebook_s_cells_go_by_their_names() -> None:
    view = CacheService().namespace("llm")
    cell = "def ask(q):\n    return WHO + q"
    first = {"__name__": "__main__", "WHO": "A"}
    again = {"__name__": "__main__", "WHO": "B"}
    exec(cell, first)
    exec(cell, again)
    assert view.cached(first["ask"])("?") == view.cached(again["ask"])("?") == "A?"


def test_a_name_of_one_s_own(service: Open) -> None:
    view = service().namespace("llm")
    assert view.cached(name="ask")(lambda x: x + 1)(1) == 2
    assert view.cached(name="ask")(lambda x: x + 2)(1) == 2
    assert view.cached(name="ask.v2")(lambda x: x + 2)(1) == 3


async def words(text: str) -> Any:
    yield text


def letters(text: str) -> Any:
    yield from text


class Thing:
    def method(self, x: int) -> int:
        return x


def open_ended(x: int, **options: Any) -> int:
    return x


def test_what_cannot_be_cached() -> None:
    view = CacheService().namespace("functions")
    for stream in (words, letters):
        with pytest.raises(TypeError, match=r"is a generator, .*ferrogate\.cached keeps streams"):
            view.cached(stream)
    with pytest.raises(TypeError, match="write @classmethod above it"):
        view.cached(classmethod(len))
    with pytest.raises(ValueError, match=r"^ignore: Thing\.method has no parameter 'zzz'; it has"):
        view.cached(ignore=("zzz",))(Thing.method)
    with pytest.raises(TypeError, match=r"^ignore: "):
        view.cached(ignore=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^key: expected a function, got int"):
        view.cached(key=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^name: "):
        view.cached(name=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^self: cannot make a cache key .* ignore="):
        view.cached(Thing.method)(Thing(), 1)
    cached = view.cached(ignore=("session",))(open_ended)
    assert cached.cache_key(1, session=object()) == cached.cache_key(1, session=object())
    assert cached.cache_key(1, session=1) != cached.cache_key(1, session=1, other=2)


def test_cache_invalidate_has_a_twin(service: Open) -> None:
    cached = service().namespace("functions").cached(open_ended)
    assert cached(1) == 1
    assert asyncio.run(cached.cache_invalidate_async(1))
    assert not cached.cache_invalidate(1)


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


# Construction


def test_a_subclass_does_not_lose_its_store(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/cache.db"

    class Passes(CacheService):
        def __init__(self) -> None:
            super().__init__(url, default_ttl=5)

    class Renames(CacheService):
        def __init__(self, path: str) -> None:
            super().__init__(f"sqlite://{path}")

    class Adds(CacheService):
        def __init__(self, url: str, **arguments: Any) -> None:
            super().__init__(url, **arguments)
            self.more = 1

    class Makes(CacheService):
        def __new__(cls, path: Path) -> Makes:
            return super().__new__(cls, path, default_ttl=5)

        def __init__(self, path: Path) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"override Passes\.__new__ instead"):
        Passes()
    with pytest.raises(ValueError, match=r"^url: ") as caught:
        Renames(str(tmp_path))
    assert caught.value.__notes__ == ["Renames has an __init__, but a service is made in __new__"]
    with Adds(url, default_ttl=5) as cache:
        assert (cache.name, cache.more) == ("sqlite", 1)
    with Makes(tmp_path / "cache.db") as cache:
        assert cache.name == "sqlite"


@pytest.mark.parametrize("name", ["a b", "100%41", "a#b?c", "a\nb", "ü"])
def test_a_path_is_a_url(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with CacheService(folder / "cache.db") as cache:
        assert cache.set_sync("ns", "k", 1)
        assert cache.name == "sqlite"
    assert (folder / "cache.db").exists()
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (Path("one.db"), "sqlite:///./two.db", f"sqlite:///{tmp_path}/three.db"):
        with CacheService(url) as cache:
            assert cache.set_sync("ns", "k", 1)
    assert {"one.db", "two.db", "three.db"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (5, "got int"),
        ("sqlite:agent.db", "expected '//' behind 'sqlite:'"),
        ("memory:", "expected '//' behind 'memory:'"),
        ("sqlite:///:memory:", "write 'memory://'"),
        ("sqlite:///a\nb.db", "no control characters"),
        ("sqlite://[", "Invalid IPv6 URL"),
        ("sqlite://agent.db", r"'sqlite:///\./agent\.db'"),
        ("agent.db", r"a pathlib\.Path"),
    ],
)
def test_what_is_no_url(url: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^url: .*{message}"):
        CacheService(url)


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="its directory does not exist"):
        CacheService(tmp_path / "missing" / "cache.db")
    with pytest.raises(IsADirectoryError, match="got a directory"):
        CacheService(tmp_path)


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
    cache = service(near_bytes=100_000)
    for n in range(2_000):
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
