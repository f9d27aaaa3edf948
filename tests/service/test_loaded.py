"""What a loader has returned is not lost, and what is no loader is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from services import HASTY, Open, locked
from waiting import eventually

from ferrogate import CacheClient, CacheUnavailable


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
    cache = sqlite(strict=True, busy_seconds=HASTY)
    eventually(cache.health_check_sync)
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


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, KeyboardInterrupt])
def test_what_a_factory_raises_reaches_the_caller_as_it_is(
    service: Open, error: type[BaseException]
) -> None:
    cache = service()

    def fail() -> Any:
        raise error(3)

    with pytest.raises(error) as caught:
        cache.get_or_set_sync("ns", "k", fail)
    assert type(caught.value) is error
    assert cache.get_or_set_sync("ns", "k", lambda: 5) == 5
