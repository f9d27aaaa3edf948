"""Rate limits: exact windows, a fair line, one limiter for all threads and loops."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypedDict, TypeVar, cast, overload

from ferrogate import _core, _suites
from ferrogate._again import remembers
from ferrogate._arguments import flag, text_or_none, whole
from ferrogate._core import Decision, Limit
from ferrogate._sharing import store_of
from ferrogate.adaptive import AdaptiveConcurrency, AdaptiveConcurrencyStats, concurrency_stats

__all__ = [
    "Decision",
    "Limit",
    "RateLimitConfig",
    "RateLimiter",
    "RateLimiterStats",
    "SharedStats",
    "rate_limited",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Algorithm = Literal["sliding_window", "gcra", "token_bucket"]


# What the native limiter can count.
_MOST_PERMITS = 2**64 - 1
_MOST_SLOTS = 2**32 - 1


@dataclass
class RateLimitConfig:
    """The common set-up: two windows and a bound on concurrency.

    Args:
        requests_per_minute: permits in any 60 seconds.
        requests_per_hour: permits in any 3,600 seconds.
        burst_limit: requests at one time, counted by ``with`` and ``async with``.
        enabled: ``False`` makes the limiter a no-op that still counts.
    """

    requests_per_minute: int = 60
    requests_per_hour: int = 1000
    burst_limit: int = 10
    enabled: bool = True

    def __post_init__(self) -> None:
        whole("requests_per_minute", self.requests_per_minute, least=1, most=_MOST_PERMITS)
        whole("requests_per_hour", self.requests_per_hour, least=1, most=_MOST_PERMITS)
        whole("burst_limit", self.burst_limit, least=1, most=_MOST_SLOTS)
        if not isinstance(self.enabled, bool):
            raise TypeError(f"enabled: expected a bool, got {self.enabled!r}")


class RateLimiterStats(TypedDict):
    """What :meth:`RateLimiter.get_stats` returns."""

    name: str | None
    algorithm: str
    enabled: bool
    acquired: int
    """Requests granted."""
    rejected: int
    """Requests refused, timed out or impossible."""
    rejection_rate: float
    """``rejected / (acquired + rejected)``, 0..1."""
    waiting: int
    """Requests standing in line now."""
    concurrent_requests: int
    """Slots in use now."""
    burst: int | None
    """All slots, now."""
    adaptive_concurrency: AdaptiveConcurrencyStats | None
    """Of ``burst=AdaptiveConcurrency(...)``."""
    current_minute_requests: int | None
    """Permits used in the last 60 seconds; ``None`` without a limit per minute."""
    windows: dict[str, int]
    """Permits used now, by limit; keyed ones not included."""
    keys: int
    """Keys in the table."""
    shared: SharedStats | None
    """``None`` without ``store=``."""


class SharedStats(TypedDict):
    """What a limiter knows of the store that its limits are shared in."""

    processes: int
    """Processes that share the limits, as far as is known; this one included."""
    joined: bool
    """Whether this process is one of them now."""
    alone: bool
    """The store does not answer: this process spends its share on its own."""
    slice: int
    """Permits that are leased and not spent yet, of all keys together."""
    share: dict[str, int]
    """What this process may use of each limit on its own, once all that others may have used before
    has left the window; until then no more of it than it had used itself."""
    asks: int
    """Questions for permits."""
    failures: int
    """Round trips that failed."""
    losses: int
    """How often the store was lost, or could not be reached at first."""


_living: weakref.WeakSet[RateLimiter] = weakref.WeakSet()


class RateLimiter(_core.RateLimiter):
    """Grants at most so many permits in so much time, and so many slots at a time.

    ::

        limiter = RateLimiter("60/minute", "1000/hour", burst=10)

        if not (decision := limiter.try_acquire()):  # never waits
            print("again in", decision.retry_after, "s")
        await limiter.acquire(timeout=5)  # waits its turn; RateLimitExceeded
        async with limiter:  # a permit, and a slot until the block ends
            ...

    Several limits hold together: a request takes its cost from all of them or
    from none. Waiters are served strictly in order of arrival, whatever their
    cost, and nobody overtakes them. One limiter serves all threads and event
    loops of the process.

    Args:
        limits: ``"60/minute"``, ``"5/10s"``, :class:`Limit` or :class:`RateLimitConfig`.
        burst: concurrency slots for ``with``, ``async with`` and :func:`rate_limited`; an
            :class:`AdaptiveConcurrency` finds their number by itself if the limiter is the
            ``bulkhead=`` of guards: blocks do not say how they ended.
        algorithm: ``"sliding_window"`` is exact over every ``(t - w, t]``;
            ``"gcra"`` spaces permits evenly (one limit only);
            ``"token_bucket"`` refills evenly.
        max_keys: keys (``key=``) that may be limited at one time. A full table
            denies new keys and never forgets a limited one.
        max_waiters: requests that may stand in line.
        store: ``"memory"``, or ``"redis://host:6379/0"`` (or any other URL that
            :class:`CacheService` takes for Redis) to share the limits with all processes
            that use the same ``name`` there. Concurrency slots and the line stay each
            process's own. A private authority of a ``rediss://`` server goes into the
            environment's ``SSL_CERT_FILE``.
        name: for messages and statistics; with ``store=``, what is shared, in at most
            200 characters.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) grants and counts everything.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        *limits: str | Limit | RateLimitConfig,
        burst: int | AdaptiveConcurrency | None = None,
        algorithm: _Algorithm = "sliding_window",
        max_keys: int = 65_536,
        max_waiters: int = 65_536,
        store: str = "memory",
        name: str | None = None,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> RateLimiter:
        options = store_of(store, name, clock, "limits")
        if not isinstance(algorithm, str):
            raise TypeError(f"algorithm: expected a str, got {type(algorithm).__name__}")
        enabled = flag("enabled", enabled)
        plain: list[str | Limit] = []
        for limit in limits:
            if isinstance(limit, RateLimitConfig):
                plain += _limits_of(limit)
                burst = limit.burst_limit if burst is None else burst
                enabled = enabled and limit.enabled
            else:
                plain.append(limit)
        self = super().__new__(
            cls,
            plain,
            burst=burst,
            algorithm=algorithm,
            max_keys=max_keys,
            max_waiters=max_waiters,
            store=options,
            name=text_or_none("name", name),
            clock=clock,
            enabled=enabled,
        )
        subscribe = getattr(clock, "_on_advance", None)
        if subscribe is not None:
            subscribe(self._on_clock)
        _living.add(self)
        _suites.register(self)
        return self

    def update(self, *limits: str | Limit | RateLimitConfig) -> None:
        """Changes the limits while running; what was granted keeps counting.

        A window longer than the longest so far starts with what that one
        counted. Waiters whose cost no longer fits at all get ``ValueError``.

        Raises:
            ValueError: no limits, or ``algorithm="gcra"``.
        """
        plain: list[str | Limit] = []
        for limit in limits:
            plain += _limits_of(limit) if isinstance(limit, RateLimitConfig) else [limit]
        self._update(plain)

    def get_stats(self) -> RateLimiterStats:
        """Counts since construction and what is in use now."""
        acquired, rejected, rate, waiting, concurrent, keys, windows = self._stats()
        return {
            "name": self.name,
            "algorithm": self.algorithm,
            "enabled": self.enabled,
            "acquired": acquired,
            "rejected": rejected,
            "rejection_rate": rate,
            "waiting": waiting,
            "concurrent_requests": concurrent,
            "burst": self.burst,
            "adaptive_concurrency": concurrency_stats(self),
            "current_minute_requests": next(
                (used for limit, used in windows if limit.period == 60), None
            ),
            "windows": {str(limit): used for limit, used in windows},
            "keys": keys,
            "shared": self._shared_stats(),
        }

    def _shared_stats(self) -> SharedStats | None:
        figures = self._sharing()
        if figures is None:
            return None
        processes, joined, alone, slice_, asks, failures, losses = figures
        return {
            "processes": processes,
            "joined": joined,
            "alone": alone,
            "slice": slice_,
            "share": {str(limit): limit.count // processes for limit in self.limits},
            "asks": asks,
            "failures": failures,
            "losses": losses,
        }

    def _on_clock(self) -> None:
        # A bound method of Python's, which the clock can hold weakly.
        self._clock_moved()

    def __repr__(self) -> str:
        stats = self.get_stats()
        parts = [f"{used} of {limit}" for limit, used in stats["windows"].items()]
        if self.burst is not None:
            parts.append(f"{stats['concurrent_requests']} of {stats['burst']} slots")
        found = stats["adaptive_concurrency"]
        if found is not None:
            parts[-1] += f" ({found['law']} of {found['signal']})"
        parts.append(f"{stats['waiting']} waiting")
        if not self.enabled:
            parts.append("disabled")
        name = "" if self.name is None else f" {self.name!r}"
        return f"<RateLimiter{name} {self.algorithm}: {', '.join(parts)}>"


def _limits_of(config: RateLimitConfig) -> list[str | Limit]:
    return [f"{config.requests_per_minute}/minute", f"{config.requests_per_hour}/hour"]


def _after_fork_in_child() -> None:
    for limiter in tuple(_living):
        limiter._after_fork()


class _RateLimited:
    """The decorator; see :func:`rate_limited`."""

    def __init__(self, limiter: RateLimiter, cost: int, timeout: float | timedelta | None) -> None:
        self._limiter = limiter
        self._cost = cost
        self._timeout = timeout

    @overload
    def __call__(
        self, function: Callable[_P, Coroutine[Any, Any, _R]]
    ) -> Callable[_P, Coroutine[Any, Any, _R]]: ...
    @overload
    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise TypeError(
                f"rate_limited: expected a function to decorate, got {function!r}; "
                'write @rate_limited("60/minute")'
            )
        # A callable object is what its class's `__call__` is.
        call = inspect.getattr_static(type(function), "__call__", None)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
            wrapper = self._coroutine(function)
        elif inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(call):
            wrapper = self._async_generator(function)
        elif inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(call):
            wrapper = self._generator(function)
        else:
            wrapper = self._plain(function)
        wrapper = functools.wraps(function)(wrapper)
        cast(Any, wrapper).limiter = self._limiter
        return wrapper

    def _plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        hold = self._limiter._hold(self._cost, self._timeout)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with hold:
                result = function(*args, **kwargs)
                if hasattr(type(result), "__await__"):
                    _refuse_awaitable(function, result)
                return result

        return wrapper

    def _coroutine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        hold = self._limiter._hold(self._cost, self._timeout)

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with hold:
                return await function(*args, **kwargs)

        return wrapper

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        hold = self._limiter._hold(self._cost, self._timeout)

        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with hold:
                return (yield from function(*args, **kwargs))

        return wrapper

    def _async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        hold = self._limiter._hold(self._cost, self._timeout)

        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            async with hold:
                source = function(*args, **kwargs)
                try:
                    item = await anext(source)
                    while True:
                        try:
                            sent = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            item = await source.athrow(error)
                        else:
                            item = await source.asend(sent)
                except StopAsyncIteration:
                    return
                finally:
                    await source.aclose()

        return wrapper


def _refuse_awaitable(function: Callable[..., Any], result: Any) -> None:
    """The slot would be free again before the work has begun."""
    close = getattr(result, "close", None)
    if close is not None:
        close()
    raise TypeError(
        f"rate_limited: expected `async def` where the answer is awaited; {function!r} is a "
        f"plain function that returned an awaitable {type(result).__name__}"
    )


def rate_limited(
    *limits: str | Limit | RateLimitConfig,
    limiter: RateLimiter | None = None,
    cost: int = 1,
    timeout: float | timedelta | None = None,
    burst: int | None = None,
    algorithm: _Algorithm | None = None,
    name: str | None = None,
    clock: _core.ManualClock | None = None,
    enabled: bool = True,
) -> _RateLimited:
    """Every call takes a permit, and a slot until it ends.

    ::

        @rate_limited("60/minute", burst=10)
        async def ask(prompt: str) -> str: ...


        ask.limiter.get_stats()

    For ``def``, ``async def``, generators and async generators; these two hold
    their slot until they are exhausted or closed. A plain ``def`` waits
    blocking, so do not call it from an event loop, and raises ``TypeError`` if it
    returns an awaitable: its slot would be free again before the work begins.

    Args:
        limits: as in :class:`RateLimiter`; or
        limiter: an existing limiter, to share it between functions.
        cost: permits per call.
        timeout: seconds (or a timedelta) to wait at most; ``None``: without end.
        burst, algorithm, name, clock, enabled: as in :class:`RateLimiter`.

    Raises:
        RateLimitExceeded: on a call whose permit did not come in time.
        ValueError, TypeError: a wrong argument; the message names it.
    """
    if len(limits) == 1 and callable(limits[0]):
        raise TypeError('rate_limited: expected limits, write @rate_limited("60/minute")')
    if limiter is None:
        algorithm = "sliding_window" if algorithm is None else algorithm
        limiter = RateLimiter(
            *limits, burst=burst, algorithm=algorithm, name=name, clock=clock, enabled=enabled
        )
    elif limits or (burst, algorithm, name, clock, enabled) != (None, None, None, None, True):
        raise ValueError("limiter: expected either limiter= or the arguments of a new one")
    elif not isinstance(limiter, RateLimiter):
        raise TypeError(f"limiter: expected a RateLimiter, got {type(limiter).__name__}")
    limiter._check(cost, timeout)
    return _RateLimited(limiter, cost, timeout)


@functools.cache
def _open() -> RateLimiter:
    """One that lets everything through, in place of any other while all are bypassed."""
    return RateLimiter("1/second", name="bypassed", enabled=False)


_suites.replaces(
    RateLimiter,
    try_acquire=lambda _, *args, **named: _core.RateLimiter.try_acquire(_open(), *args, **named),
    acquire=lambda _, *args, **named: _core.RateLimiter.acquire(_open(), *args, **named),
    acquire_sync=lambda _, *args, **named: _core.RateLimiter.acquire_sync(_open(), *args, **named),
    eta=lambda _, *args, **named: _core.RateLimiter.eta(_open(), *args, **named),
    __enter__=_suites.enter,
    __exit__=_suites.do_nothing,
    __aenter__=_suites.enter_async,
    __aexit__=_suites.do_nothing_async,
)
_suites.replaces(
    _core._Hold,
    __enter__=_suites.do_nothing,
    __exit__=_suites.do_nothing,
    __aenter__=_suites.do_nothing_async,
    __aexit__=_suites.do_nothing_async,
)
