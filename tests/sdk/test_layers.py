"""Retries of many layers over one guarded transport, counted by the provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
httpx2 = pytest.importorskip("httpx2")
tenacity = pytest.importorskip("tenacity")

from ferrogate import Guard, RetryBudget, RetryPolicy  # noqa: E402
from ferrogate.integrations.httpx2 import GuardedTransport, SyncGuardedTransport  # noqa: E402
from ferrogate.testing import ManualClock, ProviderReply, ScriptedProvider  # noqa: E402


class RetryingHTTP(httpx2.AsyncBaseTransport):
    """The layer that people put under an SDK: three attempts, whatever the answer says."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def handle_async_request(self, request: Any) -> Any:
        for _ in range(2):
            try:
                response = await self.inner.handle_async_request(request)
            except httpx2.TransportError:
                continue
            if response.status_code != 429 and response.status_code < 500:
                return response
            await response.aclose()
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class RetryingHTTPSync(httpx2.BaseTransport):
    """The same for clients that block."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def handle_request(self, request: Any) -> Any:
        for _ in range(2):
            response = self.inner.handle_request(request)
            if response.status_code != 429 and response.status_code < 500:
                return response
            response.close()
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        yield provider


def client_of(sdk: str, provider: ScriptedProvider, transport: Any) -> Any:
    """The SDK's client, all its own settings left alone."""
    http = httpx2.AsyncClient(transport=transport)
    if sdk == "openai":
        return openai.AsyncOpenAI(base_url=provider.openai_url, api_key="k", http_client=http)
    return anthropic.AsyncAnthropic(base_url=provider.url, api_key="k", http_client=http)


def asking(sdk: str, client: Any, wait: Any = None) -> Callable[[str], Any]:
    """The application: it tries five times."""
    module = openai if sdk == "openai" else anthropic

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_none() if wait is None else wait,
        retry=tenacity.retry_if_exception_type(module.APIError),
        reraise=True,
    )
    async def ask(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        if sdk == "openai":
            answer = await client.chat.completions.create(model="m", messages=messages)
            return str(answer.choices[0].message.content)
        answer = await client.messages.create(model="m", max_tokens=20, messages=messages)
        return str(answer.content[0].text)

    return ask


def refuses(provider: ScriptedProvider, reply: object = 429, times: int = 10_000) -> None:
    provider.script([reply] * times)


async def eventually_async(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what happens is not in this loop's hands
        await asyncio.sleep(0.001)


def guarded(name: str, budget: RetryBudget | None = None, attempts: int = 3) -> Guard:
    """On a clock that stands still: no call is ever due again."""
    clock = ManualClock()
    budget = RetryBudget(clock=clock) if budget is None else budget
    policy = RetryPolicy(attempts=attempts, base=0, budget=budget, clock=clock)
    return Guard(name, retry=policy, clock=clock)


SDKS = pytest.mark.parametrize("sdk", ["openai", "anthropic"])


def test_without_a_guard_there_are_45_requests(provider: ScriptedProvider) -> None:
    # What the answer asks for keeps the SDK's own pauses short.
    refuses(provider, ProviderReply(status=429, headers={"retry-after-ms": "1"}))

    async def main() -> None:
        client = client_of("openai", provider, RetryingHTTP(httpx2.AsyncHTTPTransport()))
        async with client:
            with pytest.raises(openai.RateLimitError):
                await asking("openai", client)("hello")

    asyncio.run(main())
    assert provider.count() == 5 * 3 * 3


@SDKS
@pytest.mark.parametrize("status", [429, 503])
def test_with_one_there_are_the_attempts_of_its_policy(
    provider: ScriptedProvider, sdk: str, status: int
) -> None:
    refuses(provider, status)
    budget = RetryBudget()
    transport = GuardedTransport(guarded(sdk, budget))

    async def main() -> None:
        async with client_of(sdk, provider, RetryingHTTP(transport)) as client:
            module = openai if sdk == "openai" else anthropic
            with pytest.raises(module.APIStatusError) as caught:
                await asking(sdk, client)("hello")
            assert caught.value.status_code == status
            assert f"scripted {status}" in str(caught.value)

    asyncio.run(main())
    assert provider.count() == 3
    assert budget.get_stats()["calls"] == 1
    assert budget.get_stats()["retries"] == 2
    # HTTP's three attempts, for each of the application's five; the SDK makes none of its own.
    stats = transport.get_stats()
    assert (stats["requests"], stats["sent"], stats["answered_again"]) == (15, 3, 14)


def test_blocking_layers_come_to_the_same(provider: ScriptedProvider) -> None:
    refuses(provider)
    guard = guarded("openai")
    http = httpx2.Client(transport=RetryingHTTPSync(SyncGuardedTransport(guard)))

    @tenacity.retry(stop=tenacity.stop_after_attempt(5), reraise=True)
    def ask(prompt: str) -> None:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    client = openai.OpenAI(base_url=provider.openai_url, api_key="k", http_client=http)
    with client, pytest.raises(openai.RateLimitError):
        ask("hello")
    assert provider.count() == 3


@pytest.mark.parametrize("calls", [1, 10, 60])
def test_many_calls_share_one_budget(provider: ScriptedProvider, calls: int) -> None:
    refuses(provider)
    budget = RetryBudget(0.2, window=5, clock=ManualClock())  # 5 in reserve
    guard = guarded("openai", budget)

    async def main() -> None:
        async with client_of("openai", provider, RetryingHTTP(GuardedTransport(guard))) as client:
            ask = asking("openai", client)
            asked = [ask(f"question {number}") for number in range(calls)]
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, openai.RateLimitError)

    asyncio.run(main())
    spent = budget.get_stats()["retries"]
    assert provider.count() == calls + spent
    assert spent <= 5 + 0.2 * calls


def test_what_comes_later_is_paid_for_by_the_budget(provider: ScriptedProvider) -> None:
    refuses(provider)
    clock = ManualClock()
    budget = RetryBudget(0.0, min_per_second=0.001, window=4000, clock=clock)  # 4 in reserve
    policy = RetryPolicy(attempts=2, base=0, budget=budget, clock=clock)
    transport = GuardedTransport(Guard("openai", retry=policy, clock=clock))

    def pass_time(_state: object) -> float:
        clock.advance(20)
        return 0.0

    async def main() -> None:
        async with client_of("openai", provider, transport) as client:
            for _ in range(4):
                with pytest.raises(openai.RateLimitError):
                    await asking("openai", client, wait=pass_time)("hello")

    asyncio.run(main())
    # The call and one retry by the policy, then three by the application until nothing is left.
    assert provider.count() == 2 + 3
    assert transport.get_stats()["repeated"] == 3
    assert budget.get_stats()["calls"] == 1


def test_a_call_that_comes_again_may_succeed_and_is_new_from_then_on(
    provider: ScriptedProvider,
) -> None:
    provider.script([500, 500])
    clock = ManualClock()
    policy = RetryPolicy(attempts=2, base=0, clock=clock)
    transport = GuardedTransport(Guard("openai", retry=policy, clock=clock))

    def pass_time(_state: object) -> float:
        clock.advance(2.5)
        return 0.0

    async def main() -> None:
        async with client_of("openai", provider, transport) as client:
            ask = asking("openai", client, wait=pass_time)
            await ask("hello")
            assert provider.count() == 3
            provider.script([500])
            await ask("hello")
            assert provider.count() == 5

    asyncio.run(main())
    assert transport.get_stats()["repeated"] == 1


def test_a_pause_of_the_provider_holds_for_all_calls(provider: ScriptedProvider) -> None:
    """Those that were refused get their refusal again, all others wait; nobody asks."""
    provider.script([ProviderReply(status=429, headers={"retry-after": "30"})])
    clock = ManualClock()
    policy = RetryPolicy(attempts=3, base=0, max_retry_after=10, clock=clock)
    transport = GuardedTransport(Guard("openai", retry=policy, clock=clock))

    async def main() -> None:
        async with client_of("openai", provider, RetryingHTTP(transport)) as client:
            ask = asking("openai", client)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask("first")
            assert caught.value.response.headers["retry-after"] == "30"
            assert provider.count() == 1
            others = [asyncio.create_task(ask(f"other {number}")) for number in range(5)]
            await eventually_async(lambda: transport.get_stats()["waited_seconds"] == 5 * 30)
            clock.advance(29.9)
            await asyncio.sleep(0.01)
            assert provider.count() == 1
            clock.advance(0.2)
            await asyncio.gather(*others)
            assert provider.count() == 6

    asyncio.run(main())


def test_an_error_of_the_connection_has_no_header(provider: ScriptedProvider) -> None:
    """The SDK tries again, and nothing is sent."""
    refuses(provider, ScriptedProvider.disconnect)
    transport = GuardedTransport(guarded("openai", attempts=2))

    async def main() -> None:
        async with client_of("openai", provider, transport) as client:
            with pytest.raises(openai.APIConnectionError):
                await client.chat.completions.create(model="m", messages=[])

    asyncio.run(main())
    assert provider.count() == 2
    assert transport.get_stats()["answered_again"] == 2


def test_an_answer_that_never_comes_is_a_timeout_of_the_client(provider: ScriptedProvider) -> None:
    refuses(provider, ScriptedProvider.timeout)
    guard = Guard("openai", retry=RetryPolicy(attempts=2, base=0), attempt_timeout=0.1)
    transport = GuardedTransport(guard)

    async def main() -> None:
        async with client_of("openai", provider, transport) as client:
            asked = client.with_options(max_retries=0).chat.completions
            with pytest.raises(openai.APITimeoutError) as caught:
                await asked.create(model="m", messages=[])
            assert isinstance(caught.value.__cause__, httpx2.ReadTimeout)

    asyncio.run(main())
    assert transport.get_stats()["sent"] == 2
    assert provider.count() <= 2
