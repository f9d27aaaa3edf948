"""DSPy's cache, and a language model that uses it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest

from ferrogate.integrations.dspy import FerrogateCache

KEY = b"0123456789abcdef"


@pytest.fixture
def cache(make: Any) -> Iterator[FerrogateCache]:
    before = dspy.cache
    cache = FerrogateCache(make(codec="pickle", hmac_key=KEY), ttl=100)
    dspy.cache = cache
    yield cache
    dspy.cache = before


def test_what_is_put_is_got(cache: FerrogateCache) -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "api_key": "secret"}
    ignored = ["api_key"]
    assert cache.get(request, ignored) is None
    response = litellm.ModelResponse(usage={"total_tokens": 5})
    cache.put(request, response, ignored)
    found = cache.get({**request, "api_key": "another"}, ignored)
    assert found.cache_hit
    assert found.usage == {}
    assert found.id == response.id
    # A copy: what one caller does to it, the next one does not see.
    assert cache.get(request, ignored) is not found
    assert cache.cache_key(request, ignored) in cache
    cache.clear()
    assert cache.get(request, ignored) is None


def test_a_model_is_asked_once(cache: FerrogateCache) -> None:
    lm = dspy.LM("openai/gpt-4o", mock_response="one", api_key="none")
    assert lm("hello") == lm("hello")
    assert cache._service.get_stats()["hits"] == 1
    assert lm("another") is not None
    assert cache._service.get_stats()["sets"] == 2


def test_what_cannot_be_keyed_or_kept(
    cache: FerrogateCache, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    request = {"x": object}
    cache.put({"x": object()}, 1)
    assert cache.get({"x": object()}) is None
    with caplog.at_level(logging.WARNING, "ferrogate"):
        cache.put(request, lambda: 1)
    assert cache.get(request) is None
    assert len(told()) == 1


def test_a_codec_that_cannot_carry_objects(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^service: codec 'json' cannot carry DSPy's objects"):
        FerrogateCache(make())


def test_what_is_on_disk_outlives_a_reset_of_the_memory(make: Any) -> None:
    mine, others = (FerrogateCache(make(codec="pickle", hmac_key=KEY)) for _ in range(2))
    mine.put({"a": 1}, "one")
    mine.reset_memory_cache()
    if mine._service.url == "memory://":
        assert mine.get({"a": 1}) is None
        return
    assert mine.get({"a": 1}) == others.get({"a": 1}) == "one"
    mine.clear()
    assert mine.get({"a": 1}) is None


def test_nothing_is_said_to_be_saved_that_is_not(cache: FerrogateCache, tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "dspy.pkl")
    with pytest.raises(NotImplementedError, match=r"^save_memory_cache: .*sqlite:///"):
        dspy.cache.save_memory_cache(path)
    assert not os.path.exists(path)
    with pytest.raises(NotImplementedError, match=r"^load_memory_cache: .*sqlite:///"):
        dspy.cache.load_memory_cache(path, allow_pickle=True)


def test_no_answer_is_not_kept(cache: FerrogateCache) -> None:
    cache.put({"a": 1}, None)
    assert cache.get({"a": 1}) is None
    stats = cache._service.get_stats()
    assert (stats["sets"], stats["hits"], stats["misses"]) == (0, 0, 1)


class Stubborn:
    """It can be pickled, but not be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


def test_what_cannot_be_copied_is_a_miss(
    cache: FerrogateCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put({"a": 1}, Stubborn())
    with caplog.at_level(logging.WARNING, "ferrogate"):
        assert cache.get({"a": 1}) is None
    assert "no copies" in caplog.text
