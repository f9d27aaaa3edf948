"""What the guarded HTTP clients share; it knows none of them.

Retries multiply when every layer makes its own: an application that tries five
times, over an SDK that tries three times, over a client that tries three times,
sends 45 requests for one. The transport is where they all pass, so it keeps
count: a request that comes again after it has failed is the same call going on.
It is answered with the failure itself for as long as the next attempt would
have to wait anyway, and then it is one attempt more, which the retry budget
pays for or which is not made.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ferrogate import _core, _suites
from ferrogate._headers import RateLimitHeaders
from ferrogate.exceptions import FerrogateError, RateLimitExceeded
from ferrogate.guard import Guard
from ferrogate.integrations._answers import Answer, Answered, Pairs, made_here, refusal
from ferrogate.retry import RetryBudget

if TYPE_CHECKING:
    from ferrogate.testing import ManualClock

__all__ = [
    "KEPT_BODY",
    "Begun",
    "Exchanges",
    "GuardedTransportStats",
    "Sent",
]

#: Seconds until a call that was given up may go on, doubled each time, and at most.
_FIRST_HOLD = 2.0
_LONGEST_HOLD = 30.0
#: For so long after that it is still the same call.
_MEMORY = 60.0
#: Bytes of a failure's body that are kept for those who come again.
KEPT_BODY = 16_384
_MOST_PAUSES = 256

#: These differ from attempt to attempt of one call. All others tell calls apart, so that nobody
#: is answered with what somebody else's key has met.
_VOLATILE = frozenset(
    b"baggage content-length date idempotency-key request-id sentry-trace traceparent tracestate "
    b"x-amzn-trace-id x-b3-sampled x-b3-spanid x-b3-traceid x-client-request-id x-correlation-id "
    b"x-request-id".split()
)
_CREDENTIALS = frozenset(b"api-key authorization x-api-key x-goog-api-key".split())


class GuardedTransportStats(TypedDict):
    """What ``get_stats()`` of a guarded transport returns; counts since construction."""

    requests: int
    """Requests that came from above."""
    sent: int
    """Requests that were sent on."""
    repeated: int
    """Requests that came again after they had failed, and were sent once more."""
    answered_again: int
    """Requests that came again too soon, or beyond the retry budget, and were answered with the
    failure that they had met."""
    refused: int
    """Requests that a part of the guard, a limiter or a pause did not let through."""
    waited_seconds: float
    """How long requests waited for the end of a provider's pause, in all."""
    input_tokens: int
    """As the answers told it."""
    output_tokens: int
    """As the answers told it, streamed ones too."""


@dataclass(slots=True)
class Sent:
    """A request from above."""

    method: str
    url: str
    origin: str
    headers: Iterable[tuple[bytes, bytes]]
    body: bytes | None
    """``None``: it can be read once only."""
    _key: bytes | None = field(default=None, init=False)

    @property
    def key(self) -> bytes:
        """What attempts of one call have in common."""
        if self._key is None:
            known = hashlib.blake2b(digest_size=16)
            for part in (self.method.encode(), self.url.encode(), self.body or b""):
                known.update(b"%d:%b" % (len(part), part))
            for name, value in sorted((name.lower(), value) for name, value in self.headers):
                if name not in _VOLATILE and not name.startswith(b"x-stainless-"):
                    known.update(b"%d:%b%d:%b" % (len(name), name, len(value), value))
            self._key = known.digest()
        return self._key

    @property
    def scope(self) -> bytes:
        """Whom a provider's pause is for."""
        known = hashlib.blake2b(self.origin.encode(), digest_size=16)
        for name, value in self.headers:
            if name.lower() in _CREDENTIALS:
                known.update(value)
        return known.digest()


@dataclass(slots=True)
class _Episode:
    """A call that was given up, as far as this transport could."""

    failure: Answer | Exception
    times: int
    until: float
    seen: float
    """When it came last."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a request has to do before it is sent."""

    failure: Answer | Exception | None = None
    """Nothing at all: this is its answer."""
    wait: float = 0.0
    """Seconds until a pause is over."""
    once: bool = False
    """It is an attempt of a call that has had all the retries that it gets by itself."""


class Exchanges:
    """The memory of one transport: calls that failed, pauses, counts."""

    def __init__(
        self,
        guard: Guard,
        *,
        budget: RetryBudget | None,
        max_wait: float,
        max_remembered: int,
    ) -> None:
        if not isinstance(guard, Guard):
            raise TypeError(f"guard: expected a ferrogate.Guard, got {type(guard).__name__}")
        if guard.targets:
            raise ValueError(
                "guard: expected one without targets: a request has its address before it comes "
                "here; put the guard with targets around the calls of the clients instead"
            )
        if budget is not None and not isinstance(budget, RetryBudget):
            raise TypeError(f"budget: expected a RetryBudget, got {type(budget).__name__}")
        if not max_wait >= 0:
            raise ValueError(f"max_wait: expected seconds, at least 0, got {max_wait!r}")
        if isinstance(max_remembered, bool) or not isinstance(max_remembered, int):
            got = type(max_remembered).__name__
            raise TypeError(f"max_remembered: expected an int, got {got}")
        if max_remembered < 1:
            raise ValueError(f"max_remembered: expected at least 1, got {max_remembered}")
        policy, clock, self.reserves = guard._parts()
        self.clock = cast("ManualClock | None", clock)
        if budget is None:
            budget = getattr(policy, "budget", None)
        # A layer above may well retry where the guard does not.
        self.budget = RetryBudget(clock=clock) if budget is None else budget
        self.guard = guard
        self.max_wait = float(max_wait)
        self._most = max_remembered
        self._episodes: dict[bytes, _Episode] = {}
        self._pauses: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self._counts: GuardedTransportStats = {
            "requests": 0,
            "sent": 0,
            "repeated": 0,
            "answered_again": 0,
            "refused": 0,
            "waited_seconds": 0.0,
            "input_tokens": 0,
            "output_tokens": 0,
        }
        _living.add(self)
        _suites.register(self)

    @property
    def passes(self) -> bool:
        """Nothing of all this: everything is disabled."""
        return _suites.state.bypassed or not self.guard.enabled

    def begin(self, sent: Sent) -> Begun:
        """A request has come from above."""
        now = self._now()
        # Most are the first of their kind, where nothing has failed: nothing is hashed for those.
        key = sent.key if self._episodes and sent.body is not None else None
        scope = sent.scope if self._pauses else None
        with self._lock:
            self._counts["requests"] += 1
            episode = None if key is None else self._episodes.get(key)
            if episode is not None:
                if key is not None and now >= max(episode.until, episode.seen) + _MEMORY:
                    del self._episodes[key]
                    episode = None
                else:
                    episode.seen = now
            paused = 0.0 if scope is None else self._pauses.get(scope, 0.0) - now
            if paused <= 0 and scope is not None:
                self._pauses.pop(scope, None)
        if episode is not None:
            return self._again(episode, max(episode.until - now, paused))
        if paused <= 0:
            return Begun()
        if paused > self.max_wait:
            error = RateLimitExceeded(
                f"{self.guard.name}: the provider asked for patience; retry after {paused:.3f} s",
                name=self.guard.name,
                retry_after=paused,
            )
            return Begun(failure=self.refused(error))
        with self._lock:
            self._counts["waited_seconds"] += paused
        return Begun(wait=paused)

    def _again(self, episode: _Episode, left: float) -> Begun:
        """A call that was given up goes on."""
        failure = episode.failure
        if left <= 0 and self.budget._withdraw():
            with self._lock:
                self._counts["repeated"] += 1
            return Begun(once=True)
        with self._lock:
            self._counts["answered_again"] += 1
        if isinstance(failure, Answer):
            return Begun(failure=failure.final(max(left, 0.0)))
        return Begun(failure=_copied(failure))

    def on_the_way(self) -> None:
        """A request is sent."""
        with self._lock:
            self._counts["sent"] += 1

    def answered(self, sent: Sent, status: int, headers: Pairs) -> None:
        """An answer's head is there."""
        if status < 400:
            if self._episodes and sent.body is not None:
                key = sent.key
                with self._lock:
                    self._episodes.pop(key, None)
        elif status == 429 and not self.reserves:
            # A limiter that reserves is told by the guard, and makes others wait by itself.
            asked = RateLimitHeaders.parse(headers, status).pause
            if asked:
                scope, until = sent.scope, self._now() + asked
                with self._lock:
                    _make_room(self._pauses, _MOST_PAUSES)
                    self._pauses[scope] = max(until, self._pauses.get(scope, 0.0))

    def gave_up(self, sent: Sent, answer: Answer) -> Answer:
        """All attempts ended so: what the layers above get."""
        outcome = _core._outcome_of(Answered(None, answer))
        if outcome not in ("failure", "throttled"):
            return answer
        asked = RateLimitHeaders.parse(answer.headers, answer.status).pause
        kept = answer
        if len(answer.body) > KEPT_BODY:
            short = made_here(answer.status, f"HTTP {answer.status}", "too_long_to_keep")
            kept = replace(short, source=answer.source)
        self._remember(sent, kept, asked or 0.0)
        return answer.final()

    def failed(self, sent: Sent, error: Exception) -> None:
        """All attempts ended without an answer."""
        # A copy has no traceback, whose frames would keep a lot.
        self._remember(sent, _copied(error), 0.0)

    def _remember(self, sent: Sent, failure: Answer | Exception, asked: float) -> None:
        if sent.body is None:
            return
        key, now = sent.key, self._now()
        with self._lock:
            before = self._episodes.pop(key, None)
            times = 1 if before is None else before.times + 1
            hold = min(_FIRST_HOLD * 2.0 ** min(times - 1, 10), _LONGEST_HOLD)
            _make_room(self._episodes, self._most)
            self._episodes[key] = _Episode(failure, times, now + max(hold, asked), now)

    def refused(self, error: FerrogateError) -> Answer:
        """A part of the guard has let nothing through: the answer that says so."""
        with self._lock:
            self._counts["refused"] += 1
        return refusal(error)

    def used(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """What an answer has cost."""
        with self._lock:
            self._counts["input_tokens"] += input_tokens or 0
            self._counts["output_tokens"] += output_tokens or 0

    def get_stats(self) -> GuardedTransportStats:
        with self._lock:
            return self._counts.copy()

    def _now(self) -> float:
        return time.monotonic() if self.clock is None else self.clock.now_ns() / 1e9

    def _reset(self) -> None:
        """Forgets failures and pauses, for test suites; the counts go on."""
        with self._lock:
            self._episodes.clear()
            self._pauses.clear()

    def __repr__(self) -> str:
        told = [f"{count:g} {what}" for what, count in self.get_stats().items() if count]
        return f"{self.guard.name!r}: {', '.join(told) or 'nothing yet'}"


_living: weakref.WeakSet[Exchanges] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Whoever held it is not in this process.
    for exchanges in tuple(_living):
        exchanges._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _copied(error: Exception) -> Exception:
    """The same error, without its traceback."""
    try:
        made: Any = copy.copy(error)
    except Exception:
        # Its constructor takes other arguments than it has told its base.
        made = type(error).__new__(type(error), *error.args)
        made.__dict__.update(error.__dict__)
    return made if isinstance(made, Exception) else error


def _make_room(table: dict[bytes, Any], most: int) -> None:
    """Under the lock: the oldest goes."""
    while len(table) >= most:
        del table[next(iter(table))]
