"""LangChain's cache interface, and models that use it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from langchain_core.caches import BaseCache
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import PromptTemplate

from ferrogate.integrations.langchain import FerrogateCache

CHAT = ChatGeneration(
    message=AIMessage(
        "hi",
        tool_calls=[{"name": "f", "args": {"a": 1}, "id": "1"}],
        usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
    ),
    generation_info={"finish_reason": "stop"},
)


@pytest.mark.parametrize("codec", ["json", "msgpack", "bytes"])
def test_what_is_updated_is_looked_up(make: Any, codec: str) -> None:
    cache: BaseCache = FerrogateCache(make(codec=codec), ttl=100)
    generations = [Generation(text="a", generation_info={"n": 1}), CHAT]
    assert cache.lookup("prompt", "llm") is None
    cache.update("prompt", "llm", generations)
    assert cache.lookup("prompt", "llm") == generations
    assert cache.lookup("promptllm", "") is None
    cache.clear()
    assert cache.lookup("prompt", "llm") is None

    async def main() -> None:
        assert await cache.alookup("prompt", "llm") is None
        await cache.aupdate("prompt", "llm", generations)
        assert await cache.alookup("prompt", "llm") == generations
        await cache.aclear()
        assert await cache.alookup("prompt", "llm") is None

    asyncio.run(main())


def test_a_model_answers_once(make: Any) -> None:
    cache = FerrogateCache(make())
    llm = FakeListLLM(responses=["one", "two", "three"], cache=cache)
    assert [llm.invoke("a"), llm.invoke("a"), llm.invoke("b"), llm.invoke("a")] == [
        *("one", "one", "two", "one"),
    ]

    async def main() -> list[str]:
        return [await llm.ainvoke("a"), await llm.ainvoke("c"), await llm.ainvoke("c")]

    assert asyncio.run(main()) == ["one", "three", "three"]
    answers = iter([AIMessage("first"), AIMessage("second")])
    chat = GenericFakeChatModel(messages=answers, cache=cache)
    assert chat.invoke("a").content == chat.invoke("a").content == "first"
    assert asyncio.run(chat.ainvoke("a")).content == "first"


def test_only_generations_are_revived(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can write into the store must not make us build a model or a template."""
    service = make(codec="msgpack")
    cache = FerrogateCache(service)
    prompt = PromptTemplate.from_template("{a}").to_json()
    key = ("prompt", "llm")
    with caplog.at_level(logging.WARNING, "ferrogate"):
        for payload in (json.dumps([json.dumps(prompt)]), "[]]", '["{}", 5]', "5"):
            service.set_sync("langchain", key, payload.encode())
            assert cache.lookup(*key) is None, payload
    assert len(caplog.records) == 4
    service.set_sync("langchain", key, 17)
    assert cache.lookup(*key) is None


def test_what_is_too_large_is_not_kept(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    cache = FerrogateCache(make(max_value_bytes=500))
    with caplog.at_level(logging.WARNING, "ferrogate"):
        cache.update("p", "l", [Generation(text="x" * 1000)])
        asyncio.run(cache.aupdate("p", "l", [Generation(text="x" * 1000)]))
    assert cache.lookup("p", "l") is None
    assert len(caplog.records) == 2
