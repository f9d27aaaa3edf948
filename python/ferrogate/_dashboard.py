"""The optimizer's dashboard: its shape, and what goes into it."""

from __future__ import annotations

from typing import TypedDict

from ferrogate._health_types import AlertDict, HealthReport, SystemMetrics, iso
from ferrogate.cache import CacheStats
from ferrogate.limiter import RateLimiterStats
from ferrogate.metrics import PerformanceStats


class CacheFigures(TypedDict):
    """Of a dashboard; ``hit_rate`` is 0..1."""

    size: int
    max_size: int
    hits: int
    misses: int
    hit_rate: float


class LimiterFigures(TypedDict):
    """Of a dashboard; ``rejection_rate`` is 0..1."""

    current_minute_requests: int
    concurrent_requests: int
    rejection_rate: float


class PerformanceFigures(TypedDict):
    """Of a dashboard; means are per generation."""

    total_generations: int
    success_rate_percent: float
    avg_time_seconds: float
    avg_tokens: float
    total_cost_usd: float
    throughput_per_hour: float


class Dashboard(TypedDict):
    """What :meth:`ProductionOptimizer.get_dashboard` returns."""

    timestamp: str
    status: str
    healthy: bool
    alerts_count: int
    alerts: list[AlertDict]
    system: SystemMetrics
    cache: CacheFigures
    rate_limiting: LimiterFigures
    performance: PerformanceFigures


def dashboard(
    report: HealthReport,
    cache: CacheStats,
    limiter: RateLimiterStats,
    performance: PerformanceStats,
) -> Dashboard:
    """The parts' own reports as one."""
    return {
        "timestamp": iso(report.checked_at),
        "status": status_word(report),
        "healthy": report.healthy,
        "alerts_count": len(report.alerts),
        "alerts": [alert.to_dict() for alert in report.alerts],
        "system": report.metrics,
        "cache": {
            "size": cache["size"],
            "max_size": cache["max_size"],
            "hits": cache["hits"],
            "misses": cache["misses"],
            "hit_rate": cache["hit_rate"],
        },
        "rate_limiting": {
            # None only after an update() that took the window away.
            "current_minute_requests": limiter["current_minute_requests"] or 0,
            "concurrent_requests": limiter["concurrent_requests"],
            "rejection_rate": limiter["rejection_rate"],
        },
        "performance": {
            "total_generations": performance["total_generations"],
            "success_rate_percent": performance["success_rate_percent"],
            "avg_time_seconds": performance["avg_generation_time_seconds"],
            "avg_tokens": performance["avg_tokens_per_generation"],
            "total_cost_usd": performance["total_cost_usd"],
            "throughput_per_hour": performance["throughput_per_hour"],
        },
    }


def status_word(report: HealthReport) -> str:
    """The two words of this dashboard; how bad it is stands in the alerts."""
    return "healthy" if report.healthy else "degraded"
