"""Recordings of a guard's attempts, and what other thresholds would have made of them."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
from guarding import on_virtual_time

from ferrogate import (
    AttemptRecord,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Guard,
    GuardTimeout,
    LLMLimiter,
    Outcome,
    RateLimiter,
    RateLimitExceeded,
    Recording,
    RetryBudget,
    RetryPolicy,
)
from ferrogate.testing import ManualClock


class Throttled(Exception):
    status_code = 429


def test_every_attempt_is_written_down_once() -> None:
    async def main(clock: ManualClock) -> None:
        recording = Recording()
        retry = RetryPolicy(attempts=3, base=4, jitter="none", clock=clock)
        slots = RateLimiter(burst=1, clock=clock)
        guard = Guard(
            "r", retry=retry, bulkhead=slots, recording=recording, timeout=60, clock=clock
        )
        ends = iter([ConnectionError("reset"), Throttled(), None])

        async def ask() -> str:
            await asyncio.sleep(2)
            if error := next(ends):
                raise error
            return "answer"

        async with slots:
            call = asyncio.create_task(guard.call(ask))
            await asyncio.sleep(5)
        assert await call == "answer"
        assert list(recording) == [
            AttemptRecord(1, 1, 5, 5, 2, "failure"),
            AttemptRecord(1, 2, 11, 0, 2, "throttled"),
            AttemptRecord(1, 3, 21, 0, 2, "success"),
        ]

        # Cancelled while it ran, cancelled while it stood in line, refused, too late.
        recording.clear()
        ends = iter([None] * 9)
        running = asyncio.create_task(guard.call(ask))
        waiting = asyncio.create_task(guard.call(ask))
        await asyncio.sleep(1)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert [(r.call, r.took, r.outcome) for r in recording] == [(2, 1, "neutral")]
        async with slots:
            with pytest.raises(RateLimitExceeded):
                await guard.call(ask)
        assert list(recording)[-1] == AttemptRecord(4, 1, clock.now(), 60, 0, "refused")

    on_virtual_time(main)


def test_streams_plain_functions_and_tokens() -> None:
    async def main(clock: ManualClock) -> None:
        recording = Recording()
        limiter = LLMLimiter(input_tokens_per_minute=1000, usd_per_minute=5, clock=clock)
        guard = Guard(
            "tokens",
            limiter=limiter,
            estimate=lambda *_: {"input_tokens": 100, "output_tokens": 50, "cost_usd": 0.5},
            price=lambda _: 0.25,
            recording=recording,
            clock=clock,
        )

        @guard
        async def ask() -> dict[str, Any]:
            return {"usage": {"input_tokens": 90, "output_tokens": 7}}

        @guard
        async def stream() -> Any:
            await asyncio.sleep(1)
            yield {"text": "a"}
            await asyncio.sleep(1)
            yield {"usage": {"input_tokens": 80, "output_tokens": 8}}

        @guard
        def plain() -> None:
            raise ConnectionError

        await ask()
        assert len([item async for item in stream()]) == 2
        with pytest.raises(ConnectionError):
            plain()
        assert [record[4:] for record in recording] == [
            (0, "success", 90, 7, 0.25),
            (2, "success", 80, 8, 0.25),
            (0, "failure", 100, 0, 0.0),
        ]
        # What comes without tokens has none.
        assert AttemptRecord(1, 1, 0, 0, 1, "success").cost_usd == 0

    on_virtual_time(main)


def test_a_recording_is_bounded_and_survives_a_file(tmp_path: Path) -> None:
    recording = Recording(3)
    guard = Guard("r", recording=recording)
    for number in range(5):
        guard.call_sync(int, number)
    assert (len(recording), recording.dropped, recording.max_records) == (3, 2, 3)
    assert [record.call for record in recording] == [3, 4, 5]
    assert repr(recording) == "<Recording of 3 attempts, 2 dropped>"
    path = tmp_path / "calls.jsonl"
    recording.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["calls.jsonl"]
    assert list(Recording.load(path)) == list(recording)
    text = path.read_text()
    for number, damaged in (
        (3, "[1, 2]"),
        (2, "{}"),
        (4, '[1,1,0,0,0,"lost",0,0,0]'),
        (3, '[1,1,NaN,0,0,"success",0,0,0]'),
        (3, '[1,1,0,1e308,0,"success",0,0,0]'),
        (4, '[1,1,0,0,-1,"success",0,0,0]'),
        (4, '[1,1,0,0,0,"success",0,0,NaN]'),
        (4, "[1,1,0,"),
    ):
        lines = text.splitlines()
        lines[number - 1] = damaged
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=f"calls.jsonl: line {number} is no record"):
            Recording.load(path)
    for other in ("", "{}", "\x00" * 9):
        path.write_text(other)
        with pytest.raises(ValueError, match="not a recording"):
            Recording.load(path)
    with pytest.raises(OSError, match="calls"):
        recording.save(tmp_path / "none" / "calls")
    recording.clear()
    assert (len(recording), recording.dropped) == (0, 0)
    for wrong in (0, -1, True, "9", 2**70):
        with pytest.raises((TypeError, ValueError), match="max_records"):
            Recording(wrong)  # type: ignore[arg-type]


def test_a_recording_does_not_keep_its_guard() -> None:
    class Tracked(Guard):
        pass

    recording = Recording()
    guard = Tracked("r", recording=recording)
    guard.call_sync(int)
    cycle = weakref.ref(guard)
    recording.guard = guard  # type: ignore[attr-defined]
    del guard, recording
    gc.collect()
    assert cycle() is None


def outage(clock: ManualClock, guard: Guard) -> Any:
    """A call each second for 100 s; from 20 s to 50 s all fail, after 3 s each."""

    async def ask() -> str:
        down = 20 <= clock.now() < 50
        await asyncio.sleep(3 if down else 1)
        if down:
            raise ConnectionError
        return "answer"

    async def all_of_them() -> int:
        tasks = []
        for _ in range(100):
            tasks.append(asyncio.create_task(guard.call(ask)))
            await asyncio.sleep(1)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        return sum(end == "answer" for end in ends)

    return all_of_them()


def recorded(**parts: Any) -> tuple[Recording, int]:
    async def main(clock: ManualClock) -> tuple[Recording, int]:
        recording = Recording()
        guard = Guard("r", recording=recording, clock=clock, **parts)
        return recording, await outage(clock, guard)

    return on_virtual_time(main)


def test_without_changes_it_comes_to_what_was_recorded() -> None:
    recording, answered = recorded()
    run = Guard("same").dry_run(recording)
    assert run.recorded == run.replayed
    assert (run.recorded.calls, run.recorded.answered, answered) == (100, 70, 70)
    assert (run.replayed.failed, run.replayed.failures, run.assumed) == (30, 30, 0)
    assert run.replayed.seconds == pytest.approx(70 + 90)
    assert (run.latency_p50_seconds, run.latency_p99_seconds) == (1, 3)
    assert (run.times_opened, run.open_seconds) == (0, 0)


def test_a_breaker_is_replayed_as_it_would_have_run() -> None:
    """Against the same guard with that breaker, live."""
    config = CircuitBreakerConfig(window=10, timeout_seconds=5, success_threshold=2)

    async def live(clock: ManualClock) -> tuple[Recording, CircuitBreaker]:
        breaker, recording = CircuitBreaker("live", config, clock=clock), Recording()
        await outage(clock, Guard("live", breaker=breaker, recording=recording, clock=clock))
        return recording, breaker

    recording, _ = recorded()
    run = Guard("plain").dry_run(recording, breaker=CircuitBreaker("dry", config))
    expected, breaker = on_virtual_time(live)
    outcomes = [record.outcome for record in expected]
    assert run.replayed.refused == outcomes.count("refused") > 15
    assert run.replayed.failures == outcomes.count("failure") < 15
    assert run.times_opened == breaker.get_stats()["times_opened"] > 2
    assert 20 < run.open_seconds < 50
    # And the other way round: what was refused is taken to end as what came next to it.
    back = Guard("dry", breaker=CircuitBreaker("dry", config)).dry_run(expected, breaker=None)
    assert back.replayed.refused == back.times_opened == 0
    assert back.assumed == run.replayed.refused
    assert back.replayed.failures == pytest.approx(30, abs=4)
    shown = str(run)
    for text in ("recorded  replayed", "refused", "opened", "assumed attempts: 0"):
        assert text in shown


def test_limits_retries_and_time_limits() -> None:
    recording, _ = recorded()
    guard = Guard("l", fallback=lambda _: None)
    run = guard.dry_run(recording, limiter=RateLimiter("30/minute"))
    assert run.replayed.answered == 70
    assert run.replayed.longest_wait_seconds > 60
    assert run.replayed.attempts == 100
    assert run.fallbacks == 30
    run = guard.dry_run(recording, limiter=RateLimiter("30/minute"), timeout=10)
    assert run.replayed.refused > 10
    assert run.replayed.longest_wait_seconds <= 10
    run = guard.dry_run(recording, attempt_timeout=2)
    assert (run.timed_out, run.replayed.failed) == (30, 30)
    assert run.replayed.seconds == pytest.approx(70 + 60)
    budget = RetryBudget(0.05, min_per_second=0, max_saved=1)
    for policy, attempts in (
        (RetryPolicy(attempts=3, base=1, jitter="none"), 160),
        (RetryPolicy(attempts=3, base=1, jitter="none", budget=budget), 105),
    ):
        run = guard.dry_run(recording, retry=policy)
        assert run.replayed.attempts == pytest.approx(attempts, abs=12)
        assert run.assumed == run.replayed.attempts - 100
        # Nothing of it happened to the policy itself.
        assert policy.get_stats()["calls"] == 0


def test_tokens_are_reserved_as_they_were() -> None:
    recording = Recording()
    limiter = LLMLimiter(input_tokens_per_minute=1_000_000)
    guard = Guard(
        "t",
        limiter=limiter,
        recording=recording,
        estimate=lambda n: {"input_tokens": n, "output_tokens": 0},
    )
    for tokens in (100, 200, 300):
        guard.call_sync(str, tokens)
    # More than there ever is, is refused at once.
    run = guard.dry_run(recording, limiter=LLMLimiter(input_tokens_per_minute=250))
    assert (run.replayed.answered, run.replayed.refused) == (1 + 1, 1)
    assert run.replayed.longest_wait_seconds == pytest.approx(60, abs=1)
    assert run.replayed.tokens == 300
    run = guard.dry_run(recording)
    assert (run.replayed.answered, run.replayed.tokens) == (3, 600)
    assert limiter.get_stats()["granted"] == 3


def test_what_users_wrote_is_not_asked_and_nothing_is_called() -> None:
    asked: list[object] = []

    def classify(result: object, error: object) -> None:
        asked.append((result, error))

    recording = Recording()
    retry = RetryPolicy(attempts=2, on=lambda error: bool(asked.append(error)), base=0)
    guard = Guard(
        "c",
        retry=retry,
        classify=classify,
        fallback=asked.append,
        recording=recording,
        breaker=CircuitBreaker("c", classify=classify),
    )
    guard.call_sync(int)
    with pytest.raises(ZeroDivisionError):
        Guard("d", recording=recording).call_sync(lambda: 1 / 0)
    before, count = len(recording), len(asked)
    run = guard.dry_run(recording)
    assert (run.replayed.failed, run.replayed.attempts) == (1, 3)
    assert (len(asked), len(recording)) == (count, before)
    assert guard.get_stats()["calls"] == 1


def test_random_stories_come_to_themselves() -> None:
    """A guard of everything, replayed on itself: the same to the last attempt."""

    def parts(clock: ManualClock | None) -> dict[str, Any]:
        return {
            "breaker": CircuitBreaker(
                "b", CircuitBreakerConfig(window=5, timeout_seconds=7), clock=clock
            ),
            "retry": RetryPolicy(attempts=3, base=1, jitter="none", clock=clock),
            "limiter": RateLimiter("50/minute", clock=clock),
            "bulkhead": RateLimiter(burst=4, clock=clock),
            "attempt_timeout": 8,
            "timeout": 30,
        }

    async def story(clock: ManualClock, seed: int) -> Recording:
        rng, recording = random.Random(seed), Recording()
        guard = Guard("story", recording=recording, clock=clock, **parts(clock))

        async def ask() -> None:
            # Not on whole seconds, where two things at once have no order.
            await asyncio.sleep(rng.uniform(0, 10))
            if rng.random() < 0.3:
                raise rng.choice([ConnectionError(), Throttled()])

        tasks = []
        for _ in range(200):
            tasks.append(asyncio.create_task(guard.call(ask)))
            await asyncio.sleep(rng.expovariate(1))
        await asyncio.gather(*tasks, return_exceptions=True)
        return recording

    for seed in range(5):
        recording = on_virtual_time(lambda clock, seed=seed: story(clock, seed))  # type: ignore[misc]
        run = Guard("again", **parts(None)).dry_run(recording)
        assert run.recorded.refused > 0
        for name, count in vars(run.recorded).items():
            assert getattr(run.replayed, name) == pytest.approx(count, abs=1e-5), (seed, name)
        assert run.assumed == 0


def test_wrong_arguments() -> None:
    guard, recording = Guard("w"), Recording()
    assert guard.dry_run(recording).replayed.calls == 0
    with pytest.raises(TypeError, match="timeouts"):
        guard.dry_run(recording, timeouts=5)
    with pytest.raises(TypeError, match="breaker: expected"):
        guard.dry_run(recording, breaker=CircuitBreakerConfig())
    for wrong in (None, 5, "night.jsonl", [1]):
        with pytest.raises(TypeError, match="recording: expected"):
            guard.dry_run(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hedge: takes no part"):
        guard.dry_run(recording, hedge=None)
    with pytest.raises(TypeError, match="recording: expected a ferrogate"):
        Guard("w", recording=[])  # type: ignore[arg-type]

    async def inside() -> None:
        with pytest.raises(RuntimeError, match="to_thread"):
            guard.dry_run(recording)
        assert (await asyncio.to_thread(guard.dry_run, recording)).replayed.calls == 0

    asyncio.run(inside())


def test_outcomes_that_are_recorded_are_those_of_the_classifier() -> None:
    recording = Recording()
    breaker = CircuitBreaker("o")
    guard = Guard("o", breaker=breaker, recording=recording, classify=lambda *_: Outcome.THROTTLED)
    guard.call_sync(int)
    breaker.force_open()
    with pytest.raises(CircuitBreakerOpenError):
        guard.call_sync(int)
    assert [record.outcome for record in recording] == ["throttled", "refused"]
    slow = Guard("o", timeout=1, clock=ManualClock(), recording=recording)
    with pytest.raises(GuardTimeout):
        slow.call_sync(lambda: slow_down(slow))


def slow_down(_: Guard) -> None:
    raise GuardTimeout("late", name="o", timed_out="attempt", limit=1)
