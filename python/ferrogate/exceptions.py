"""ferrogate's errors. Each carries data, never only prose."""

from ferrogate._core import FerrogateError, InternalError

__all__ = [
    "CircuitBreakerOpenError",
    "FerrogateError",
    "GuardTimeout",
    "InternalError",
    "RateLimitExceeded",
    "StreamLagError",
]


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
