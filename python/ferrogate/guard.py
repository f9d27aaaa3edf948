"""The guard: limiter, bulkhead, time limits and fallback around a call, in one native await."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, TypeVar, cast

from ferrogate import _core, _llm_calls, _suites, _targets
from ferrogate._again import remembers
from ferrogate._arguments import flag
from ferrogate._cached import cached
from ferrogate._guarded import Function, guarded
from ferrogate.adaptive import AdaptiveConcurrency, concurrency_stats
from ferrogate.batch import Batch, BatchProgress
from ferrogate.breaker import CircuitBreaker
from ferrogate.cache import Cache
from ferrogate.dry_run import DryRun, dry_run
from ferrogate.hedge import Hedge
from ferrogate.limiter import RateLimiter, RateLimiterStats
from ferrogate.llm_limiter import LLMLimiter
from ferrogate.recording import AttemptRecord, Recording
from ferrogate.retry import RetryPolicy
from ferrogate.targets import Target, TargetStats, slots

if TYPE_CHECKING:
    from ferrogate.outcome import Outcome

__all__ = ["Guard", "GuardStats"]

_R = TypeVar("_R")
_Item = TypeVar("_Item")


class GuardStats(TypedDict):
    """What :meth:`Guard.get_stats` returns."""

    name: str
    calls: int
    """Calls begun."""
    successes: int
    """Attempts that succeeded."""
    failures: int
    throttled: int
    """Attempts that met HTTP 429."""
    neutral: int
    """Attempts that say nothing about the other side, as those that were cancelled."""
    retries: int
    """Attempts after the first of a call."""
    timeouts: int
    """Attempts and calls that took too long."""
    rejected: int
    """Calls that a part of the guard did not let through."""
    fallbacks: int
    """Calls that the fallback answered."""
    classify_errors: int
    """Times that ``classify=`` raised."""
    bulkhead: RateLimiterStats | None
    """Of the bulkhead, whose ``burst`` is how many attempts may run now."""
    targets: NotRequired[dict[str, TargetStats]]
    """By the names of its targets, if it has some."""


class Guard(_core.Guard):
    """Everything that a call to the outside should go through, in its one right order.

    ::

        guard = Guard(
            "openai",
            breaker=CircuitBreaker("openai"),
            retry=RetryPolicy(attempts=3),
            limiter=RateLimiter("60/minute"),
            timeout=60,
            attempt_timeout=20,
            fallback=lambda error: "try again later",
        )


        @guard
        async def ask(prompt: str) -> str: ...


        await guard.call(ask_another, "hello")

    The call runs in the caller's own task and context, at once where nothing has to be waited
    for. Whatever ends it, a cancellation too, what it held goes back.

    Args:
        name: for messages and statistics.
        cache: what decorated functions are looked up in first: a :class:`Cache`, or a decorator
            such as ``cached(ttl=3600, ignore=("client",))`` or that of a ``CacheService``'s view.
            A hit goes past everything else, and callers who want the same wait for one call.
            Only the fallback stands before it: what that answers is not kept.
            ``call`` and ``map`` do not know what makes two calls the same, and go past it.
        breaker: a :class:`CircuitBreaker`, asked once the permit is there, and before anybody
            waits for one. Its ``classify`` is asked if the guard has none or that says nothing.
        retry: a :class:`RetryPolicy`. What a part of the guard refused is not tried again.
        limiter: a :class:`RateLimiter`; each attempt takes a permit, and a slot if it has those.
            An :class:`LLMLimiter` has requests, tokens and dollars reserved for each attempt, and
            settled by what its result says. What failed is taken to have produced nothing, what
            was cancelled to have taken all that was reserved; HTTP 429 with a ``Retry-After``
            pauses the limiter for everybody.
        estimate: for an ``LLMLimiter``: called with the call's arguments, returns the tokens of
            its prompt, or a dict of the keywords of ``LLMLimiter.reserve``. By default it looks
            for prompts where the SDKs of OpenAI and Anthropic have them, four characters a token.
        usage: for an ``LLMLimiter``: called with the result (of a stream: the last item that has
            a ``usage``), returns a dict of the keywords of ``Reservation.settle``. By default the
            result's ``usage``, as those SDKs give it.
        price: for an ``LLMLimiter``: called with the same, returns its cost in USD.
        bulkhead: how many attempts may run at a time; an :class:`AdaptiveConcurrency`, which finds
            that by itself; or a :class:`RateLimiter` of slots only.
        targets: where the call can be made, each a :class:`Target` with limits of its own, in
            place of ``breaker``, ``limiter`` and ``bulkhead``. Every attempt is given one, as the
            function's keyword ``target``. One that its own breaker or limiter keeps closed is
            passed by, which costs no attempt; one that failed in this call comes last, so with
            ``retry`` the next attempt goes elsewhere at once. When none is free the call waits for
            the first to return.
        route: which of the targets that are free: ``"ordered"`` (the first, the default),
            ``"weighted"`` (by turns, as nginx spreads them), ``"cheapest"`` by their ``price``, or
            ``"fastest"``: the one with the least time to an answer lately; every 20th attempt goes
            to the one that had none for longest.
        hedge: a :class:`Hedge`: a second call beside one that takes long; with targets at another
            one, unless it has a function of its own (``to``), which is then called without one.
        timeout: seconds (or a timedelta) that all attempts, waits and pauses may take together.
            Guarded calls that its code makes have no more time than it.
        attempt_timeout: seconds that each attempt may take, counted from its first ``await``, not
            from its wait for a permit. A plain function cannot be interrupted: for those there is
            no ``attempt_timeout``, and ``timeout`` bounds their waits and pauses.
        fallback: called with the last error; what it returns (or what comes of awaiting that)
            is the answer. Not for cancellations.
        classify: called as ``classify(result, error)`` at each attempt's end, one of the two
            being ``None``; returns an :class:`Outcome`, or ``None`` for the usual one.
        recording: a :class:`Recording` that every attempt is written down in, for
            :meth:`dry_run`.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) only counts.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    targets: tuple[Target[Any], ...]
    """Its targets; none if it was made without."""

    _cached: Callable[[Any], Any] | None
    _has_fallback: bool

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        name: str,
        *,
        cache: Cache[Any, Any] | Callable[[Any], Any] | None = None,
        breaker: CircuitBreaker | None = None,
        retry: RetryPolicy | None = None,
        limiter: RateLimiter | LLMLimiter | None = None,
        estimate: Callable[..., Any] | None = None,
        usage: Callable[[Any], Any] | None = None,
        price: Callable[[Any], float | None] | None = None,
        bulkhead: int | AdaptiveConcurrency | RateLimiter | None = None,
        targets: Sequence[Target[Any]] | None = None,
        route: Literal["ordered", "weighted", "cheapest", "fastest"] | None = None,
        hedge: Hedge | None = None,
        timeout: float | timedelta | None = None,
        attempt_timeout: float | timedelta | None = None,
        fallback: Callable[[Exception], Any] | None = None,
        classify: Callable[[Any, Exception | None], Outcome | str | None] | None = None,
        recording: Recording | None = None,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> Guard:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        for argument, part, kind in (
            ("breaker", breaker, CircuitBreaker),
            ("retry", retry, RetryPolicy),
            ("hedge", hedge, Hedge),
            ("recording", recording, Recording),
        ):
            if part is not None and not isinstance(part, kind):
                got = type(part).__name__
                raise TypeError(f"{argument}: expected a ferrogate.{kind.__name__}, got {got}")
        if limiter is not None and not isinstance(limiter, RateLimiter | LLMLimiter):
            got = type(limiter).__name__
            raise TypeError(f"limiter: expected a RateLimiter or an LLMLimiter, got {got}")
        if route is not None and not isinstance(route, str):
            raise TypeError(f"route: expected a str, got {type(route).__name__}")
        if targets is None and route is not None:
            raise ValueError("route: for a guard with targets=[...] only")
        known = () if targets is None else _targets.checked(targets, route or "ordered")
        own: dict[str, object] = {"breaker": breaker, "limiter": limiter, "bulkhead": bulkhead}
        for argument, given in own.items():
            if known and given is not None:
                raise ValueError(
                    f"{argument}: expected none beside targets; give each Target one of its own, "
                    "or all of them the same"
                )
        for_tokens: dict[str, object] = {"estimate": estimate, "usage": usage, "price": price}
        priced = any(isinstance(one.price, tuple) for one in known)
        counting = any(isinstance(one.limiter, LLMLimiter) for one in known)
        for argument, function in for_tokens.items():
            needed = counting or isinstance(limiter, LLMLimiter)
            if function is not None and not (needed or (argument == "estimate" and priced)):
                raise ValueError(f"{argument}: for limiter=LLMLimiter(...) only")
        if isinstance(cache, Cache):
            cache = cached(cache=cache)
        callables: dict[str, object] = {**for_tokens, "fallback": fallback, "classify": classify}
        if cache is not None and (not callable(cache) or isinstance(cache, type)):
            raise TypeError(
                "cache: expected a ferrogate.Cache or a decorator such as cached(ttl=60), "
                f"got {cache!r}"
            )
        for argument, given in callables.items():
            if given is not None and not callable(given):
                got = type(given).__name__
                raise TypeError(f"{argument}: expected a callable or None, got {got}")
        if isinstance(limiter, RateLimiter) and concurrency_stats(limiter) is not None:
            raise ValueError("limiter: slots that find their own number belong in bulkhead=")
        self = super().__new__(
            cls,
            name,
            breaker=breaker,
            retry=retry,
            limiter=limiter,
            estimate=_llm_calls.estimate if estimate is None else estimate,
            usage=_llm_calls.usage if usage is None else usage,
            price=price,
            bulkhead=slots(name, bulkhead, clock),
            targets=[_targets.given(one) for one in known] if known else None,
            route=route or "ordered",
            hedge=hedge,
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            fallback=fallback,
            classify=classify,
            recording=recording,
            clock=clock,
            enabled=flag("enabled", enabled),
        )
        self._cached = cache
        self._has_fallback = fallback is not None
        self.targets = known
        subscribe = getattr(clock, "_on_advance", None)
        if known and subscribe is not None:
            subscribe(self._on_clock)
        return self

    def _on_clock(self) -> None:
        # A bound method of Python's, which the clock can hold weakly.
        self._clock_moved()

    def __call__(self, function: Function) -> Function:
        """Decorates ``def``, ``async def`` and async generators: every call goes through it.

        A stream is one call from its first item to its end, and is tried again only until its
        first item. ``attempt_timeout`` bounds the time to that, ``timeout`` the whole.
        """
        if self.targets and callable(function):
            _targets.check(function, defaulted=self._cached is not None)
        if self._cached is None:
            return guarded(function, self, "guard")
        looked_up = self._cached(guarded(function, self, "guard", "behind cache"))
        if not self._has_fallback:
            return cast("Function", looked_up)
        return cast("Function", guarded(looked_up, self, "guard", "before cache"))

    def map(
        self,
        function: Callable[[_Item], Awaitable[_R]],
        items: Iterable[_Item] | AsyncIterable[_Item],
        *,
        concurrency: int = 16,
        progress: bool | Callable[[BatchProgress], object] = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> Batch[_Item, _R]:
        """Calls ``function(item)`` for each of ``items`` through the guard.

        ::

            answers = await guard.map(ask, prompts, concurrency=50, progress=True, resume="a.jsonl")

            async for done in guard.map(ask, prompts):  # as they come
                print(done.item, done.value or done.error)

        Awaited it is the list of values in the order of the items; items that failed do not
        stop the others, and raise a :class:`BatchError` at the end. When the reader leaves or is
        cancelled, calls under way are cancelled.

        Args:
            function: a coroutine function (or a plain one) of one item; not guarded itself.
            items: taken as they are needed; may be asynchronous.
            concurrency: calls under way at one time.
            progress: ``True`` writes to standard error; or called with a :class:`BatchProgress`
                after each item.
            resume: a file that every value is appended to, as a line of JSON. A batch that is run
                again with it does not call for the items that have a value there. Items must have a
                ``cache_key``, and values must come back equal from JSON.

        Raises:
            ValueError, TypeError: a wrong argument, or a file that is not a batch's.
        """
        return Batch(
            self,
            function,
            items,
            concurrency=concurrency,
            progress=progress,
            resume=resume,
        )

    def dry_run(self, recording: Iterable[AttemptRecord], **changes: Any) -> DryRun:
        """What this guard, or one that differs in ``changes``, would have made of recorded calls.

        ::

            stricter = CircuitBreaker("stricter", CircuitBreakerConfig(window=10))
            print(guard.dry_run(recording, breaker=stricter, timeout=20))

        Its parts are made once more as they were made (what ``update``, ``disable`` and the like
        changed since is not in it), on a clock of their own, and every call comes when it came:
        breaker, retries, limiter, bulkhead and time limits do what they would, and nothing is
        called, nothing here changes. Attempts take as long and end as they were recorded; those
        that the recording does not have (of a call that was refused, or not tried again) as the
        nearest one in time. Left out are caches, hedges, classifiers, ``on=`` of a policy and
        shared stores; retries follow outcomes.

        Args:
            recording: a :class:`Recording`, or records of one.
            changes: arguments of :class:`Guard` that differ.

        Raises:
            TypeError, ValueError: a wrong argument of the guard, or one with ``targets``.
            RuntimeError: an event loop is running in this thread.
        """
        return dry_run(self, recording, changes)

    def get_stats(self) -> GuardStats:
        """Counts since construction."""
        slots = cast("RateLimiter | None", self._bulkhead)
        counts = dict(self._counts())
        bulkhead = None if slots is None else slots.get_stats()
        stats = cast(GuardStats, {"name": self.name, **counts, "bulkhead": bulkhead})
        if self.targets:
            rows = self._targets()
            total = sum(row[0] for row in rows)
            stats["targets"] = {
                target.name: {
                    "attempts": chosen,
                    "share": chosen / total if total else 0.0,
                    "under_way": under_way,
                    "successes": successes,
                    "failures": failures,
                    "throttled": throttled,
                    "neutral": neutral,
                    "latency": latency,
                    "state": None if target.breaker is None else target.breaker.state,
                }
                for target, (
                    chosen,
                    under_way,
                    successes,
                    failures,
                    throttled,
                    neutral,
                    latency,
                ) in zip(self.targets, rows, strict=True)
            }
        return stats

    def __repr__(self) -> str:
        stats = self.get_stats()
        told = [f"{stats['calls']} calls"]
        told += [
            f"{count} {what}"
            for what, count in stats.items()
            if what in ("failures", "throttled", "timeouts", "rejected", "fallbacks") and count
        ]
        slots = stats["bulkhead"]
        if slots is not None:
            told.append(f"{slots['concurrent_requests']} of {slots['burst']} slots")
        for name, row in stats.get("targets", {}).items():
            state = "" if row["state"] in (None, "closed") else f" ({row['state']})"
            told.append(f"{row['share']:.0%} at {name!r}{state}")
        return f"<Guard {self.name!r}: {', '.join(told)}>"


def _past(guard: Guard, named: dict[str, Any]) -> dict[str, Any]:
    return {**named, "target": guard.targets[0]} if guard.targets else named


_suites.replaces(
    Guard,
    call=lambda self, *args, **named: _suites.call_through(self, *args, **_past(self, named)),
    call_sync=lambda self, *args, **named: _suites.call_through_sync(
        self, *args, **_past(self, named)
    ),
)
