"""LangChain's cache interface, and models that use it."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from typing import Any

import pydantic
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


def test_only_generations_are_revived(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    """Whoever can write into the store must not make us build a model or a template."""
    service = make(codec="msgpack")
    cache = FerrogateCache(service)
    prompt = PromptTemplate.from_template("{a}").to_json()
    key = ("prompt", "llm")
    with caplog.at_level(logging.WARNING, "ferrogate"):
        for payload in (json.dumps([json.dumps(prompt)]), "[]]", '["{}", 5]', "5"):
            service.set_sync("langchain", key, payload.encode())
            assert cache.lookup(*key) is None, payload
        assert len(told()) == 4
        service.set_sync("langchain", key, 17)
        assert cache.lookup(*key) is None


def test_what_is_too_large_is_not_kept(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    cache = FerrogateCache(make(max_value_bytes=500))
    with caplog.at_level(logging.WARNING, "ferrogate"):
        cache.update("p", "l", [Generation(text="x" * 1000)])
        asyncio.run(cache.aupdate("p", "l", [Generation(text="x" * 1000)]))
        assert cache.lookup("p", "l") is None
    # One reason, and so one warning.
    assert len(told()) == 1


class Forecast(pydantic.BaseModel):
    """What a model provider has parsed."""

    day: datetime.date
    degrees: float = 20.5


class Aliased(pydantic.BaseModel):
    """LangChain's parsers cannot make it of its own fields."""

    degrees: float = pydantic.Field(alias="°")


class Reply(AIMessage):
    """A message of one's own."""

    score: int = 3


class Scored(ChatGeneration):
    """A generation of one's own."""

    score: int = 4


class Keyed(AIMessage):
    """A message that carries a secret."""

    api_key: str = ""

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "SOME_API_KEY"}


class Shy(AIMessage):
    """It is not to be serialised."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return False


class Twin(AIMessage):
    """LangChain takes it for another."""

    @classmethod
    def lc_id(cls) -> list[str]:
        return AIMessage.lc_id()


def chat(message: AIMessage | None = None, **info: Any) -> ChatGeneration:
    return ChatGeneration(message=message or AIMessage("hi"), generation_info=info)


@pytest.mark.parametrize(
    "generation",
    [
        chat(AIMessage("x", response_metadata={"at": datetime.datetime(2026, 1, 1)})),
        chat(AIMessage("x", additional_kwargs={"n": {"p": Forecast(day=datetime.date.min)}})),
        chat(AIMessage("x", additional_kwargs={"parsed": Aliased(**{"°": 1.5})})),
        chat(payload=b"x"),
        chat(logprobs=[("a", -0.1)]),
        chat(numbers={1: 2}),
        chat(nan=float("nan")),
        chat(Reply("x")),
        Scored(message=AIMessage("x")),
    ],
    ids=lambda generation: type(generation).__name__,
)
def test_what_would_not_come_back_equal_is_not_kept(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any, generation: Generation
) -> None:
    service = make()
    cache = FerrogateCache(service)
    with caplog.at_level(logging.WARNING, "ferrogate"):
        for prompt in "ab":
            cache.update(prompt, "l", [Generation(text="x"), generation])
            asyncio.run(cache.aupdate(prompt, "l", [generation]))
            assert cache.lookup(prompt, "l") is None
    (said,) = told()
    assert said.startswith("langchain cache: generations were not kept: TypeError: ")
    stats = service.get_stats()
    assert (stats["sets"], stats["hits"], stats["misses"]) == (0, 0, 2)


def test_a_model_whose_answers_are_not_kept(
    make: Any, caplog: pytest.LogCaptureFixture, told: Any
) -> None:
    answers = [AIMessage(str(n), response_metadata={"at": datetime.date.min}) for n in range(4)]
    service = make()
    llm = GenericFakeChatModel(messages=iter(answers), cache=FerrogateCache(service))
    with caplog.at_level(logging.WARNING, "ferrogate"):
        assert [llm.invoke("a").content, llm.invoke("a").content] == ["0", "1"]
        assert asyncio.run(llm.ainvoke("a")).content == "2"
    assert told() == [
        "langchain cache: generations were not kept: TypeError: LangChain cannot revive "
        "datetime.date; name message classes of your own in allowed_objects"
    ]
    assert service.get_stats()["hits"] == 0


def test_what_is_parsed_comes_back_as_its_fields(make: Any) -> None:
    cache = FerrogateCache(make())
    forecast = Forecast(day=datetime.date(2026, 1, 2))
    generation = chat(AIMessage("{}", additional_kwargs={"parsed": forecast, "n": 1}))
    cache.update("p", "l", [generation])
    # The caller's own is as it was.
    assert generation.message.additional_kwargs["parsed"] is forecast
    (found,) = cache.lookup("p", "l") or ()
    assert isinstance(found, ChatGeneration)
    parsed = found.message.additional_kwargs["parsed"]
    assert parsed == {"day": "2026-01-02", "degrees": 20.5}
    assert Forecast(**parsed) == forecast


@pytest.mark.parametrize("codec", ["json", "bytes"])
def test_classes_of_ones_own(make: Any, codec: str) -> None:
    service = make(codec=codec)
    cache = FerrogateCache(service, allowed_objects=[Reply, Scored, AIMessage])
    generations = [
        Scored(message=Reply("x", score=5), score=6),
        chat(AIMessage("y")),
        Generation(text="z"),
    ]
    cache.update("p", "l", generations)
    found = cache.lookup("p", "l") or ()
    assert found == generations
    assert [type(each) for each in found] == [Scored, ChatGeneration, Generation]
    assert isinstance(found[0], Scored)
    assert isinstance(found[0].message, Reply)
    # For one that does not know them it is a miss, and a hit only once.
    another = FerrogateCache(service)
    assert [another.lookup("p", "l") for _ in range(3)] == [None] * 3
    stats = service.get_stats()
    assert (stats["hits"], stats["misses"]) == (2, 2)
    assert cache.lookup("p", "l") is None


def test_an_awaited_lookup_forgets_what_it_cannot_read(make: Any) -> None:
    service = make()
    cache = FerrogateCache(service)
    service.set_sync("langchain", ("p", "l"), "!")

    async def main() -> None:
        assert [await cache.alookup("p", "l") for _ in range(3)] == [None] * 3

    asyncio.run(main())
    stats = service.get_stats()
    assert (stats["hits"], stats["misses"]) == (1, 2)


def test_secrets_are_neither_written_nor_read(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "from the environment")
    service = make(codec="bytes")
    cache = FerrogateCache(service, allowed_objects=[Keyed])
    with caplog.at_level(logging.DEBUG, "ferrogate"):
        cache.update("p", "l", [chat(Keyed("x", api_key="from the message"))])
    assert cache.lookup("p", "l") is None
    assert "from the" not in caplog.text
    # Somebody else's that names one.
    secret = {"lc": 1, "type": "secret", "id": ["SOME_API_KEY"]}
    text = Generation(text="x", generation_info={"k": 0}).to_json()
    text["kwargs"]["generation_info"] = {"k": secret}
    service.set_sync("langchain", ("q", "l"), json.dumps([json.dumps(text)]).encode())
    assert cache.lookup("q", "l") == [Generation(text="x", generation_info={"k": None})]


def test_dicts_that_look_like_langchains_own_are_kept(make: Any) -> None:
    cache = FerrogateCache(make())
    looks = [
        {"lc": 1, "type": "not_implemented", "id": ["a"]},
        {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}},
        {"lc": 1, "type": "secret", "id": ["HOME"]},
        {"__lc_escaped__": {"lc": 1}},
    ]
    generations = [chat(look={"as": look}, lists=[look]) for look in looks]
    cache.update("p", "l", generations)
    assert cache.lookup("p", "l") == generations


def test_wrong_allowed_objects(make: Any) -> None:
    class Local(AIMessage):
        pass

    wrong: list[tuple[Any, type[Exception], str]] = [
        (5, TypeError, "expected classes, got int"),
        ("messages", TypeError, "expected classes derived"),
        ([int], TypeError, "expected classes derived"),
        ([Reply("x")], TypeError, "expected classes derived"),
        ([Local], ValueError, "is not found in its module"),
        ([Shy], ValueError, "is_lc_serializable"),
        ([Reply, Twin], ValueError, "LangChain cannot tell .*Twin from .*AIMessage"),
    ]
    for given, kind, message in wrong:
        with pytest.raises(kind, match=rf"^allowed_objects: .*{message}"):
            FerrogateCache(make(), allowed_objects=given)
