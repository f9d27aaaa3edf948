"""A guard without parts does what the call alone would do, step by step.

Scripts of `send`, `throw` and `close` run on a guarded coroutine (or async generator) and on the
bare one; whatever comes out must be the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import traceback
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
from child import is_collected
from hypothesis import given
from hypothesis import strategies as st

from ferrogate import CircuitBreaker, Guard, RetryPolicy

OWNERS = [
    pytest.param(Guard("nothing"), id="guard"),
    pytest.param(CircuitBreaker("never", classify=lambda *_: "neutral"), id="breaker"),
    pytest.param(RetryPolicy(attempts=1), id="retry"),
]


class Point:
    """Suspends once with a value, and gives what it is sent."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __await__(self) -> Generator[object, Any, Any]:
        return (yield self.value)


class Upstream(Exception):
    pass


# What a body does one after the other.
ACTIONS = st.lists(
    st.sampled_from(["await", "await", "swallow", "translate", "await in finally", "raise"]),
    max_size=5,
)
# What is done to it.
STEPS = st.lists(st.sampled_from(["send", "send", "throw", "cancel", "close"]), max_size=8)


async def body(actions: list[str]) -> str:
    got = []
    for number, action in enumerate(actions):
        if action == "await":
            got.append(await Point(number))
        elif action == "swallow":
            try:
                got.append(await Point(number))
            except (Upstream, asyncio.CancelledError) as error:
                got.append(type(error).__name__)
        elif action == "translate":
            try:
                got.append(await Point(number))
            except Upstream as error:
                raise KeyError(number) from error
        elif action == "await in finally":
            try:
                got.append(await Point(number))
            finally:
                got.append(await Point(-number))
        else:
            raise Upstream(number)
    return repr(got)


async def stream(actions: list[str]) -> AsyncGenerator[object, Any]:
    got = []
    for number, action in enumerate(actions):
        if action == "swallow":
            try:
                got.append((yield number))
            except (Upstream, asyncio.CancelledError) as error:
                got.append(type(error).__name__)
        elif action == "translate":
            try:
                await Point(number)
                got.append((yield number))
            except Upstream as error:
                raise KeyError(number) from error
        elif action == "await in finally":
            try:
                got.append((yield number))
            finally:
                await Point(-number)
        elif action == "raise":
            raise Upstream(number)
        else:
            got.append(await Point(number))
            yield tuple(got)


def outcome_of(call: Any, *arguments: Any) -> tuple[str, str]:
    try:
        return "yielded", repr(call(*arguments))
    except StopIteration as stop:
        return "returned", repr(stop.value)
    except BaseException as error:
        cause = type(error.__cause__).__name__
        return "raised", f"{type(error).__name__} {error.args} {cause}"


def told(coroutine: Any, steps: list[str]) -> list[tuple[str, str]]:
    """What comes of each step; ends with a close, so that nothing is left to the collector."""
    seen = []
    for number, step in enumerate(["first", *steps, "close"]):
        if step == "first":
            seen.append(outcome_of(coroutine.send, None))
        elif step == "send":
            seen.append(outcome_of(coroutine.send, number))
        elif step == "throw":
            seen.append(outcome_of(coroutine.throw, Upstream("thrown")))
        elif step == "cancel":
            seen.append(outcome_of(coroutine.throw, asyncio.CancelledError()))
        else:
            seen.append(outcome_of(coroutine.close))
    return seen


@pytest.mark.parametrize("owner", OWNERS)
@given(actions=ACTIONS, steps=STEPS)
def test_a_coroutine(owner: Any, actions: list[str], steps: list[str]) -> None:
    guarded = owner(body)
    assert told(guarded(actions), steps) == told(body(actions), steps)
    assert told(owner.call(body, actions), steps) == told(body(actions), steps)


@pytest.mark.parametrize("owner", OWNERS)
@given(actions=ACTIONS, steps=STEPS)
def test_one_that_is_awaited_by_another(owner: Any, actions: list[str], steps: list[str]) -> None:
    async def outer(inner: Any) -> Any:
        return await inner

    guarded = owner(body)
    assert told(outer(guarded(actions)), steps) == told(outer(body(actions)), steps)


async def read(items: AsyncGenerator[object, Any], asks: list[str]) -> list[tuple[str, str]]:
    seen = []
    for number, ask in enumerate([*asks, "aclose", "anext"]):
        try:
            if ask == "anext":
                seen.append(("item", repr(await anext(items))))
            elif ask == "asend":
                # A generator that has not begun takes nothing but None.
                seen.append(("item", repr(await items.asend(number if seen else None))))
            elif ask == "athrow":
                seen.append(("item", repr(await items.athrow(Upstream("thrown")))))
            else:
                seen.append(("closed", repr(await items.aclose())))
        except (Exception, StopAsyncIteration) as error:
            seen.append(("raised", f"{type(error).__name__} {error.args}"))
    return seen


ASKS = st.lists(st.sampled_from(["anext", "anext", "asend", "athrow", "aclose"]), max_size=6)


@pytest.mark.parametrize("owner", OWNERS)
@given(actions=ACTIONS, asks=ASKS, steps=STEPS)
def test_a_stream(owner: Any, actions: list[str], asks: list[str], steps: list[str]) -> None:
    """Read by a coroutine that is cancelled, thrown into and closed itself."""
    guarded = owner(stream)
    assert told(read(guarded(actions), asks), steps) == told(read(stream(actions), asks), steps)


@pytest.mark.parametrize("owner", OWNERS)
def test_tools_take_it_for_the_function(owner: Any) -> None:
    guarded, items = owner(body), owner(stream)
    assert inspect.iscoroutinefunction(guarded)
    assert inspect.isasyncgenfunction(items)
    assert inspect.signature(guarded) == inspect.signature(body)
    assert (guarded.__name__, guarded.__doc__) == (body.__name__, body.__doc__)
    assert guarded.__wrapped__ is body
    call = guarded([])
    assert asyncio.iscoroutine(call)
    assert call.__qualname__ == body.__qualname__
    call.close()


class Agent:
    def __init__(self) -> None:
        self.name = "agent"

    @Guard("methods")
    async def ask(self, prompt: str) -> str:
        return f"{self.name}: {prompt}"

    @Guard("methods")
    def say(self, prompt: str) -> str:
        return f"{self.name}! {prompt}"


def test_methods_are_bound() -> None:
    agent = Agent()
    assert asyncio.run(agent.ask("hello")) == "agent: hello"
    assert asyncio.run(Agent.ask(agent, prompt="hello")) == "agent: hello"
    assert agent.say("hello") == "agent! hello"
    assert inspect.iscoroutinefunction(agent.ask)


@pytest.mark.parametrize("owner", OWNERS)
def test_a_traceback_shows_the_users_frames_only(owner: Any) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise Upstream

    async def main() -> list[str]:
        try:
            await owner(fails)()
        except Upstream as error:
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError("nothing was raised")

    assert asyncio.run(main()) == ["main", "fails"]


def test_context_variables_are_the_callers() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    @Guard("context")
    async def sets() -> str:
        seen = variable.get()
        await asyncio.sleep(0)
        variable.set("by the call")
        return seen

    async def main() -> tuple[str, str]:
        variable.set("by the caller")
        return await sets(), variable.get()

    assert asyncio.run(main()) == ("by the caller", "by the call")


def test_nothing_is_kept_once_it_has_ended() -> None:
    class Thing:
        pass

    import weakref

    def run() -> list[Any]:
        thing, result = Thing(), Thing()

        @Guard("memory")
        async def passes(_: Thing) -> Thing:
            await asyncio.sleep(0)
            return result

        async def main() -> None:
            await passes(thing)

        asyncio.run(main())
        return [weakref.ref(thing), weakref.ref(result), weakref.ref(passes)]

    assert is_collected(*run())


def test_a_cycle_through_a_suspended_call_is_collected() -> None:
    import weakref

    class Thing:
        call: Any = None

    def run() -> Any:
        thing = Thing()

        async def waits(_: Thing) -> None:
            await Point(1)

        thing.call = Guard("cycle")(waits)(thing)
        thing.call.send(None)
        return weakref.ref(thing)

    assert is_collected(run())


def test_running_twice_at_once_is_refused() -> None:
    calls: list[Any] = []

    async def awaits_itself() -> None:
        await calls[0]

    calls.append(Guard("recursive")(awaits_itself)())
    with pytest.raises((ValueError, RuntimeError), match="already"):
        calls[0].send(None)
    with pytest.raises(RuntimeError, match="already awaited"):
        calls[0].send(None)


def state_of(call: Any) -> str | None:
    """CPython 3.11 only looks for a frame, which a call of ours has none of."""
    return inspect.getcoroutinestate(call) if sys.version_info >= (3, 12) else None


def test_it_says_where_it_stands() -> None:
    call = Guard("state")(body)(["await"])
    assert (call.cr_suspended, call.cr_running) == (False, False)
    call.send(None)
    assert state_of(call) in (inspect.CORO_SUSPENDED, None)
    assert (call.cr_suspended, call.cr_running) == (True, False)
    call.close()
    assert state_of(call) in (inspect.CORO_CLOSED, None)
    assert (call.cr_suspended, call.cr_running) == (False, False)
