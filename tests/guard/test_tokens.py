"""A guard whose limiter counts tokens and dollars."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from guarding import on_virtual_time

from ferrogate import (
    CircuitBreaker,
    CircuitBreakerConfig,
    Guard,
    LLMLimiter,
    RateLimiter,
    RateLimitExceeded,
    RetryBudget,
    RetryPolicy,
)
from ferrogate.testing import ManualClock


class Usage:
    def __init__(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens


class Answer:
    def __init__(self, *tokens: int) -> None:
        self.usage = Usage(*tokens) if tokens else None


class Refused(Exception):
    def __init__(self, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(status_code)
        self.status_code = status_code
        if retry_after is not None:
            self.retry_after = retry_after


def limits(clock: ManualClock | None, **more: Any) -> LLMLimiter:
    return LLMLimiter(
        "model",
        requests_per_minute=100,
        input_tokens_per_minute=1_000,
        output_tokens_per_minute=1_000,
        clock=clock,
        **more,
    )


def used(limiter: LLMLimiter) -> dict[str, Any]:
    return {name: row["used"] for name, row in limiter.get_stats()["dimensions"].items()}


async def create(*, messages: list[dict[str, str]], max_tokens: int, answer: Any) -> Any:
    await asyncio.sleep(1)
    if isinstance(answer, BaseException):
        raise answer
    return answer


CALL = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 300}


def test_a_call_reserves_by_its_arguments_and_settles_by_its_result() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        guard = Guard("tokens", limiter=limiter, clock=clock)
        task = asyncio.ensure_future(guard.call(create, **CALL, answer=Answer(120, 30)))
        await asyncio.sleep(0.5)
        reserved = used(limiter)
        assert reserved["output_tokens"] == 300
        assert 100 <= reserved["input_tokens"] <= 110
        await task
        assert used(limiter) == {"requests": 1, "input_tokens": 120, "output_tokens": 30}
        assert limiter.get_stats()["open"] == 0

    on_virtual_time(main)


@pytest.mark.parametrize(
    ("answer", "requests", "tokens_out"),
    [
        (Answer(), 1, 300),  # It does not say: as reserved.
        (Refused(500), 1, 0),
        (Refused(429), 1, 0),
        (Refused(400), 1, 300),
        (asyncio.CancelledError(), 1, 300),
    ],
)
def test_how_it_ended_says_what_it_took(answer: Any, requests: int, tokens_out: int) -> None:
    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        guard = Guard("tokens", limiter=limiter, clock=clock)
        task = asyncio.ensure_future(guard.call(create, **CALL, answer=answer))
        await asyncio.gather(task, return_exceptions=True)
        assert used(limiter)["requests"] == requests
        assert used(limiter)["output_tokens"] == tokens_out
        assert limiter.get_stats()["open"] == 0

    on_virtual_time(main)


def test_what_was_never_sent_takes_nothing() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        slots = RateLimiter(burst=1, clock=clock)
        guard = Guard("tokens", limiter=limiter, bulkhead=slots, clock=clock)
        async with slots:
            task = asyncio.ensure_future(guard.call(create, **CALL, answer=Answer()))
            await asyncio.sleep(1)
            assert used(limiter)["requests"] == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not any(used(limiter).values())

    on_virtual_time(main)


def test_a_429_pauses_everybody_once() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        guard = Guard(
            "tokens",
            limiter=limiter,
            retry=RetryPolicy(attempts=2, base=0, clock=clock),
            clock=clock,
        )
        answers = [Refused(429, retry_after=20), Answer(1, 1)]

        async def twice(**_: Any) -> Any:
            return await create(**CALL, answer=answers.pop(0))

        first = asyncio.ensure_future(guard.call(twice, **CALL))
        await asyncio.sleep(2)
        other = asyncio.ensure_future(guard.call(create, **CALL, answer=Answer(1, 1)))
        await asyncio.gather(first, other)
        assert clock.now() == pytest.approx(22, abs=0.01)
        # Who cannot wait for so long is told at once.
        limiter.pause(100)
        with pytest.raises(RateLimitExceeded):
            await Guard("late", limiter=limiter, timeout=5, clock=clock).call(
                create, **CALL, answer=Answer()
            )
        assert clock.now() == pytest.approx(22, abs=0.01)

    on_virtual_time(main)


def test_a_stream_is_settled_by_its_last_word() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        guard = Guard("tokens", limiter=limiter, clock=clock)

        @guard
        async def chunks(**_: Any) -> AsyncIterator[Answer]:
            yield Answer()
            yield Answer()
            yield Answer(90, 7)

        async for _ in chunks(**CALL):
            assert used(limiter)["output_tokens"] == 300
        assert used(limiter) == {"requests": 1, "input_tokens": 90, "output_tokens": 7}
        async for _ in chunks(**CALL):
            break
        await asyncio.sleep(0)
        # Left half-way: as reserved, for nobody knows.
        assert used(limiter)["output_tokens"] == 307

    on_virtual_time(main)


def test_money() -> None:
    async def main(clock: ManualClock) -> None:
        limiter = LLMLimiter(usd_per_minute=1.0, clock=clock)
        config = CircuitBreakerConfig(max_wasted_usd_per_minute=0.5)
        breaker = CircuitBreaker("money", config, clock=clock)
        guard = Guard(
            "money",
            limiter=limiter,
            breaker=breaker,
            estimate=lambda **_: {"cost_usd": 0.3},
            usage=lambda _: {},
            price=lambda _: 0.01,
            clock=clock,
        )
        await guard.call(create, **CALL, answer=Answer())
        assert used(limiter) == {"usd": 0.01}
        for _ in range(2):
            with pytest.raises(Refused):
                await guard.call(create, **CALL, answer=Refused(500))
        assert breaker.get_stats()["wasted_usd"] == pytest.approx(0.6)
        assert breaker.is_open()

    on_virtual_time(main)


def test_callbacks_that_raise_do_no_harm() -> None:
    def raises(*_: Any, **__: Any) -> Any:
        raise LookupError("of the user's")

    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        with pytest.raises(LookupError):
            await Guard("estimate", limiter=limiter, estimate=raises).call(
                create, **CALL, answer=Answer()
            )
        assert not any(used(limiter).values())
        guard = Guard("usage", limiter=limiter, usage=raises, clock=clock)
        answer = Answer(1, 1)
        assert await guard.call(create, **CALL, answer=answer) is answer
        assert used(limiter)["output_tokens"] == 300
        assert limiter.get_stats()["open"] == 0

    unraisable: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.unraisablehook", unraisable.append)
        on_virtual_time(main)
    assert [told.exc_type for told in unraisable] == [LookupError]


def test_plain_functions_reserve_too() -> None:
    limiter = limits(None)
    guard = Guard("plain", limiter=limiter, estimate=len)

    @guard
    def ask(prompt: str) -> Any:
        return {"usage": {"input_tokens": 5, "output_tokens": 2}}

    ask("hello there")
    assert used(limiter) == {"requests": 1, "input_tokens": 5, "output_tokens": 2}


@pytest.mark.parametrize("argument", ["estimate", "usage", "price"])
def test_what_only_counts_tokens_needs_a_limiter_of_them(argument: str) -> None:
    given: Any = {argument: lambda *_: None}
    with pytest.raises(ValueError, match=f"{argument}: for limiter=LLMLimiter"):
        Guard("wrong", limiter=RateLimiter("1/second"), **given)
    given = {argument: 5}
    with pytest.raises(TypeError, match=f"{argument}: expected a callable"):
        Guard("wrong", limiter=limits(None), **given)


def test_the_providers_headers_are_learned_from() -> None:
    class Response:
        status_code = 200
        headers = {  # noqa: RUF012 -- as a response has them
            "x-ratelimit-limit-requests": "100",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "30s",
        }

    class WithHeaders(Refused):
        def __init__(self) -> None:
            super().__init__(429)
            self.response = Response()
            self.response.headers = {"retry-after-ms": "7000"}

    async def main(clock: ManualClock) -> None:
        limiter = limits(clock)
        guard = Guard("tokens", limiter=limiter, clock=clock)
        await guard.call(create, **CALL, answer=Response())
        assert limiter.eta(input_tokens=1) > 20
        await asyncio.sleep(60)
        with pytest.raises(WithHeaders):
            await guard.call(create, **CALL, answer=WithHeaders())
        assert limiter.eta(input_tokens=1) == pytest.approx(7, abs=0.01)

    on_virtual_time(main)


def test_retries_are_paid_from_a_budget_in_dollars() -> None:
    async def main(clock: ManualClock) -> None:
        budget = RetryBudget(1.0, usd_per_minute=0.5, clock=clock)
        guard = Guard(
            "paid",
            limiter=LLMLimiter(usd_per_minute=100.0, clock=clock),
            retry=RetryPolicy(attempts=10, base=0, budget=budget, clock=clock),
            estimate=lambda **_: {"cost_usd": 0.2},
            clock=clock,
        )
        with pytest.raises(Refused) as gave_up:
            await guard.call(create, **CALL, answer=Refused(500))
        assert guard.get_stats()["retries"] == 2
        assert gave_up.value.__notes__[0].endswith("(budget)")

    on_virtual_time(main)


def test_tokens_beside_their_kinds_are_not_both_together() -> None:
    """Anthropic's `tokens` headers name whichever kind is the tightest."""
    limiter = LLMLimiter(tokens_per_minute=100_000, clock=ManualClock())
    limiter.observe(
        {
            "anthropic-ratelimit-tokens-limit": "6000",
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-tokens-reset": "2999-01-01T00:00:00Z",
            "anthropic-ratelimit-output-tokens-limit": "6000",
            "anthropic-ratelimit-output-tokens-remaining": "6000",
        }
    )
    assert limiter.eta(input_tokens=10_000) == 0
