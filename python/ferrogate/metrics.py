"""Metrics of generations: exact totals, means and percentiles."""

from __future__ import annotations

from typing import TypedDict

from ferrogate._core import PerformanceMetrics

__all__ = ["PerformanceMetrics", "PerformanceStats"]


class PerformanceStats(TypedDict):
    """What :meth:`PerformanceMetrics.get_stats` returns: one consistent view.

    Counts are exact. Sums of time and money are compensated (Neumaier): right
    to the last place however many there were and in whatever order the threads
    came. Percentiles come from a histogram of fixed size and are within 1.6 %.
    Without any generation every figure but the uptime is 0.
    """

    total_generations: int
    successful: int
    failed: int
    success_rate_percent: float
    avg_generation_time_seconds: float
    avg_tokens_per_generation: float
    avg_retries: float
    total_cost_usd: float
    uptime_hours: float
    throughput_per_hour: float
    total_tokens: int
    total_retries: int
    total_time_seconds: float
    p50_generation_time_seconds: float
    p95_generation_time_seconds: float
    p99_generation_time_seconds: float
