"""PerformanceMetrics: exact totals, whatever the threads do."""

from __future__ import annotations

import math
import os
import sys
import threading
from datetime import timedelta
from decimal import Decimal
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrogate import PerformanceMetrics
from ferrogate.metrics import PerformanceStats
from ferrogate.testing import ManualClock


def test_the_figures_of_s1_by_name() -> None:
    clock = ManualClock()
    metrics = PerformanceMetrics(clock=clock)
    for i in range(10):
        metrics.record_generation(
            success=i != 0, time_seconds=2.0, tokens=100, retries=1, cost_usd=0.01
        )
    clock.advance(3600)
    stats = metrics.get_stats()
    expected = {
        "total_generations": 10,
        "successful": 9,
        "failed": 1,
        "success_rate_percent": 90.0,
        "avg_generation_time_seconds": 2.0,
        "avg_tokens_per_generation": 100.0,
        "avg_retries": 1.0,
        "total_cost_usd": 0.1,
        "uptime_hours": 1.0,
        "throughput_per_hour": 10.0,
        "total_tokens": 1000,
        "total_retries": 10,
        "total_time_seconds": 20.0,
    }
    assert {name: stats[name] for name in expected} == expected
    for p in ("p50", "p95", "p99"):
        assert stats[f"{p}_generation_time_seconds"] == pytest.approx(2.0, rel=0.016)


def test_keys_and_types_are_those_of_the_typed_dict() -> None:
    metrics = PerformanceMetrics()
    for _ in range(2):
        stats = metrics.get_stats()
        hints = get_type_hints(PerformanceStats)
        assert list(stats) == list(hints)
        assert {name: type(value) for name, value in stats.items()} == hints
        metrics.record_generation(True, 0.5)


def test_defaults_and_positions() -> None:
    metrics = PerformanceMetrics("writer")
    metrics.record_generation(True, 1.5)
    metrics.record_generation(False, 1, 7, 2, 1)
    stats = metrics.get_stats()
    assert (stats["total_tokens"], stats["total_retries"], stats["total_cost_usd"]) == (7, 2, 1.0)
    assert metrics.name == "writer"
    assert repr(metrics).startswith('<PerformanceMetrics "writer" generations=2 success=50.0%')


@pytest.mark.parametrize("bad", [-1, -0.001, math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("argument", ["time_seconds", "cost_usd"])
def test_impossible_numbers_are_refused_by_name(argument: str, bad: float) -> None:
    metrics = PerformanceMetrics()
    arguments = {"success": True, "time_seconds": 1.0, argument: bad}
    with pytest.raises(ValueError, match=argument):
        metrics.record_generation(**arguments)
    assert metrics.get_stats()["total_generations"] == 0


@pytest.mark.parametrize("bad", [-1, 2**64])
@pytest.mark.parametrize("argument", ["tokens", "retries"])
def test_impossible_counts_are_refused_by_name(argument: str, bad: int) -> None:
    with pytest.raises(ValueError, match=argument):
        PerformanceMetrics().record_generation(True, 1.0, **{argument: bad})


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("success", 1),
        ("success", None),
        ("time_seconds", "1"),
        ("time_seconds", True),
        ("cost_usd", object()),
        ("cost_usd", True),
        ("tokens", 1.5),
        ("retries", True),
    ],
)
def test_wrong_types_are_refused_by_name(argument: str, bad: object) -> None:
    arguments = {"success": True, "time_seconds": 1.0, argument: bad}
    with pytest.raises(TypeError, match=rf"^{argument}: expected"):
        PerformanceMetrics().record_generation(**arguments)


def test_a_name_is_text() -> None:
    with pytest.raises(TypeError, match=r"^name: expected a str or None, got int"):
        PerformanceMetrics(3)  # type: ignore[arg-type]


def test_a_time_may_be_a_timedelta() -> None:
    metrics = PerformanceMetrics()
    metrics.record_generation(True, timedelta(minutes=1, microseconds=500_000))
    metrics.record_generation(True, timedelta())
    assert metrics.get_stats()["total_time_seconds"] == 60.5
    with pytest.raises(ValueError, match="time_seconds"):
        metrics.record_generation(True, timedelta(seconds=-1))
    assert metrics.get_stats()["total_generations"] == 2


def test_eight_threads_give_exact_totals() -> None:
    metrics = PerformanceMetrics()
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for i in range(5_000):
            metrics.record_generation(
                success=i % 10 != 0, time_seconds=0.001, tokens=number, retries=1, cost_usd=0.0001
            )

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    stats = metrics.get_stats()
    assert (stats["successful"], stats["failed"]) == (36_000, 4_000)
    assert stats["total_tokens"] == 5_000 * sum(range(8))
    assert stats["total_retries"] == 40_000
    assert stats["total_cost_usd"] == 4.0
    assert stats["total_time_seconds"] == 40.0


@given(st.lists(st.integers(0, 10**12), max_size=300))
def test_money_is_right_to_the_last_place(micro_usd: list[int]) -> None:
    metrics = PerformanceMetrics()
    costs = [m / 10**6 for m in micro_usd]
    for cost in costs:
        metrics.record_generation(True, 0.0, cost_usd=cost)
    exact = float(sum(map(Decimal, costs), Decimal(0)))
    assert abs(metrics.get_stats()["total_cost_usd"] - exact) <= math.ulp(exact)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_percentiles_lie_between_the_extremes(times: list[float]) -> None:
    metrics = PerformanceMetrics()
    for time in times:
        metrics.record_generation(True, time)
    stats = metrics.get_stats()
    p50, p95, p99 = (stats[f"p{p}_generation_time_seconds"] for p in (50, 95, 99))
    assert 0 <= p50 <= p95 <= p99 <= max(times) + 1e-9


def test_reset_starts_again() -> None:
    clock = ManualClock()
    metrics = PerformanceMetrics(clock=clock)
    metrics.record_generation(True, 1.0)
    clock.advance(10)
    metrics.reset()
    stats = metrics.get_stats()
    assert (stats["total_generations"], stats["uptime_hours"]) == (0, 0.0)


def test_a_jump_of_a_year() -> None:
    clock = ManualClock()
    metrics = PerformanceMetrics(clock=clock)
    metrics.record_generation(True, 1.0)
    clock.advance(365 * 86_400)
    assert metrics.get_stats()["uptime_hours"] == 8760.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_child_counts_on_its_own() -> None:
    metrics = PerformanceMetrics()
    metrics.record_generation(True, 1.0)
    pid = os.fork()
    if pid == 0:
        try:
            metrics.record_generation(True, 1.0)
            os._exit(0 if metrics.get_stats()["total_generations"] == 2 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert metrics.get_stats()["total_generations"] == 1
