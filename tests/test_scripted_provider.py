"""The provider that users' suites script: real SDKs over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from ferrogate.testing import ProviderReply, ScriptedProvider

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def provider(no_leaked_threads: None) -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as started:
        yield started


def client(provider: ScriptedProvider, **options: Any) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    options = {"max_retries": 0, "http_client": http} | options
    return openai.OpenAI(base_url=provider.openai_url, api_key="test", **options)


def claude(provider: ScriptedProvider, **options: Any) -> anthropic.Anthropic:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    options = {"max_retries": 0, "http_client": http} | options
    return anthropic.Anthropic(base_url=provider.url, api_key="test", **options)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES, **more)


def say(client: anthropic.Anthropic, **more: Any) -> Any:
    return client.messages.create(model="m", max_tokens=50, messages=MESSAGES, **more)


def test_the_script_is_played_in_order(provider: ScriptedProvider) -> None:
    provider.script([429, 500, "hello there", provider.timeout])
    provider.script([TimeoutError, ConnectionError("gone"), {"custom": True}])
    with client(provider) as sdk:
        with pytest.raises(openai.RateLimitError):
            ask(sdk)
        with pytest.raises(openai.InternalServerError):
            ask(sdk)
        answer = ask(sdk)
        assert answer.choices[0].message.content == "hello there"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 2)
        for number in (4, 5):
            with pytest.raises(openai.APITimeoutError):
                ask(sdk, timeout=0.2)
            # On a busy machine the client may give up before its request has been read.
            while provider.count() < number:
                time.sleep(0.001)
        with pytest.raises(openai.APIConnectionError):
            ask(sdk)
        raw = sdk.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
        assert raw.http_response.json() == {"custom": True}
        assert provider.scripted == 0
        assert len(ask(sdk, max_tokens=7).choices[0].message.content.split()) == 7
    assert provider.count() == 8
    counts = {status: provider.count(status) for status in (429, 500, 200)}
    assert counts == {429: 1, 500: 1, 200: 3}
    assert [request.status for request in provider.requests[3:6]] == [None] * 3
    first = provider.requests[0]
    assert (first.method, first.path, first.prompt) == ("POST", "/v1/chat/completions", "hello")
    assert first.json["messages"] == MESSAGES
    assert first.headers["authorization"] == "Bearer test"


def test_an_sdk_s_own_retries_are_seen(provider: ScriptedProvider) -> None:
    again = ProviderReply(status=429, headers={"retry-after-ms": "1"})
    provider.script([again, again, "third"])
    with client(provider, max_retries=2) as sdk:
        assert ask(sdk).choices[0].message.content == "third"
    assert (provider.count(), provider.count(429)) == (3, 2)


def test_anthropic_s_words(provider: ScriptedProvider) -> None:
    provider.script([429, 529, ProviderReply(text="hi", input_tokens=9, output_tokens=4)])
    with claude(provider) as sdk:
        with pytest.raises(anthropic.RateLimitError) as caught:
            say(sdk)
        body: Any = caught.value.body
        assert body["error"]["type"] == "rate_limit_error"
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            say(sdk)
        assert overloaded.value.status_code == 529
        message = say(sdk)
        assert message.content[0].text == "hi"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 4)


def test_streams_whole_and_broken(provider: ScriptedProvider) -> None:
    text = "one two three four"
    provider.script([text, ProviderReply(text=text, breaks_after=2), ConnectionError])
    with client(provider) as sdk:
        chunks = [chunk.choices[0].delta.content or "" for chunk in ask(sdk, stream=True)]
        assert "".join(chunks) == text
        seen = []
        with pytest.raises(openai.APIConnectionError):  # noqa: PT012
            for chunk in ask(sdk, stream=True):
                seen.append(chunk.choices[0].delta.content)  # noqa: PERF401
        assert seen == ["one ", "two "]
        with pytest.raises(openai.APIConnectionError):
            ask(sdk, stream=True)
    provider.script([text])
    with (
        claude(provider) as sdk,
        sdk.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream,
    ):
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens == 4


def test_unscripted_requests_are_under_the_limits(provider: ScriptedProvider) -> None:
    provider.limit(requests_per_minute=2, input_tokens_per_minute=1_000)
    with claude(provider) as sdk:
        say(sdk)
        raw = sdk.messages.with_raw_response.create(model="m", max_tokens=1, messages=MESSAGES)
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "0"
        with pytest.raises(anthropic.RateLimitError):
            say(sdk)
        provider.script(["past the limits"])
        assert say(sdk).content[0].text == "past the limits"
    stats = provider.stats()
    assert (stats["received"], stats["served"], stats["rate_limited"]) == (3, 2, 1)
    assert (provider.count(200), provider.count(429)) == (3, 1)
    provider.limit()
    with claude(provider) as sdk:
        assert len(list(say(sdk, stream=True))) > 3
    assert provider.stats()["in_flight"] == 0


def test_many_at_once_each_get_one_reply(provider: ScriptedProvider) -> None:
    provider.script([str(number) for number in range(60)])

    async def main() -> list[str]:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=provider.openai_url, api_key="test", http_client=http
        ) as sdk:
            create = sdk.chat.completions.create
            answers = await asyncio.gather(
                *(create(model="m", messages=MESSAGES) for _ in range(60))
            )
        return [answer.choices[0].message.content or "" for answer in answers]

    assert sorted(asyncio.run(main()), key=int) == [str(number) for number in range(60)]
    assert provider.count(200) == 60


def test_stopping_ends_whoever_still_waits(no_leaked_threads: None) -> None:
    provider = ScriptedProvider().start()
    provider.script([provider.timeout, ProviderReply(delay=3_600.0), "idle"])
    failed: list[Exception] = []

    def wait_for_it() -> None:
        with client(provider) as sdk:
            try:
                ask(sdk, timeout=60)
            except openai.APIConnectionError as error:
                failed.append(error)

    waiting = [threading.Thread(target=wait_for_it) for _ in range(2)]
    for thread in waiting:
        thread.start()
    while provider.count() < 2:
        time.sleep(0.001)
    with client(provider) as sdk:  # and a connection that is kept alive
        ask(sdk)
        began = time.monotonic()
        provider.stop()
        for thread in waiting:
            thread.join()
    assert time.monotonic() - began < 30
    assert len(failed) == 2
    assert not any(isinstance(error, openai.APITimeoutError) for error in failed)
    with pytest.raises(RuntimeError, match="not started"):
        _ = provider.url
    with provider, client(provider) as sdk:
        ask(sdk)
    assert provider.count(200) == 2


def test_clients_may_hang_up_and_talk_nonsense(
    provider: ScriptedProvider, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = provider.url.removeprefix("http://").split(":")
    for said in (b"", b"GET /sta", b"nonsense\r\n\r\n", b"POST /v1/messages HTTP/1.1\r\n"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(said)
    with httpx2.Client(trust_env=False, base_url=provider.url) as http:
        assert http.post("/v1/messages", content=b"{}").status_code == 400
        provider.script(["never read"])
        assert http.post("/v1/messages", content=b"[1").status_code == 400
        assert http.post("/other", content=b"{}").status_code == 404
        assert http.get("/v1/models").json()["data"] == []
        assert http.get("/stats").json()["received"] == 0
    provider.reset()
    assert (provider.count(), provider.scripted) == (0, 0)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_wrong_scripts_are_named(provider: ScriptedProvider) -> None:
    for wrong in (3.5, None, True, object, [429]):
        with pytest.raises(TypeError, match="script: expected"):
            provider.script([wrong])
    for text in ("hello", b"hello", {"a": 1}):
        with pytest.raises(TypeError, match="expected a list"):
            provider.script(text)
    with pytest.raises(ValueError, match="status: expected 200 to 599"):
        provider.script([99])
    with pytest.raises(ValueError, match="delay"):
        ProviderReply(delay=-1.0)
    with pytest.raises(ValueError, match="requests_per_minute"):
        ScriptedProvider(requests_per_minute=-1)
    with pytest.raises(TypeError, match="requests_a_minute"):
        ScriptedProvider(requests_a_minute=1)
    assert provider.scripted == 0
    assert "0 requests" in repr(provider)
