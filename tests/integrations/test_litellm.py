"""LiteLLM's cache interface, and completions that use it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

from ferrogate import CacheUnavailable
from ferrogate.integrations import litellm as adapter
from ferrogate.integrations.litellm import FerrogateCache
from ferrogate.testing import ManualClock

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def cache(make: Any) -> Iterator[FerrogateCache]:
    cache = FerrogateCache(make(), ttl=100)
    litellm.cache = litellm.Cache(type="local")  # type: ignore[attr-defined]
    litellm.cache.cache = cache
    yield cache
    litellm.cache = None


def test_the_interface(make: Any) -> None:
    service = make()
    cache = FerrogateCache(service)
    value = {"timestamp": 1.5, "response": '{"a": 1}'}
    assert cache.get_cache("k") is None
    cache.set_cache("k", value, ttl="30", messages=[])
    assert cache.get_cache("k", messages=[]) == value
    assert cache.batch_get_cache(["k", "l"]) == [value, None]
    cache.delete_cache("k")
    assert cache.get_cache("k") is None

    async def main() -> None:
        await cache.async_set_cache_pipeline([("a", value), ("b", value)], ttl=10)
        await cache.batch_cache_write("c", value)
        assert await cache.async_batch_get_cache(["a", "b", "c", "d"]) == [*[value] * 3, None]
        assert (await cache.test_connection())["status"] == "success"
        await cache.disconnect()
        assert await cache.async_get_cache("a") == value

    asyncio.run(main())
    cache.flush_cache()
    assert cache.get_cache("a") is None


def test_a_completion_is_asked_for_once(cache: FerrogateCache) -> None:
    first = litellm.completion(**ASK, mock_response="one", caching=True)
    assert first.choices[0].message.content == "one"
    again = litellm.completion(**ASK, mock_response="two", caching=True)
    assert again.choices[0].message.content == "one"
    other = litellm.completion(**{**ASK, "temperature": 1}, mock_response="three", caching=True)
    assert other.choices[0].message.content == "three"


def test_an_awaited_completion_is_asked_for_once(cache: FerrogateCache) -> None:
    async def main() -> list[str]:
        got = []
        for answer in ("one", "two"):
            response = await litellm.acompletion(**ASK, mock_response=answer, caching=True)
            got.append(response.choices[0].message.content)
            # LiteLLM stores in a task of its own.
            for _ in range(6000):
                await asyncio.sleep(0.005)
                if cache._service.get_stats()["sets"]:
                    break
        return got

    assert asyncio.run(main()) == ["one", "one"]


def test_a_codec_that_cannot_carry_responses(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^service: codec 'bytes' cannot carry"):
        FerrogateCache(make(codec="bytes"))


def test_one_bad_value_loses_only_itself(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    cache = FerrogateCache(make())
    values: list[tuple[str, Any]] = [("a", {"n": 1}), ("bad", {"n": {1}}), ("b", {"n": 2})]

    async def main() -> None:
        await cache.async_set_cache_pipeline(values, ttl=10)
        assert await cache.async_batch_get_cache(["a", "bad", "b"]) == [{"n": 1}, None, {"n": 2}]

    with caplog.at_level(logging.WARNING, "ferrogate"):
        asyncio.run(main())
        cache.set_cache("bad", {"n": {1}})
    assert [each.partition(":")[0] for each in told()] == ["litellm cache"]


def test_what_litellm_calls_beside(cache: FerrogateCache) -> None:
    front = litellm.cache  # type: ignore[attr-defined]
    for key in "abc":
        cache.set_cache(key, {"n": key})

    async def main() -> None:
        assert await front.ping() is True
        await front.delete_cache_keys(["a", "b", "nobody's"])
        await front.disconnect()
        # The service is not LiteLLM's to close.
        assert await front.ping() is True

    asyncio.run(main())
    assert cache.batch_get_cache(["a", "b", "c"]) == [None, None, {"n": "c"}]


def test_a_store_that_does_not_answer(make: Any) -> None:
    service = make()
    cache = FerrogateCache(service)
    service.close_sync()
    with pytest.raises(CacheUnavailable, match="does not answer"):
        asyncio.run(cache.ping())
    answer = asyncio.run(cache.test_connection())
    assert answer["status"] == "failed"
    assert "does not answer" in answer["error"]


def test_sums(make: Any) -> None:
    cache = FerrogateCache(make())
    assert cache.increment_cache("n", 2) == 2
    assert asyncio.run(cache.async_increment("n", 0.5, ttl=60)) == 2.5
    assert cache.get_cache("n") == 2.5
    cache.set_cache("text", "x")
    assert cache.increment_cache("text", 1) == 1

    def add() -> None:
        for _ in range(25):
            cache.increment_cache("sum", 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get_cache("sum") == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_take_the_lock_along() -> None:
    lock = adapter._adding[0]
    with lock:
        child = os.fork()
        if not child:
            os._exit(adapter._adding[0].locked())
    assert os.waitpid(child, 0)[1] == 0
    assert adapter._adding == [lock]


@pytest.mark.parametrize("awaited", [False, True])
def test_what_litellm_says_of_the_time(make: Any, told: Any, awaited: bool) -> None:
    clock = ManualClock()
    cache = FerrogateCache(make(clock=clock), ttl=100)

    def keep(key: str, ttl: Any) -> None:
        if awaited:
            asyncio.run(cache.async_set_cache(key, {"n": 1}, ttl=ttl))
        else:
            cache.set_cache(key, {"n": 1}, ttl=ttl)

    given: list[Any] = [5, "5", 5.5, 200, None, "abc", float("nan"), [], float("inf"), 0, -1, "0"]
    for number, ttl in enumerate(given):
        cache.set_cache(str(number), {"n": 0}, ttl=1000)
        keep(str(number), ttl)

    def living() -> list[Any]:
        return [ttl for n, ttl in enumerate(given) if cache.get_cache(str(n)) is not None]

    assert living() == given[:9]
    clock.advance(50)
    assert living() == given[3:9]
    clock.advance(60)
    assert living() == [200, float("inf")]
    assert not told()


def test_a_completion_that_is_not_to_be_kept(
    cache: FerrogateCache, caplog: pytest.LogCaptureFixture
) -> None:
    for answer in ("one", "two"):
        kept = {"caching": True, "cache": {"ttl": 0}}
        response = litellm.completion(**ASK, mock_response=answer, **kept)
        assert response.choices[0].message.content == answer
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
