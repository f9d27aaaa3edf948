"""Retries: what fails is called again, after a wait and within a budget."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypeAlias, TypedDict

from ferrogate import _core, _suites
from ferrogate._again import remembers
from ferrogate._arguments import flag, text_or_none
from ferrogate._guarded import Function, guarded

__all__ = ["RetryBudget", "RetryBudgetStats", "RetryPolicy", "RetryStats", "retry"]

_Jitter = Literal["full", "equal", "none"]
_Class: TypeAlias = type[Exception]
_Rule: TypeAlias = "int | bool | RetryPolicy"
_On: TypeAlias = (
    "_Class | tuple[_Class, ...] | Callable[[Exception], bool] | Mapping[_Class, _Rule]"
)


class RetryBudgetStats(TypedDict):
    """What :meth:`RetryBudget.get_stats` returns."""

    name: str | None
    enabled: bool
    calls: int
    """Calls that paid in: first attempts."""
    retries: int
    """Retries paid for."""
    refused: int
    """Retries refused for want of any."""
    refused_usd: int
    """Retries refused since they would have cost too much."""
    saved: float
    """Retries saved from calls."""
    reserve: float
    """Retries in the reserve."""
    usd_last_minute: float
    """What retries cost in the last 60 s, or up to a second more; 0 without ``usd_per_minute``."""


class RetryBudget(_core.RetryBudget):
    """A bound on how many of all calls may be retries; share one among all who call an upstream.

    When everything fails, three attempts are three times the load, and three layers of three
    are 27 times. With a budget retries add a fifth, whatever the attempts::

        budget = RetryBudget(0.2)
        ask = RetryPolicy(attempts=5, budget=budget)
        embed = RetryPolicy(attempts=3, budget=budget)

    As in Finagle, every call pays in ``ratio`` of a retry, and every retry takes out a whole
    one. A reserve lets rare calls retry too: over any time there are at most ``ratio`` retries
    for each call, ``min_per_second`` for each second of it and of ``window``, and what was saved.

    Args:
        ratio: retries for each call, 0..1.
        min_per_second: what comes into the reserve each second, even without calls.
        max_saved: retries that calls can save up; they do not expire.
        window: seconds (or a timedelta) of which the reserve holds what comes in; at least one
            retry. A new reserve is full.
        usd_per_minute: what retries may cost in any 60 seconds. A retry whose cost nobody knows
            costs nothing here.
        name: for statistics.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) pays for everything and counts it.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        ratio: float = 0.2,
        *,
        min_per_second: float = 1.0,
        max_saved: float = 100.0,
        window: float | timedelta = 10.0,
        usd_per_minute: float | None = None,
        name: str | None = None,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> RetryBudget:
        self = super().__new__(
            cls,
            ratio,
            min_per_second=min_per_second,
            max_saved=max_saved,
            window=window,
            usd_per_minute=usd_per_minute,
            name=text_or_none("name", name),
            clock=clock,
            enabled=flag("enabled", enabled),
        )
        _suites.register(self)
        return self

    def get_stats(self) -> RetryBudgetStats:
        """Counts since construction and what is there now."""
        calls, retries, refused, refused_usd, saved, reserve, usd = self._stats()
        return {
            "name": self.name,
            "enabled": self.enabled,
            "calls": calls,
            "retries": retries,
            "refused": refused,
            "refused_usd": refused_usd,
            "saved": saved,
            "reserve": reserve,
            "usd_last_minute": usd,
        }

    def __repr__(self) -> str:
        stats = self.get_stats()
        name = "" if self.name is None else f" {self.name!r}"
        parts = [
            f"{self.ratio:g} a call",
            f"{stats['saved'] + stats['reserve']:.1f} left",
            f"{stats['retries']} paid, {stats['refused'] + stats['refused_usd']} refused",
        ]
        if self.usd_per_minute is not None:
            parts.append(f"{stats['usd_last_minute']:g} of {self.usd_per_minute:g} USD/minute")
        if not self.enabled:
            parts.append("disabled")
        return f"<RetryBudget{name} {', '.join(parts)}>"


class RetryStats(TypedDict):
    """What :meth:`RetryPolicy.get_stats` returns."""

    name: str | None
    enabled: bool
    calls: int
    """Calls begun, retries not included."""
    retries: int
    """Calls made again."""
    delayed_seconds: float
    """Waits before retries, in all."""
    given_up: dict[str, int]
    """Calls that ended in an error, by why they were not made again: ``attempts`` (all made),
    ``budget`` (spent), ``deadline`` (the wait would end after it), ``retry_after_too_long``
    (the server asks for more patience than there is), ``not_retried`` (not of a kind that is)."""


class RetryPolicy(_core.RetryPolicy):
    """When and how often a call that failed is made again.

    ::

        policy = RetryPolicy(attempts=5, total_timeout=60, budget=RetryBudget(0.2))
        answer = await policy.call(ask, "hello")


        @policy
        async def ask(prompt: str) -> str: ...

    Waits grow by ``factor`` from ``base`` to ``max_delay``, less what chance takes off (M. Brooker,
    "Exponential backoff and jitter", AWS Architecture Blog, 2015). Where the server says how
    long to wait (``Retry-After``) no wait is shorter, and jitter comes on top. The last error is
    raised as it is, with a note that says how many attempts there were.

    Args:
        attempts: calls in all, the first included.
        base: seconds (or a timedelta) that the first wait is below.
        factor: by how much each wait may be longer than the one before.
        max_delay: seconds that no wait of ours is above; 30, or ``base`` if that is more.
        jitter: ``"full"``: between nothing and the whole wait; ``"equal"``: between half of it
            and all of it; ``"none"``: herds stay together.
        budget: what pays for retries; without one they are bounded by ``attempts`` only.
        on: which errors are retried. ``None``: what counts as failed or throttled, but for
            mistakes in the program (``TypeError``, ``AttributeError``, ``NameError``,
            ``ImportError``, ``NotImplementedError``, ``AssertionError``, ``SyntaxError``,
            ``RecursionError``, ``MemoryError``). An exception class or a tuple of them: these
            and no others. A function from the exception to a bool. A dict from classes to
            attempts, a ``RetryPolicy`` of their own, ``True`` or ``False``; the class nearest
            to the error's decides, and what is not in it is as without ``on``. What is no
            ``Exception`` (``CancelledError``, ``KeyboardInterrupt``) is never retried.
        total_timeout: seconds from the first call on; no wait ends later.
        max_retry_after: seconds; where a server asks for more, it gives up at once.
        name: for statistics.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) retries nothing and counts.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        attempts: int = 3,
        *,
        base: float | timedelta = 0.5,
        factor: float = 2.0,
        max_delay: float | timedelta | None = None,
        jitter: _Jitter = "full",
        budget: RetryBudget | None = None,
        on: _On | None = None,
        total_timeout: float | timedelta | None = None,
        max_retry_after: float | timedelta = 60.0,
        name: str | None = None,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> RetryPolicy:
        if not isinstance(jitter, str):
            raise TypeError(f"jitter: expected a str, got {type(jitter).__name__}")
        if budget is not None and not isinstance(budget, RetryBudget):
            raise TypeError(f"budget: expected a RetryBudget, got {type(budget).__name__}")
        if max_delay is None:
            least = base.total_seconds() if isinstance(base, timedelta) else base
            # What is no duration, or more than anybody means, is refused below.
            usual = isinstance(least, int | float) and 30 < least <= 86_400
            max_delay = least if usual else 30.0
        if inspect.iscoroutinefunction(on):
            raise TypeError("on: expected a plain function, got a coroutine function")
        return super().__new__(
            cls,
            attempts,
            base=base,
            factor=factor,
            max_delay=max_delay,
            jitter=jitter,
            budget=budget,
            # A copy: what becomes of it later is its owner's affair.
            on=dict(on) if isinstance(on, Mapping) else on,
            total_timeout=total_timeout,
            max_retry_after=max_retry_after,
            name=text_or_none("name", name),
            clock=clock,
            enabled=flag("enabled", enabled),
        )

    def __call__(self, function: Function) -> Function:
        """Decorates ``def``, ``async def`` and async generators, whose streams are tried again
        only until their first item."""
        return guarded(function, self, "retry")

    def get_stats(self) -> RetryStats:
        """Counts since construction."""
        calls, retries, delayed, given_up = self._stats()
        return {
            "name": self.name,
            "enabled": self.enabled,
            "calls": calls,
            "retries": retries,
            "delayed_seconds": delayed,
            "given_up": dict(given_up),
        }

    def __repr__(self) -> str:
        stats = self.get_stats()
        name = "" if self.name is None else f" {self.name!r}"
        gave_up = sum(stats["given_up"].values())
        parts = [f"{stats['calls']} calls", f"{stats['retries']} retries", f"{gave_up} given up"]
        if not self.enabled:
            parts.append("disabled")
        plural = "" if self.attempts == 1 else "s"
        return f"<RetryPolicy{name} {self.attempts} attempt{plural}: {', '.join(parts)}>"


def retry(
    attempts: int = 3,
    *,
    base: float | timedelta = 0.5,
    factor: float = 2.0,
    max_delay: float | timedelta | None = None,
    jitter: _Jitter = "full",
    budget: RetryBudget | None = None,
    on: _On | None = None,
    total_timeout: float | timedelta | None = None,
    max_retry_after: float | timedelta = 60.0,
    name: str | None = None,
    clock: _core.ManualClock | None = None,
    enabled: bool = True,
) -> RetryPolicy:
    """Decorates a function with a :class:`RetryPolicy` of its own.

    ::

        @retry(attempts=5, on=(ConnectionError, TimeoutError))
        async def ask(prompt: str) -> str: ...

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """
    if callable(attempts):
        raise TypeError("retry: expected options, write @retry() with parentheses")
    return RetryPolicy(
        attempts,
        base=base,
        factor=factor,
        max_delay=max_delay,
        jitter=jitter,
        budget=budget,
        on=on,
        total_timeout=total_timeout,
        max_retry_after=max_retry_after,
        name=name,
        clock=clock,
        enabled=enabled,
    )


_suites.replaces(RetryPolicy, call=_suites.call_through, call_sync=_suites.call_through_sync)
