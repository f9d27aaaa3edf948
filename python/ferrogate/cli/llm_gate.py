"""The gate on `LLMLimiter`: all limits as one, under-use given back, fair between tenants."""

from __future__ import annotations

from ferrogate import LLMLimiter
from ferrogate._core import Reservation
from ferrogate.cli.agent import Ask, Refused
from ferrogate.cli.gates import WAITERS, Taken
from ferrogate.cli.settings import Settings
from ferrogate.cli.traces import Row
from ferrogate.testing import ManualClock

__all__ = ["LLMGate"]


class LLMGate:
    """The provider's limits a minute in one limiter.

    Not at another speed than 1 over HTTP, whose minute has fewer seconds, and not for limits an
    hour: neither does the limiter know.
    """

    def __init__(self, settings: Settings, clock: ManualClock | None) -> None:
        provider = self._provider = settings.provider
        self.watched = LLMLimiter(
            "provider",
            requests_per_minute=provider.requests_per_minute or None,
            input_tokens_per_minute=provider.input_tokens_per_minute or None,
            output_tokens_per_minute=provider.output_tokens_per_minute or None,
            tokens_per_minute=provider.tokens_per_minute or None,
            concurrency=provider.concurrency or None,
            fairness="weighted" if settings.tenants > 1 else "fifo",
            max_waiters=WAITERS,
            window_margin=settings.margin,
            clock=clock,
        )

    @staticmethod
    def fits(settings: Settings) -> bool:
        """Whether the limiter can say what the settings' limits are."""
        provider = settings.provider
        limits = (
            provider.requests_per_minute,
            provider.input_tokens_per_minute,
            provider.output_tokens_per_minute,
            provider.tokens_per_minute,
            provider.concurrency,
        )
        return provider.speed == 1 and not provider.requests_per_hour and any(limits)

    async def reserve(self, ask: Ask, timeout: float | None) -> Taken:
        """Waits until the request may be sent."""
        row = ask.row
        try:
            reservation = await self.watched.reserve(
                input_tokens=row.input_tokens,
                output_tokens=row.max_tokens,
                tenant=row.tenant or None,
                timeout=timeout,
            )
        except ValueError:  # more than can ever be granted, and told at once
            raise Refused(self._too_much(row), never=True) from None
        reservation.mark_sent()
        return _Reserved(reservation, row)

    def _too_much(self, row: Row) -> str:
        provider = self._provider
        asked = (
            ("input tokens", row.input_tokens, provider.input_tokens_per_minute),
            ("output tokens", row.max_tokens, provider.output_tokens_per_minute),
            ("tokens", row.input_tokens + row.max_tokens, provider.tokens_per_minute),
        )
        beyond = [f"{cost:,} {what}" for what, cost, limit in asked if 0 < limit < cost]
        return f"{' and '.join(beyond)} are more than the limit per minute"


class _Reserved:
    def __init__(self, reservation: Reservation, row: Row) -> None:
        self._reservation = reservation
        self._row = row

    def settle(self, *, input_tokens: int, output_tokens: int) -> None:
        """Has taken so much."""
        self._reservation.settle(input_tokens=input_tokens, output_tokens=output_tokens)

    def release(self) -> None:
        """Ends it: what failed at the provider is taken to have been counted there in full."""
        self._reservation.settle()
