"""Targets under a storm, under a real SDK over real HTTP, and beside the guard's other parts."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import openai
import pytest
from guarding import on_virtual_time
from routing import Refused, Upstream, ask, ask_sync, breaker, guard_of, in_use, is_at_rest, tripped

from ferrogate import (
    Cache,
    CircuitBreaker,
    Guard,
    LLMLimiter,
    RateLimiter,
    Recording,
    RetryPolicy,
    Target,
    TargetsUnavailable,
)
from ferrogate.testing import ManualClock, ScriptedProvider


@pytest.fixture(autouse=True, params=["told of the clock", "by timers alone"])
def woken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's clock wakes all who wait, which the machine's does not: it has to go without."""
    if request.param == "by timers alone":
        monkeypatch.setattr(Guard, "_on_clock", lambda _: None)


@pytest.mark.parametrize("route", ["ordered", "weighted", "cheapest", "fastest"])
@pytest.mark.parametrize("seed", range(2))
def test_a_storm_keeps_every_limit_and_leaves_nothing(route: Any, seed: int) -> None:
    """300 calls that fail, hang, are throttled and cancelled, at targets of every kind."""
    dice = random.Random(f"{route} {seed}")

    async def main(clock: ManualClock) -> None:
        begun: dict[str, list[float]] = {}
        under_way: Counter[str] = Counter()
        made = 0

        async def upstream(prompt: str, *, target: Target[int]) -> str:
            nonlocal made
            made += 1
            begun.setdefault(target.name, []).append(clock.now())
            under_way[target.name] += 1
            assert under_way[target.name] <= target.value
            try:
                await asyncio.sleep(dice.choice([0, 0.1, 1, 5]))
                roll = dice.random()
                if roll < 0.1:
                    raise Refused(500)
                if roll < 0.15:
                    raise Refused(429, dice.choice([1.0, 4.0]))
                if roll < 0.2:
                    await asyncio.sleep(1_000)
                return target.name
            finally:
                under_way[target.name] -= 1

        requests = LLMLimiter("c", requests_per_minute=40, concurrency=4, clock=clock)
        windows = {"a": (RateLimiter("20/10s", burst=5, clock=clock), 20, 10), "c": (None, 40, 60)}
        targets = [
            Target("a", 5, limiter=windows["a"][0], breaker=breaker("a", clock, 3), price=1.0),
            Target("b", 3, bulkhead=3, breaker=breaker("b", clock, 5), weight=2, price=2.0),
            Target("c", 4, limiter=requests, breaker=breaker("c", clock, 2), price=(3.0, 3.0)),
        ]
        guard = guard_of(clock, *targets, route=route, attempt_timeout=6, timeout=600)
        calls = []
        for _ in range(300):
            calls.append(asyncio.ensure_future(guard.call(upstream, "x" * dice.randrange(50))))
            await asyncio.sleep(dice.choice([0, 0, 0.1]))
            if dice.random() < 0.15:
                dice.choice(calls).cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert is_at_rest(guard), in_use(guard)
        stats = guard.get_stats()
        rows = stats["targets"]
        assert sum(row["attempts"] for row in rows.values()) == made
        assert made == len(answers) + stats["retries"] - sum(
            isinstance(answer, asyncio.CancelledError) for answer in answers
        ) + sum(row["neutral"] for row in rows.values())
        answered = sum(answer in ("a", "b", "c") for answer in answers)
        assert answered == sum(row["successes"] for row in rows.values()) >= 200
        for name, (_, most, seconds) in windows.items():
            for at in begun[name]:
                assert sum(at <= other < at + seconds for other in begun[name]) <= most
        for name, row in rows.items():
            assert row["attempts"] == len(begun[name])

    on_virtual_time(main)


def test_two_deployments_under_a_real_sdk() -> None:
    """One answers 429 with a Retry-After, 500, and then hangs; the other takes over."""

    async def main(east: ScriptedProvider, west: ScriptedProvider) -> None:
        clients = [
            openai.AsyncOpenAI(
                base_url=provider.openai_url,
                api_key="test",
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
            )
            for provider in (east, west)
        ]
        guard = Guard(
            "chat",
            targets=[
                Target(
                    name,
                    client,
                    limiter=LLMLimiter(name, requests_per_minute=100, concurrency=5),
                    breaker=CircuitBreaker(name),
                )
                for name, client in zip(("east", "west"), clients, strict=True)
            ],
            retry=RetryPolicy(3),
            timeout=60,
            attempt_timeout=0.5,
        )

        @guard
        async def ask(*, messages: Any, target: Target[openai.AsyncOpenAI] = Target.chosen) -> Any:
            return await target.value.chat.completions.create(model="m", messages=messages)

        async def answer() -> Any:
            return (await ask(messages=[{"role": "user", "content": "hi"}])).choices[0].message

        east.script([500, east.timeout])
        west.script(["first", "second", "third"])
        assert (await answer()).content == "first"
        assert (await answer()).content == "second"
        east.script([429])
        assert (await answer()).content == "third"
        assert (east.count(), west.count()) == (3, 3)
        stats = guard.get_stats()
        assert (stats["retries"], stats["failures"], stats["throttled"]) == (3, 2, 1)
        used = guard.targets[1].limiter
        assert isinstance(used, LLMLimiter)
        assert used.get_stats()["dimensions"]["requests"]["used"] == 3
        for client in clients:
            await client.close()
        assert is_at_rest(guard)

    with ScriptedProvider() as east, ScriptedProvider() as west:
        asyncio.run(main(east, west))


def test_a_cache_stands_before_the_targets() -> None:
    async def main(clock: ManualClock) -> None:
        east, west = Upstream("east", script=[Refused(500)]), Upstream("west")
        targets = [Target("east", east), Target("west", west)]
        for fallback in (None, lambda error: "fallen"):
            guard = guard_of(clock, *targets, cache=Cache(10), fallback=fallback)

            @guard
            async def cached_ask(prompt: str, *, target: Target[Upstream] = Target.chosen) -> str:
                return await target.value.chat(prompt)

            east.script, east.calls, west.calls = [Refused(500)], [], []
            for _ in range(3):
                assert await cached_ask("hi") == "west"
            assert [len(east.calls), len(west.calls)] == [1, 1]
            assert is_at_rest(guard)

    on_virtual_time(main)


def test_what_a_guarded_call_calls_has_no_more_time_than_it() -> None:
    async def main(clock: ManualClock) -> None:
        inner = guard_of(clock, Target("a", Upstream("a"), breaker=tripped("a", clock, 10)))
        outer = Guard("outer", timeout=5, clock=clock)
        with pytest.raises(TargetsUnavailable):
            await outer.call(inner.call, ask)
        assert clock.now() == 0
        assert await inner.call(ask) == "a"
        assert clock.now() == pytest.approx(10, abs=1e-3)

    on_virtual_time(main)


def test_a_recording_has_every_attempt_and_is_not_replayed_on_targets() -> None:
    recording = Recording()
    east = Upstream("east", script=[Refused(500)])
    targets = [Target("east", east), Target("west", Upstream("west"))]
    guard = guard_of(None, *targets, recording=recording)
    assert guard.call_sync(ask_sync) == "west"
    assert [record.outcome for record in recording] == ["failure", "success"]
    with pytest.raises(ValueError, match="dry_run: expected a guard without targets"):
        guard.dry_run(recording)
