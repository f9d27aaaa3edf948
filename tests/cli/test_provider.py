"""The provider: its judgement on a manual clock, and its process over real HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import openai
import pytest

from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_core import Answer, ProviderCore, Refusal
from ferrogate.cli.provider_process import ProviderProcess
from ferrogate.cli.windows import ExactWindow, format_duration, parse_duration

MESSAGES = [{"role": "user", "content": "hello"}]


class Clock:
    """Seconds that only a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def core(**settings: object) -> tuple[ProviderCore, Clock]:
    clock = Clock()
    return ProviderCore(ProviderConfig.from_dict(settings), clock), clock


def test_the_window_is_exact_against_a_list_of_times() -> None:
    rng = random.Random(5)
    window = ExactWindow("w", 20, 10.0)
    spent: list[tuple[float, int]] = []
    now = 0.0
    for _ in range(5_000):
        now += rng.choice((0.0, 0.25, 0.5, 2.0))
        cost = rng.randrange(1, 8)
        used = sum(units for at, units in spent if now - 10.0 < at)
        assert window.remaining(now) == 20 - used
        wait = window.wait(now, cost)
        assert (wait == 0.0) == (used + cost <= 20)
        if wait == 0.0:
            window.spend(now, cost)
            spent.append((now, cost))
        else:
            later = now + wait
            assert sum(units for at, units in spent if later - 10.0 < at) + cost <= 20
    assert window.wait(now, 21) == float("inf")


def test_durations_are_spelled_as_openai_spells_them() -> None:
    spelled = {0: "0ms", 0.012: "12ms", 1: "1s", 1.5: "1.5s", 360: "6m0s", 3661.25: "1h1m1.25s"}
    for seconds, text in spelled.items():
        assert format_duration(seconds) == text
        assert parse_duration(text) == pytest.approx(seconds)
    for bad in ("", "1", "s", "1s ", "-1s", "1x"):
        with pytest.raises(ValueError, match="not a duration"):
            parse_duration(bad)


def test_a_refusal_spends_nothing_and_says_when() -> None:
    provider, clock = core(requests_per_minute=2, requests_per_hour=3)
    verdicts = [provider.admit("p", 1, 1) for _ in range(3)]
    assert [isinstance(verdict, Answer) for verdict in verdicts] == [True, True, False]
    refused = verdicts[2]
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.retry_after) == (429, 60.0)
    clock.now = 60.0
    assert isinstance(provider.admit("p", 1, 1), Answer)
    hour = provider.admit("p", 1, 1)
    assert isinstance(hour, Refusal)
    assert hour.retry_after == 3540.0
    stats = provider.stats()
    assert (stats["received"], stats["rate_limited"]) == (5, 2)
    assert stats["rate_limited_by"] == {"requests per minute": 1, "requests per hour": 1}
    assert stats["peaks"]["requests per minute"] == {"limit": 2, "most_in_any_window": 2}


def test_larger_than_a_limit_is_counted_apart() -> None:
    provider, _ = core(tokens_per_minute=100)
    refused = provider.admit("p", 90, 11)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after) == ("request_too_large", None)
    assert isinstance(provider.admit("p", 90, 10), Answer)
    stats = provider.stats()
    assert (stats["too_large"], stats["rate_limited"]) == (1, 0)


def test_injected_faults_are_counted_apart_and_seeded() -> None:
    def faults(seed: int) -> tuple[int, ...]:
        provider, clock = core(
            requests_per_minute=600, rate_429=0.1, rate_500=0.1, rate_timeout=0.1, seed=seed
        )
        for index in range(1_000):
            clock.now = index / 10
            answer = provider.admit(str(index), 10, 10)
            if isinstance(answer, Answer):
                provider.finish(answer, delivered=True)
        stats = provider.stats()
        assert stats["rate_limited"] == 0
        names = ("injected_429", "injected_500", "injected_timeout", "served")
        assert sum(stats[name] for name in names) == stats["received"] == 1_000
        return tuple(stats[name] for name in names)

    assert faults(1) == faults(1) != faults(2)
    assert all(count == pytest.approx(90, abs=35) for count in faults(1)[:3])


def test_concurrency_slots_come_back() -> None:
    provider, clock = core(concurrency=2)
    answers = [provider.admit("p", 1, 1) for _ in range(3)]
    assert [type(answer) for answer in answers] == [Answer, Answer, Refusal]
    assert isinstance(answers[0], Answer)
    clock.now = 1.0
    provider.finish(answers[0], delivered=False)
    assert isinstance(provider.admit("p", 1, 1), Answer)
    stats = provider.stats()
    assert (stats["abandoned"], stats["peak_in_flight"], stats["in_flight"]) == (1, 2, 2)


def test_latency_is_the_prompt_s_and_scales_with_speed() -> None:
    slow, _ = core(seed=3)
    fast, _ = core(seed=3, speed=10.0)
    for prompt in ("a", "b"):
        one, ten = slow.admit(prompt, 1000, 200), fast.admit(prompt, 1000, 200)
        assert isinstance(one, Answer)
        assert isinstance(ten, Answer)
        assert 0 < one.ttft < one.total == pytest.approx(4.45, rel=0.6)
        assert ten.total == pytest.approx(one.total / 10)


@pytest.mark.parametrize(
    ("name", "value"), [("rate_429", 1.5), ("concurrency", -1), ("speed", 0.0)]
)
def test_bad_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ProviderConfig.from_dict({name: value})


@asynccontextmanager
async def served(**settings: object) -> AsyncIterator[tuple[ProviderProcess, openai.AsyncOpenAI]]:
    async with ProviderProcess(ProviderConfig.from_dict(settings)) as process:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        async with openai.AsyncOpenAI(
            base_url=process.origin + "/v1", api_key="k", max_retries=0, http_client=http
        ) as client:
            yield process, client


def test_the_real_sdk_gets_the_trace_s_token_counts() -> None:
    async def main() -> None:
        async with served(speed=1000.0) as (process, client):
            whole = await client.chat.completions.create(
                model="m",
                messages=MESSAGES,
                max_tokens=44,
                metadata={"input_tokens": "374", "output_tokens": "44"},
            )
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (374, 44)
            assert len(whole.choices[0].message.content.split()) == 44
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=100, stream=True
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            assert len(text.split()) == 100
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert chunks[-1].usage.completion_tokens == 100
            stats = await process.stats()
            assert (stats["served"], stats["in_flight"]) == (2, 0)
            assert (stats["input_tokens"], stats["output_tokens"]) == (375, 144)

    asyncio.run(main())


def test_limits_over_http_headers_and_the_count() -> None:
    async def main() -> None:
        async with served(requests_per_minute=3, tokens_per_minute=10_000, speed=20.0) as (
            process,
            client,
        ):
            create = client.chat.completions.with_raw_response.create
            for left in (2, 1, 0):
                raw = await create(model="m", messages=MESSAGES, max_tokens=10)
                assert raw.headers["x-ratelimit-limit-requests"] == "3"
                assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
                assert 0 < parse_duration(raw.headers["x-ratelimit-reset-requests"]) <= 3.0
                assert raw.headers["x-ratelimit-limit-tokens"] == "10000"
            with pytest.raises(openai.RateLimitError) as refused:
                await create(model="m", messages=MESSAGES, max_tokens=10)
            headers = refused.value.response.headers
            assert refused.value.code == "rate_limit_exceeded"
            assert 1 <= int(headers["retry-after"]) <= 3
            pause = int(headers["retry-after-ms"]) / 1000
            assert 1.0 < pause <= 3.0
            with pytest.raises(openai.RateLimitError) as too_large:
                await create(model="m", messages=MESSAGES, max_tokens=10_000)
            assert too_large.value.code == "request_too_large"
            await asyncio.sleep(pause)
            await create(model="m", messages=MESSAGES, max_tokens=10)
            stats = await process.stats()
            assert (stats["received"], stats["served"]) == (6, 4)
            assert (stats["rate_limited"], stats["too_large"]) == (1, 1)

    asyncio.run(main())


def test_injected_errors_reach_the_sdk_as_what_they_are() -> None:
    async def main() -> None:
        for settings, expected in (
            ({"rate_429": 1.0}, openai.RateLimitError),
            ({"rate_500": 1.0}, openai.InternalServerError),
            ({"rate_timeout": 1.0}, openai.APITimeoutError),
        ):
            async with served(**settings) as (process, client):
                with pytest.raises(expected):
                    await client.chat.completions.create(model="m", messages=MESSAGES, timeout=0.3)
                stats = await process.stats()
                assert (stats["rate_limited"], stats["served"]) == (0, 0)
                (name,) = settings
                assert stats[name.replace("rate", "injected")] == 1

    asyncio.run(main())


def test_a_client_that_hangs_up_gives_its_slot_back() -> None:
    async def main() -> None:
        async with served(concurrency=1) as (process, client):
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(
                    model="m", messages=MESSAGES, max_tokens=2_000, timeout=0.3
                )
            deadline = time.monotonic() + 5
            while (stats := await process.stats())["in_flight"]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert stats["abandoned"] == 1
            answer = await client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=1
            )
            assert answer.choices[0].message.content

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"messages": [1]}', b'{"messages": [], "max_tokens": "x"}']
)
def test_a_malformed_request_is_a_400(body: bytes) -> None:
    async def main() -> None:
        async with served() as (process, _), httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{process.origin}/v1/chat/completions", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_request_error"
            assert (await process.stats())["received"] == 0

    asyncio.run(main())


def test_the_process_ends_with_its_owner() -> None:
    seen: list[int] = []

    async def main() -> None:
        async with ProviderProcess(ProviderConfig()) as process:
            seen.append(process.pid)
            raise RuntimeError("owner dies")

    with pytest.raises(RuntimeError, match="owner dies"):
        asyncio.run(main())
    assert not Path(f"/proc/{seen[0]}").exists()
