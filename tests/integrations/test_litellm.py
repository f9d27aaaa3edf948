"""LiteLLM's cache interface, and completions that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

from ferrogate.integrations.litellm import FerrogateCache

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
