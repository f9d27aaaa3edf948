"""What the headers of an answer say about a provider's own limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ferrogate import _core

__all__ = ["RateLimitDimension", "RateLimitHeaders"]


class _HasItems(Protocol):
    def items(self) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class RateLimitDimension:
    """What is said of one thing that is limited; ``None`` where nothing is."""

    limit: int | None = None
    """How much is allowed in the provider's window: 1 to 10**12."""
    remaining: int | None = None
    """How much of it is left: 0 to ``limit``."""
    reset_in: float | None = None
    """Seconds until all of it is there again: 0 to 31 days."""


@dataclass(frozen=True, slots=True)
class RateLimitHeaders:
    """What the headers of one answer say about the provider's limits.

    Understood are OpenAI's ``x-ratelimit-*`` (also as Azure, Groq and others send them),
    Anthropic's ``anthropic-ratelimit-*``, the generic ``ratelimit-*`` and ``x-ratelimit-*`` of the
    IETF's drafts, GitHub and OpenRouter, and ``retry-after`` (RFC 9110), ``retry-after-ms``.
    Times may be seconds, Go durations (``6m0s``), instants of RFC 3339, HTTP dates, or seconds
    or milliseconds since the epoch. Instants are taken against the answer's own ``date``, so
    that a clock that is wrong here does no harm.
    """

    requests: RateLimitDimension
    tokens: RateLimitDimension
    """Tokens, without saying of what kind."""
    input_tokens: RateLimitDimension
    output_tokens: RateLimitDimension
    retry_after: float | None
    """Seconds that the server asks to wait: 0 to a day."""
    pause: float | None
    """Seconds in which nothing should be sent after an answer with that ``status``. That is
    ``retry_after``; after a 429 without it, until all that is spent is there again."""
    ignored: int
    """Values of known headers that could not be read, or say nothing."""
    clamped: int
    """Values that were brought within bounds."""

    @classmethod
    def parse(
        cls,
        headers: Mapping[Any, Any] | _HasItems | Iterable[tuple[Any, Any]],
        status: int | None = None,
        *,
        now: float | None = None,
    ) -> RateLimitHeaders:
        """Reads the headers of an answer; whatever they hold, this raises nothing about it.

        Args:
            headers: those of httpx, aiohttp, requests or urllib, a dict, or pairs; of names and
                values in ``str`` or ``bytes``. Of several with one name the first counts; at
                most 1,000 are looked at.
            status: the answer's HTTP status, for ``pause``.
            now: when it came, in seconds since the Unix epoch, if not now.

        Raises:
            TypeError, ValueError: ``headers`` is neither a mapping nor pairs, or ``status`` is
                no HTTP status.
        """
        requests, tokens, sent, received, retry_after, pause, ignored, clamped = (
            _core.parse_rate_limit_headers(headers, status, now)
        )
        return cls(
            requests=RateLimitDimension(*requests),
            tokens=RateLimitDimension(*tokens),
            input_tokens=RateLimitDimension(*sent),
            output_tokens=RateLimitDimension(*received),
            retry_after=retry_after,
            pause=pause,
            ignored=ignored,
            clamped=clamped,
        )
