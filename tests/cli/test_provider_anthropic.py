"""The provider as Anthropic's own SDK meets it, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anthropic
import openai
import pytest

from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_process import ProviderProcess

MESSAGES: Any = [{"role": "user", "content": "hello"}]
MODEL = "claude-test"


@asynccontextmanager
async def served(
    **settings: object,
) -> AsyncIterator[tuple[ProviderProcess, anthropic.AsyncAnthropic]]:
    async with ProviderProcess(ProviderConfig.from_dict(settings)) as process:
        http = anthropic.DefaultAsyncHttpxClient(trust_env=False)
        async with anthropic.AsyncAnthropic(
            base_url=process.origin, api_key="k", max_retries=0, http_client=http
        ) as client:
            yield process, client


def test_whole_and_streamed_with_the_trace_s_token_counts() -> None:
    async def main() -> None:
        async with served(speed=1000.0) as (process, client):
            counts: Any = {"user_id": "u", "input_tokens": "374", "output_tokens": "44"}
            whole = await client.messages.create(
                model=MODEL, max_tokens=500, messages=MESSAGES, metadata=counts
            )
            assert (whole.usage.input_tokens, whole.usage.output_tokens) == (374, 44)
            assert whole.stop_reason == "end_turn"
            (block,) = whole.content
            assert block.type == "text"
            assert len(block.text.split()) == 44

            async with client.messages.stream(
                model=MODEL, max_tokens=30, system="be brief", messages=MESSAGES, metadata=counts
            ) as stream:
                said = "".join([text async for text in stream.text_stream])
                last = await stream.get_final_message()
            assert len(said.split()) == 30
            assert (last.usage.input_tokens, last.usage.output_tokens) == (374, 30)
            assert last.stop_reason == "max_tokens"

            stream_of_events = await client.messages.create(
                model=MODEL, max_tokens=20, messages=MESSAGES, stream=True
            )
            kinds = [event.type async for event in stream_of_events]
            assert [kinds[0], kinds[1]] == ["message_start", "content_block_start"]
            assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
            assert kinds.count("content_block_delta") == 16
            assert (await client.models.list()).data == []
            stats = await process.stats()
            assert (stats["served"], stats["in_flight"]) == (3, 0)
            assert (stats["input_tokens"], stats["output_tokens"]) == (749, 94)
            assert stats["tenants"]["u"]["served"] == 2

    asyncio.run(main())


def test_limits_headers_and_refusals() -> None:
    async def main() -> None:
        async with served(
            requests_per_minute=2,
            input_tokens_per_minute=5_000,
            output_tokens_per_minute=8_000,
            speed=4.0,
        ) as (process, client):
            create = client.messages.with_raw_response.create
            for left in ("1", "0"):
                raw = await create(model=MODEL, max_tokens=10, messages=MESSAGES)
                headers = raw.headers
                assert headers["anthropic-ratelimit-requests-remaining"] == left
                assert headers["anthropic-ratelimit-input-tokens-limit"] == "5000"
                assert headers["anthropic-ratelimit-output-tokens-remaining"] == "8000"
                reset = datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
                assert -1 < (reset - datetime.now(UTC)).total_seconds() <= 16
            with pytest.raises(anthropic.RateLimitError) as caught:
                await create(model=MODEL, max_tokens=10, messages=MESSAGES)
            body: Any = caught.value.body
            assert body["error"]["type"] == "rate_limit_error"
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 15
            with pytest.raises(anthropic.RateLimitError, match="can never be granted"):
                await create(model=MODEL, max_tokens=8_001, messages=MESSAGES)
            with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
                await client.post("/v1/messages", body={"messages": []}, cast_to=object)
            stats = await process.stats()
            assert (stats["received"], stats["rate_limited"], stats["too_large"]) == (4, 1, 1)

    asyncio.run(main())


def test_both_apis_share_the_limits() -> None:
    async def main() -> None:
        async with served(requests_per_minute=1, speed=1.0) as (process, client):
            await client.messages.create(
                model=MODEL, max_tokens=1, messages=MESSAGES, extra_headers={"x-tenant": "t"}
            )
            http = openai.DefaultAsyncHttpxClient(trust_env=False)
            async with openai.AsyncOpenAI(
                base_url=process.origin + "/v1", api_key="k", max_retries=0, http_client=http
            ) as other:
                with pytest.raises(openai.RateLimitError):
                    await other.chat.completions.create(model="m", messages=MESSAGES, user="u")
            tenants = (await process.stats())["tenants"]
            assert (tenants["t"]["served"], tenants["u"]["rate_limited"]) == (1, 1)

    asyncio.run(main())


def test_injected_errors_reach_the_sdk_as_what_they_are() -> None:
    async def main() -> None:
        for settings, expected, timeout in (
            ({"rate_429": 1.0}, anthropic.RateLimitError, 30.0),
            ({"rate_500": 1.0}, anthropic.InternalServerError, 30.0),
            ({"rate_timeout": 1.0}, anthropic.APITimeoutError, 0.3),
        ):
            async with served(**settings) as (_, client):
                with pytest.raises(expected):
                    await client.messages.create(
                        model=MODEL, max_tokens=5, messages=MESSAGES, timeout=timeout
                    )

    asyncio.run(main())
