"""ferrogate's errors. Each carries data, never only prose."""

from datetime import datetime

from ferrogate._core import FerrogateError, InternalError

__all__ = [
    "BudgetExceededError",
    "CircuitBreakerOpenError",
    "FerrogateError",
    "GuardTimeout",
    "InternalError",
    "RateLimitExceeded",
    "StreamLagError",
    "TargetsUnavailable",
]


class BudgetExceededError(FerrogateError):
    """A budget has no money left for a call. Waiting until it resets is nobody's wish, so
    nothing in ferrogate tries it again.

    Attributes:
        name: the budget's name.
        key: whose money it is, as the caller wrote it, or ``None``.
        reason: ``"budget exceeded"``, ``"key table full"`` (too many keys have spent something)
            or ``"store unavailable"``.
        limit: the limit that refused, as text (``"50 USD/day"``), or ``None``.
        limit_usd: what it allows, in US dollars, or ``None``.
        spent_usd: what was reserved and spent of it, in US dollars, or ``None``.
        retry_after: seconds until it resets.
        resets_at: when that is, in the budget's time zone, or ``None``.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str | None = None,
        key: object = None,
        reason: str = "budget exceeded",
        limit: str | None = None,
        limit_usd: float | None = None,
        spent_usd: float | None = None,
        retry_after: float = 0.0,
        resets_at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.key = key
        self.reason = reason
        self.limit = limit
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.retry_after = retry_after
        self.resets_at = resets_at


class CircuitBreakerOpenError(FerrogateError):
    """A circuit breaker did not let a call through.

    Attributes:
        name: the breaker's name.
        state: the state that refused it: ``"open"``, ``"half_open"`` (its probes are under
            way), ``"forced_open"``, or ``"closed"`` (it recovers little by little).
        retry_after: seconds until it is worth asking again; infinite when it was forced open.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str | None = None,
        state: str = "open",
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.state = state
        self.retry_after = retry_after


class GuardTimeout(FerrogateError, TimeoutError):
    """A guarded call took longer than it may.

    Attributes:
        name: the guard's name.
        timed_out: ``"attempt"`` (``attempt_timeout=``), ``"total"`` (``timeout=``), or
            ``"outer"``: the ``timeout`` of a guarded call that this one was made in.
        limit: the limit that was passed, in seconds; 0 for ``"outer"``.
    """

    def __init__(self, message: str, *, name: str, timed_out: str, limit: float) -> None:
        super().__init__(message)
        self.name = name
        self.timed_out = timed_out
        self.limit = limit


class RateLimitExceeded(FerrogateError, TimeoutError):
    """A permit was not granted within the time that the caller allowed.

    Attributes:
        name: the limiter's name, or ``None``.
        limit: the limit that refused, as text (``"60/minute"``), or ``None``.
        retry_after: seconds until the same request could be granted.
    """

    def __init__(
        self,
        message: str,
        *,
        name: str | None = None,
        limit: str | None = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.limit = limit
        self.retry_after = retry_after


class StreamLagError(FerrogateError):
    """A reader of a shared stream fell so far behind that its next chunk is gone.

    Attributes:
        behind: chunks between this reader and the newest one.
        kept: chunks that are kept (``stream_chunks=`` of ``@cached``).
    """

    def __init__(self, *, behind: int, kept: int) -> None:
        super().__init__(
            f"this reader is {behind} chunks behind a shared stream of which {kept} are kept; "
            "read faster, or give @cached a larger stream_chunks="
        )
        self.behind = behind
        self.kept = kept


class TargetsUnavailable(FerrogateError):
    """None of a guard's targets takes the call before its deadline.

    Attributes:
        name: the guard's name.
        reasons: why, by the target's name.
        retry_after: seconds until the first of them is expected to return; infinite if none will
            by itself.
    """

    def __init__(
        self, message: str, *, name: str, reasons: dict[str, str], retry_after: float
    ) -> None:
        super().__init__(message)
        self.name = name
        self.reasons = reasons
        self.retry_after = retry_after
