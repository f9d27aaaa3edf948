"""What the native circuit breaker has Python make and say."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from ferrogate.exceptions import CircuitBreakerOpenError

__all__ = ["open_error", "report"]

_logger = logging.getLogger("ferrogate")

_WHY = {
    "open": "is open",
    "half_open": "is half-open, and its probes are under way",
    "forced_open": "was forced open; reset() closes it",
    "closed": "has just recovered, and lets a growing share of the calls through",
}


def open_error(name: str, state: str, retry_after: float) -> CircuitBreakerOpenError:
    """The exception for a call that was not let through."""
    when = "" if math.isinf(retry_after) else f"; retry after {retry_after:.3f} s"
    return CircuitBreakerOpenError(
        f"circuit breaker {name!r} {_WHY[state]}{when}",
        name=name,
        state=state,
        retry_after=retry_after,
    )


def report(name: str, callback: Callable[..., object], error: BaseException) -> None:
    """Logs what a callback raised; called for the first failure of a breaker."""
    _logger.error(
        "circuit breaker %r: %r raised; later failures are only counted",
        name,
        callback,
        exc_info=error,
    )
