"""Metrics and alerts of a run, by the package's own parts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from ferrogate import Cache, HealthMonitor, PerformanceMetrics
from ferrogate.cli.agent import Ask, Reply
from ferrogate.cli.gates import HasStats
from ferrogate.cli.settings import Settings
from ferrogate.health import Alert
from ferrogate.testing import ManualClock

__all__ = ["Watch"]

# Trace time: as often as a production monitor looks, and what it looks back at.
_INTERVAL = 15.0
_WINDOW = 300.0
_FLAP_WINDOW = 60.0


class Watch:
    """Records every request and judges the run's health every 15 seconds of trace time."""

    def __init__(
        self,
        settings: Settings,
        clock: ManualClock | None,
        *,
        cache: Cache[Any, Any] | None = None,
        limiter: HasStats | None = None,
    ) -> None:
        self._settings = settings
        self._interval = _INTERVAL / settings.speed
        self._metrics = PerformanceMetrics("replay", clock=clock)
        self._cache = cache
        self._limiter = limiter
        self._monitor = HealthMonitor(
            window=_WINDOW / settings.speed,
            flap_window=_FLAP_WINDOW / settings.speed,
            metrics=self._metrics,
            cache=cache,
            limiter=limiter,
            clock=clock,
        )
        self._started = 0.0
        self._rounds: asyncio.Task[None] | None = None

    def record(self, ask: Ask, reply: Reply | None, seconds: float) -> None:
        """Counts a request that has ended, in trace seconds."""
        own = reply is not None and ask.reuse is None
        self._metrics.record_generation(
            success=reply is not None,
            time_seconds=seconds,
            tokens=reply.input_tokens + reply.output_tokens if reply is not None and own else 0,
            retries=ask.retries,
            cost_usd=self._settings.cost(reply.input_tokens, reply.output_tokens)
            if reply is not None and own
            else 0.0,
        )

    def report(self) -> dict[str, Any]:
        """What the parts say of the run."""
        parts: dict[str, Any] = {"performance": self._metrics.get_stats()}
        if self._cache is not None:
            parts["cache"] = self._cache.get_stats()
        if self._limiter is not None:
            parts["limiter"] = self._limiter.get_stats()
        return {"components": parts, "alerts": list(map(self._told, self._monitor.alert_history()))}

    def _told(self, alert: Alert) -> dict[str, Any]:
        def after(moment: float | None) -> float | None:
            if moment is None:
                return None
            return round((moment - self._started) * self._settings.speed, 1)

        return {
            "name": alert.name,
            "severity": alert.severity,
            "message": alert.message,
            "raised_after_seconds": after(alert.raised_at),
            "resolved_after_seconds": after(alert.resolved_at),
            "times_raised": alert.times_raised,
        }

    async def __aenter__(self) -> Self:
        self._started = self._monitor.evaluate().checked_at
        self._rounds = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            with suppress(asyncio.CancelledError):
                await self._rounds
        self._monitor.evaluate()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._monitor.evaluate()
