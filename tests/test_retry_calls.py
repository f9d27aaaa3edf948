"""Calls behind a `RetryPolicy`: what is called again, when, and what the caller sees."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import itertools
import pickle
import threading
import traceback
import types
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ferrogate import RateLimitExceeded, RetryBudget, RetryPolicy, retry
from ferrogate.guard import Guard
from ferrogate.testing import ManualClock, VirtualTimeLoop, seed


class Down(ConnectionError):
    """Upstream is not there."""


class Flaky:
    """Fails with these errors, one after the other; then it succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[Any, ...]] = []
        self.at: list[float] = []
        self.clock: ManualClock | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append((*args, kwargs))
        if self.clock is not None:
            self.at.append(round(self.clock.now(), 6))
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def later(self, *args: Any, **kwargs: Any) -> str:
        await asyncio.sleep(0)
        return self(*args, **kwargs)


def in_virtual_time(main: Callable[[ManualClock], Any]) -> Any:
    clock = ManualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        return runner.run(main(clock))


def test_a_call_is_made_again_with_the_same_arguments_after_growing_waits() -> None:
    async def main(clock: ManualClock) -> None:
        flaky = Flaky(Down(), Down(), Down())
        flaky.clock = clock
        policy = RetryPolicy(4, jitter="none", clock=clock)
        assert await policy.call(flaky.later, 1, b=2) == "done"
        assert flaky.calls == [(1, {"b": 2})] * 4
        assert flaky.at == [0, 0.5, 1.5, 3.5]
        stats = policy.get_stats()
        assert (stats["calls"], stats["retries"], stats["delayed_seconds"]) == (1, 3, 3.5)

    in_virtual_time(main)


def test_jitter_is_drawn_anew_and_can_be_repeated() -> None:
    async def main(clock: ManualClock) -> list[float]:
        seed(7)
        flaky = Flaky(*(Down() for _ in range(20)))
        flaky.clock = clock
        await RetryPolicy(21, factor=1, base=1, max_delay=1, clock=clock).call(flaky.later)
        return flaky.at

    first = in_virtual_time(main)
    waits = [b - a for a, b in itertools.pairwise(first)]
    assert len(set(waits)) == 20
    assert all(0 <= wait <= 1 for wait in waits)
    assert in_virtual_time(main) == first


def test_the_last_error_is_raised_itself_with_a_note(run: Callable[..., Any]) -> None:
    errors = [OSError("first"), OSError("second")]
    policy = RetryPolicy(2, base=0)

    async def main() -> None:
        with pytest.raises(OSError, match="second") as caught:
            await policy.call(Flaky(*errors).later)
        assert caught.value is errors[1]
        assert caught.value.__notes__ == ["ferrogate: gave up after 2 attempts (attempts)"]
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        # The user's frames, and nothing of ours.
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert frames == ["main", "later", "__call__"]

    run(main())
    assert policy.get_stats()["given_up"]["attempts"] == 1


def test_an_error_that_was_not_retried_has_no_note_and_one_raised_again_has_one() -> None:
    policy = RetryPolicy(2, base=0, on=OSError)
    with pytest.raises(ValueError, match="no") as lone:
        policy.call_sync(Flaky(ValueError("no")))
    assert not hasattr(lone.value, "__notes__")
    same = OSError("same")
    for _ in range(3):
        with pytest.raises(OSError, match="same"):
            policy.call_sync(Flaky(same, same))
    assert same.__notes__ == ["ferrogate: gave up after 2 attempts (attempts)"]


class Frozen(Down):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} is frozen")


def test_an_error_that_takes_no_note_goes_without() -> None:
    with pytest.raises(Frozen) as caught:
        RetryPolicy(2, base=0).call_sync(Flaky(Frozen(), Frozen()))
    assert not hasattr(caught.value, "__notes__")


def test_the_note_tells_the_time_where_it_is_known() -> None:
    async def main(clock: ManualClock) -> None:
        policy = RetryPolicy(3, jitter="none", total_timeout=60, clock=clock)
        with pytest.raises(Down) as caught:
            await policy.call(Flaky(Down(), Down(), Down()).later)
        assert caught.value.__notes__ == ["ferrogate: gave up after 3 attempts in 1.5 s (attempts)"]

    in_virtual_time(main)


def test_no_wait_ends_after_the_deadline() -> None:
    async def main(clock: ManualClock) -> None:
        flaky = Flaky(*(Down() for _ in range(9)))
        flaky.clock = clock
        policy = RetryPolicy(9, base=1, jitter="none", total_timeout=7, clock=clock)
        with pytest.raises(Down) as caught:
            await policy.call(flaky.later)
        assert flaky.at == [0, 1, 3]
        assert caught.value.__notes__ == ["ferrogate: gave up after 3 attempts in 3.0 s (deadline)"]
        # The guard's deadline is no other.
        guard = Guard("g", retry=RetryPolicy(9, base=1, jitter="none"), timeout=7, clock=clock)
        flaky = Flaky(*(Down() for _ in range(9)))
        with pytest.raises(Down):
            await guard.call(flaky.later)
        assert len(flaky.calls) == 3
        assert guard.get_stats()["retries"] == 2

    in_virtual_time(main)


class Refused(Exception):
    """As SDKs have it: the answer, with its headers."""

    def __init__(self, status: int, headers: object) -> None:
        self.status_code = status
        self.response = types.SimpleNamespace(status_code=status, headers=headers)


class Broken(Down):
    @property
    def response(self) -> object:
        raise LookupError("no response")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Refused(429, {"retry-after": "20"}), 20),
        (Refused(503, {"Retry-After": "20"}), 20),
        (Refused(429, [(b"retry-after-ms", b"1500")]), 1.5),
        (Refused(429, {"x-ratelimit-remaining-tokens": 0, "x-ratelimit-reset-tokens": "6s"}), 6),
        (Refused(429, {"retry-after": "soon"}), 0.5),
        (Refused(429, None), 0.5),
        (Refused(429, 7), 0.5),
        (RateLimitExceeded("ours", retry_after=9), None),
        (Broken(), 0.5),
        (Refused(429, {"retry-after": "61"}), None),
        (Refused(429, {"retry-after": "1e30"}), None),
    ],
)
def test_a_server_that_asks_for_patience_gets_it(error: Exception, seconds: float | None) -> None:
    async def main(clock: ManualClock) -> None:
        flaky = Flaky(error)
        flaky.clock = clock
        policy = RetryPolicy(2, jitter="none", clock=clock)
        if seconds is None:
            with pytest.raises(type(error)) as caught:
                await policy.call(flaky.later)
            assert caught.value is error
            assert flaky.at == [0]
        else:
            assert await policy.call(flaky.later) == "done"
            assert flaky.at == [0, seconds]

    in_virtual_time(main)


def test_what_the_error_says_itself_comes_first() -> None:
    async def main(clock: ManualClock) -> None:
        error = Refused(429, {"retry-after": "20"})
        error.retry_after = 2.5  # type: ignore[attr-defined]
        flaky = Flaky(error)
        flaky.clock = clock
        await RetryPolicy(2, jitter="none", on=Refused, clock=clock).call(flaky.later)
        assert flaky.at == [0, 2.5]

    in_virtual_time(main)


def test_plain_functions_wait_in_their_thread() -> None:
    clock = ManualClock()
    flaky = Flaky(Down(), Down())
    policy = RetryPolicy(3, base=10, jitter="none", clock=clock)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(policy.call_sync(flaky)))
    thread.start()
    while thread.is_alive():
        clock.advance(1)
        thread.join(0.001)
    assert answers == ["done"]
    assert len(flaky.calls) == 3


def test_a_budget_bounds_the_retries_of_all_its_policies(run: Callable[..., Any]) -> None:
    clock = ManualClock()
    budget = RetryBudget(0.2, min_per_second=1, window=5, clock=clock)
    policies = [RetryPolicy(5, base=0, budget=budget), RetryPolicy(3, base=0, budget=budget)]

    async def down() -> None:
        raise Down

    async def main() -> None:
        calls = [policies[i % 2].call(down) for i in range(100)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, Down) for error in ended)

    run(main())
    stats = budget.get_stats()
    assert (stats["calls"], stats["retries"]) == (100, 25)
    assert stats["refused"] == sum(p.get_stats()["given_up"]["budget"] for p in policies)


def test_three_layers_with_one_budget_are_not_45_calls() -> None:
    budget = RetryBudget(0.0, min_per_second=1, window=2, clock=ManualClock())
    upstream = Flaky(*(Down() for _ in range(100)))
    layers = [RetryPolicy(attempts, base=0, budget=budget) for attempts in (5, 3, 3)]
    with pytest.raises(Down):
        layers[0].call_sync(layers[1].call_sync, layers[2].call_sync, upstream)
    assert len(upstream.calls) == 3


@pytest.mark.parametrize("kind", ["call", "call_sync"])
def test_a_predicate_that_raises_is_heard(kind: str) -> None:
    def on(error: Exception) -> bool:
        raise LookupError("in the predicate")

    flaky, policy = Flaky(OSError("upstream")), RetryPolicy(base=0, on=on)

    def ask() -> str:
        if kind == "call_sync":
            return policy.call_sync(flaky)
        return asyncio.run(policy.call(flaky.later))

    with pytest.raises(LookupError, match="in the predicate") as caught:
        ask()
    assert isinstance(caught.value.__context__, OSError)


def test_a_class_may_have_terms_of_its_own() -> None:
    policy = RetryPolicy(2, base=0, on={TimeoutError: 4, ValueError: False})
    for error, calls in ((TimeoutError, 4), (Down, 2), (ValueError, 1), (TypeError, 1)):
        flaky = Flaky(*(error() for _ in range(9)))
        with pytest.raises(error):
            policy.call_sync(flaky)
        assert len(flaky.calls) == calls, error


def test_what_a_classifier_calls_a_failure_is_retried_and_returned_at_last() -> None:
    answers = iter(["busy", "busy", "fine"])

    def classify(result: object, error: Exception | None) -> str | None:
        return "throttled" if result == "busy" else None

    guard = Guard("g", retry=RetryPolicy(3, base=0), classify=classify)
    assert guard.call_sync(lambda: next(answers)) == "fine"
    assert guard.call_sync(lambda: "busy") == "busy"
    assert guard.get_stats()["retries"] == 4


def test_each_attempt_has_a_permit_of_its_own_and_waits_without_one() -> None:
    async def main(clock: ManualClock) -> None:
        guard = Guard(
            "g", bulkhead=1, retry=RetryPolicy(3, base=5, jitter="none", clock=clock), clock=clock
        )
        first = asyncio.ensure_future(guard.call(Flaky(Down(), Down()).later))
        await asyncio.sleep(1)
        # The first one pauses: its place is free.
        assert await asyncio.wait_for(guard.call(Flaky().later), 1) == "done"
        assert await first == "done"
        assert clock.now() == 15

    in_virtual_time(main)


@pytest.mark.parametrize("moment", range(4))
def test_a_cancelled_call_is_not_made_again(moment: int) -> None:
    """Cancelled before it begins, in the call, in the pause, and in the call again."""

    async def main(clock: ManualClock) -> None:
        started: list[float] = []

        async def slow() -> None:
            started.append(clock.now())
            await asyncio.sleep(10)
            raise Down

        policy = RetryPolicy(3, base=10, jitter="none", clock=clock)
        task = asyncio.ensure_future(policy.call(slow))
        if moment:
            await asyncio.sleep(10 * moment - 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert not hasattr(caught.value, "__notes__")
        await asyncio.sleep(100)
        assert len(started) == (moment + 1) // 2

    in_virtual_time(main)


variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def test_attempts_run_in_the_task_and_the_context_of_the_caller(run: Callable[..., Any]) -> None:
    seen: list[object] = []

    async def attempt() -> None:
        seen.append(asyncio.current_task())
        variable.set(variable.get() + 1)
        if variable.get() < 3:
            raise Down

    async def main() -> None:
        await RetryPolicy(base=0).call(attempt)
        assert set(seen) == {asyncio.current_task()}
        assert variable.get() == 3

    run(main())


@retry(attempts=2, base=0)
async def decorated(x: int, *, fail: list[Exception]) -> int:
    """A docstring."""
    if fail:
        raise fail.pop()
    return x


@retry()
def plain(x: int) -> int:
    return x


def test_a_decorated_function_is_the_function_that_it_is(run: Callable[..., Any]) -> None:
    assert inspect.iscoroutinefunction(decorated)
    assert not inspect.iscoroutinefunction(plain)
    assert (decorated.__name__, decorated.__doc__) == ("decorated", "A docstring.")
    assert list(inspect.signature(decorated).parameters) == ["x", "fail"]
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    policy: Any = decorated.guard  # type: ignore[attr-defined]
    assert (policy.attempts, plain(3)) == (2, 3)

    before = policy.get_stats()["retries"]

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(decorated(5, fail=[Down()]))
        assert task.result() == 5
        assert await asyncio.gather(*(decorated(i, fail=[]) for i in range(3))) == [0, 1, 2]

    run(main())
    assert policy.get_stats()["retries"] == before + 1

    class Agent:
        @retry(attempts=2, base=0)
        def ask(self, errors: list[Exception]) -> Agent:
            if errors:
                raise errors.pop()
            return self

    agent = Agent()
    assert agent.ask([Down()]) is agent


def test_a_stream_is_begun_again_only_before_its_first_item(run: Callable[..., Any]) -> None:
    calls = 0

    @retry(attempts=3, base=0)
    async def stream(fail_at: int, times: int) -> AsyncIterator[int]:
        nonlocal calls
        calls += 1
        for i in range(3):
            if i == fail_at and calls <= times:
                raise Down
            yield i

    async def main(fail_at: int, times: int) -> tuple[list[int], bool]:
        seen: list[int] = []
        try:
            async for item in stream(fail_at, times):
                seen.append(item)  # noqa: PERF401 what was seen counts if it fails
        except Down:
            return seen, False
        return seen, True

    for fail_at, times, expected, ends, begun in (
        (0, 2, [0, 1, 2], True, 3),
        (0, 3, [], False, 3),
        (1, 1, [0], False, 1),
        (2, 1, [0, 1], False, 1),
    ):
        calls = 0
        assert run(main(fail_at, times)) == (expected, ends)
        assert calls == begun


def test_what_cannot_be_decorated_is_refused() -> None:
    with pytest.raises(TypeError, match="retry: expected a function"):
        retry(3)("ask")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"write @retry\(\) with parentheses"):
        retry(print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put @classmethod above @retry"):

        class Wrong:
            @retry()
            @classmethod
            def method(cls) -> None: ...

    with pytest.raises(TypeError, match="expected a plain function"):
        RetryPolicy().call_sync(Flaky().later)


def test_a_policy_that_is_off_calls_once_and_counts() -> None:
    policy = RetryPolicy(enabled=False)
    flaky = Flaky(Down())
    with pytest.raises(Down):
        policy.call_sync(flaky)
    assert len(flaky.calls) == 1
    assert policy.get_stats()["given_up"]["not_retried"] == 1


def test_errors_of_attempts_and_their_frames_are_let_go() -> None:
    class Big:
        pass

    alive: list[weakref.ref[Big]] = []

    def attempt() -> str:
        big = Big()
        alive.append(weakref.ref(big))
        if len(alive) < 3:
            raise Down
        return "done"

    assert RetryPolicy(base=0).call_sync(attempt) == "done"
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
