"""Circuit breakers: stop calling what mostly fails, and find out cheaply when it is well again."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, TypedDict, TypeVar

from ferrogate import _core, _suites
from ferrogate._again import remembers
from ferrogate._guarded import Function, guarded
from ferrogate._sharing import store_of
from ferrogate.outcome import Outcome

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerStats",
    "CircuitState",
    "SharedBreakerStats",
]

CircuitState = Literal["closed", "open", "half_open", "forced_open", "disabled", "metrics_only"]
"""Where a circuit breaker can be."""

_Callback = TypeVar("_Callback", bound="Callable[[Any], object]")


@dataclass
class CircuitBreakerConfig:
    """When a circuit breaker opens, how long it rests, and how it recovers.

    Durations are seconds or timedeltas.

    Args:
        failure_threshold: it opens when the share of failures in the window is strictly
            above this, 0..1. At 1.0 failures alone never open it.
        timeout_seconds: for so long it is open before it lets probes through.
        success_threshold: it closes after so many probes in a row have succeeded; one that
            fails opens it again.
        window: the calls that are looked at: an ``int`` is the last so many calls (1,000,000
            at most); a ``float`` or a ``timedelta`` is the last so many seconds, to a sixtieth.
        minimum_calls: with fewer calls in the window no share opens it. By default 5, or what
            the window holds if that is less.
        half_open_max_calls: probes at one time.
        slow_call_seconds: a call that takes as long is slow; ``None`` is no call.
        slow_call_threshold: it opens when the share of slow calls in the window is strictly
            above this, 0..1. A slow probe then counts as a failure.
        count_throttled: whether HTTP 429 and the like are failures. They are not by default:
            who asks for patience is well.
        max_timeout_seconds: each time it opens without having closed in between it rests
            ``timeout_factor`` times as long, up to this. ``None``: always ``timeout_seconds``.
        ramp_up_seconds: for so long after it has closed it lets through a growing share of
            the calls, from a tenth on.
        timeout_factor: see ``max_timeout_seconds``.
        timeout_jitter: it rests longer by up to this share of it, 0..1, at random, so that
            many processes do not probe in step.
        probe_timeout_seconds: a probe that takes longer no longer keeps others out, in case
            it hangs for ever; how it ends still counts.
        max_wasted_usd_per_minute: it opens when more US dollars than this went into calls
            that failed, within 60 seconds; ``minimum_calls`` does not matter to it. What a
            failed call has cost is told by ``record_waste(usd=, tokens=)``.
        max_wasted_tokens_per_minute: likewise, in tokens.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    failure_threshold: float = 0.5
    timeout_seconds: float | timedelta = 30.0
    success_threshold: int = 3
    window: int | float | timedelta = 20
    minimum_calls: int | None = None
    half_open_max_calls: int = 1
    slow_call_seconds: float | timedelta | None = None
    slow_call_threshold: float | None = None
    count_throttled: bool = False
    max_timeout_seconds: float | timedelta | None = None
    ramp_up_seconds: float | timedelta = 0
    timeout_factor: float = 2.0
    timeout_jitter: float = 0.0
    probe_timeout_seconds: float | timedelta = 60.0
    max_wasted_usd_per_minute: float | None = None
    max_wasted_tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        self.minimum_calls = _core._check_breaker_config(self)


class CircuitBreakerStats(TypedDict):
    """What :meth:`CircuitBreaker.get_stats` returns."""

    name: str
    state: CircuitState
    enabled: bool
    error_rate: float
    """Failures among the calls in the window, 0..1."""
    slow_rate: float
    """Slow ones among the calls in the window, 0..1."""
    calls: int
    """Calls in the window; it begins anew when it turns half-open and when it closes."""
    successes: int
    """Calls that ended well, since construction."""
    failures: int
    """Calls that failed, since construction."""
    throttled: int
    """Calls that were asked for patience (HTTP 429), since construction."""
    neutral: int
    """Calls that said nothing: cancelled, abandoned or refused by ferrogate itself."""
    slow: int
    """Calls that took ``slow_call_seconds`` or longer, since construction."""
    rejected: int
    """Calls that were not let through, since construction."""
    times_opened: int
    """How often it opened by itself, since construction."""
    probes: int
    """Calls of the half-open state that are under way."""
    retry_after: float
    """Seconds until it lets probes through; 0 if it is not open."""
    wasted_usd: float
    """US dollars that went into failures in the last 60 seconds."""
    wasted_tokens: int
    """Tokens that went into failures in the last 60 seconds."""
    callback_errors: int
    """How often a callback or the classifier raised."""
    shared: SharedBreakerStats | None
    """``None`` without ``store=``."""


class SharedBreakerStats(TypedDict):
    """What a breaker knows of the store that its state is shared in."""

    joined: bool
    """Whether the store answers, so that the state is shared now."""
    alone: bool
    """The store does not answer: this process goes by its own calls."""
    probing: bool
    """Whether the probes of the half-open state are this process's to make."""
    opened_elsewhere: int
    """How often it opened because it had in another process."""
    closed_elsewhere: int
    """How often it closed because it had in another process."""
    asks: int
    """Questions to the store; one per second at least, of a breaker that is in use."""
    failures: int
    """Those that failed."""
    losses: int
    """How often the store was lost, or could not be reached at first."""


_living: weakref.WeakSet[CircuitBreaker] = weakref.WeakSet()


class CircuitBreaker(_core.CircuitBreaker):
    """Lets calls through while they succeed, and refuses them at once while they mostly fail.

    ::

        breaker = CircuitBreaker("openai", CircuitBreakerConfig(timeout_seconds=30.0))

        answer = await breaker.call(ask, prompt=prompt)  # CircuitBreakerOpenError


        @breaker
        async def ask(prompt: str) -> str: ...


        async with breaker:  # or `with`
            answer = await ask_another(prompt)

    Closed it watches the last calls. When too many of them failed it opens and refuses
    everything; after a rest it is half-open and lets a few probes through, whose outcome
    closes it or opens it again. One breaker serves all threads and event loops of the process.

    ``record_waste(usd=, tokens=)`` says what a failed call has cost, for the limits on waste.

    What a call raises is a failure, except: HTTP 429 (``status_code``, ``status``, ``code`` or
    ``response.status_code`` of the exception) is throttled; other statuses of the 400s, which
    blame the request (but 408 and 425), cancellation, Ctrl-C, a closed generator and
    ferrogate's own refusals are neutral.

    Args:
        name: for messages and statistics; with ``store=``, what is shared, in at most
            200 characters.
        config: when it opens and closes.
        store: ``"memory"``, or ``"redis://host:6379/0"`` (or any other URL that
            :class:`CacheService` takes for Redis) to share the state with all processes that
            use the same ``name`` there. Each of them judges its own calls; when one opens, all
            do, for as long as that one rests; one process at a time probes, and when its probes
            succeed, all close. ``force_open()``, ``disable()`` and ``reset()`` are for all of
            them, ``metrics_only()`` is not: that one neither tells nor follows the others. No
            call ever waits for the store; while it does not answer, each process goes by its
            own calls. What one learns from others it tells its callbacks when it is used next.
        clock: a ``ferrogate.testing.ManualClock`` for tests.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) lets everything through and counts it,
            whatever else is asked of it.
        classify: called as ``classify(result, error)`` at a call's end, one of the two being
            ``None`` (a ``with`` block has no result: only for errors); returns an
            :class:`Outcome`, or ``None`` for the usual one. If it raises, that is logged once
            and counted, and the usual one holds.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
    """

    config: CircuitBreakerConfig
    """A copy of what it was made with; changing it changes nothing."""

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        store: str = "memory",
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
        classify: Callable[[Any, Exception | None], Outcome | str | None] | None = None,
    ) -> CircuitBreaker:
        if config is None:
            config = CircuitBreakerConfig()
        elif isinstance(config, CircuitBreakerConfig):
            config = replace(config)
        else:
            raise TypeError(
                f"config: expected a CircuitBreakerConfig or None, got {type(config).__name__}"
            )
        options = store_of(store, name, clock, "breakers")
        self = super().__new__(
            cls,
            name,
            config,
            store=options,
            clock=clock,
            enabled=enabled,
            classify=classify,
        )
        self.config = config
        _living.add(self)
        _suites.register(self)
        return self

    def __call__(self, function: Function) -> Function:
        """Decorates ``def``, ``async def`` and async generators: every call goes through it.

        A stream is one call from its first item to its end: one that fails half-way is a
        failure, one that is left, closed or cancelled is neutral.
        """
        return guarded(function, self, "breaker")

    def on_open(self, callback: _Callback) -> _Callback:
        """Calls ``callback(breaker)`` whenever it opens, or is forced open.

        A callback runs in the call that made the breaker change, after the change, and with
        no lock held: it may use the breaker. What it raises is logged once per breaker and
        counted, and does not reach that call. All three of these can be used as decorators.

        Raises:
            TypeError: ``callback`` cannot be called, or is a coroutine function.
        """
        return self._on("open", callback)

    def on_close(self, callback: _Callback) -> _Callback:
        """Calls ``callback(breaker)`` whenever it closes; see :meth:`on_open`."""
        return self._on("close", callback)

    def on_half_open(self, callback: _Callback) -> _Callback:
        """Calls ``callback(breaker)`` when the first probe is let through; see :meth:`on_open`."""
        return self._on("half_open", callback)

    def _on(self, event: str, callback: _Callback) -> _Callback:
        if not callable(callback):
            raise TypeError(
                f"callback: expected a function of a breaker, got {type(callback).__name__}"
            )
        if inspect.iscoroutinefunction(callback):
            raise TypeError(
                "callback: expected a plain function, got a coroutine function, which nobody "
                "would await; have it create a task"
            )
        self._watch(event, callback)
        return callback

    def _reset(self) -> None:
        """Closes it and forgets the window, for test suites; the counters go on."""
        if self.get_stats()["shared"] is None:  # Else it is not this process's alone.
            self.reset()

    def __repr__(self) -> str:
        stats = self.get_stats()
        parts = [f"{stats['error_rate']:.0%} of {stats['calls']} calls failed"]
        if stats["retry_after"]:
            parts.append(f"retry after {stats['retry_after']:.3f} s")
        if stats["shared"] is not None:
            parts.append("shared" if stats["shared"]["joined"] else "to be shared")
        if not stats["enabled"]:
            parts.append("not enabled")
        return f"<CircuitBreaker {self.name!r} {stats['state']}: {', '.join(parts)}>"


def _after_fork_in_child() -> None:
    for breaker in tuple(_living):
        breaker._after_fork()


_suites.replaces(
    CircuitBreaker,
    call=_suites.call_through,
    call_sync=_suites.call_through_sync,
    __enter__=_suites.enter,
    __exit__=_suites.do_nothing,
    __aenter__=_suites.enter_async,
    __aexit__=_suites.do_nothing_async,
)
