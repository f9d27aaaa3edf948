"""The production optimizer: the facade, its dictionaries and its environment."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import mismatch

from ferrogate import AlertThreshold, CacheConfig, ProductionOptimizer, RateLimitConfig, cached
from ferrogate.health import HealthDetailed
from ferrogate.optimizer import Dashboard, DashboardAnswer, OptimizerStats, PerformanceAnswer
from ferrogate.testing import ManualClock

CALM = AlertThreshold(memory_usage_percent=100, disk_usage_percent=100)

VARIABLES = {
    "CACHE_MAX_SIZE": "7",
    "CACHE_TTL_SECONDS": "8",
    "RATE_LIMIT_PER_MINUTE": "9",
    "RATE_LIMIT_PER_HOUR": "10",
    "RATE_LIMIT_BURST": "11",
    "ALERT_ERROR_RATE_PERCENT": "12",
    "ALERT_RESPONSE_TIME_SECONDS": "13.5",
    "ALERT_MEMORY_PERCENT": "14",
}


def test_pattern_retrieval_as_s1_writes_it() -> None:
    optimizer = ProductionOptimizer(
        cache_config=CacheConfig(max_size=1000, ttl_seconds=3600, enabled=True),
        rate_limit_config=RateLimitConfig(
            requests_per_minute=60, requests_per_hour=1000, burst_limit=10, enabled=True
        ),
    )
    cache_key = optimizer.cache_key("operator", "http", min_confidence=0.7)
    assert optimizer.cache.get(cache_key) is None
    optimizer.cache.set(cache_key, ["pattern"])
    assert optimizer.cache.get(cache_key) == ["pattern"]
    optimizer.record_generation(
        success=True, time_seconds=8.3, tokens=2450, retries=1, cost_usd=0.0125
    )
    dashboard = optimizer.get_dashboard()
    assert dashboard["cache"]["hits"] == 1
    assert dashboard["cache"]["misses"] == 1
    assert dashboard["cache"]["hit_rate"] == 0.5
    assert dashboard["performance"]["total_generations"] == 1
    assert dashboard["performance"]["avg_tokens"] == 2450.0


# -- the dictionaries -------------------------------------------------------------


def worked(**arguments: Any) -> ProductionOptimizer:
    """An optimizer with something in every part, errors included."""
    optimizer = ProductionOptimizer(alert_threshold=CALM, clock=ManualClock(), **arguments)
    optimizer.cache.set(optimizer.cache_key("sensor", "http"), 1)
    optimizer.cache.get("nothing")
    optimizer.limiter.try_acquire()
    optimizer.record_generation(False, 40.0, 100, 2, 0.5)
    optimizer.health.register("patterns", lambda: False)
    optimizer.health.check_sync()
    return optimizer


@pytest.mark.parametrize("make", [ProductionOptimizer, worked])
def test_the_dictionaries_are_final(make: Any) -> None:
    optimizer = make()
    answers = [
        (optimizer.get_dashboard(), Dashboard),
        (optimizer.dashboard_answer(), DashboardAnswer),
        (optimizer.performance_answer(), PerformanceAnswer),
        (optimizer.get_health_detailed(), HealthDetailed),
        (optimizer.get_stats(), OptimizerStats),
    ]
    for answer, shape in answers:
        assert mismatch(answer, shape) is None
        assert json.loads(json.dumps(answer)) == answer


def test_the_keys_of_s1_word_for_word() -> None:
    answer = worked().dashboard_answer()
    assert list(answer) == ["status", "dashboard"]
    dashboard = answer["dashboard"]
    assert list(dashboard) == [
        *("timestamp", "status", "healthy", "alerts_count", "alerts"),
        *("system", "cache", "rate_limiting", "performance"),
    ]
    assert list(dashboard["system"]) == ["memory_percent", "disk_percent", "cpu_percent"]
    assert list(dashboard["cache"]) == ["size", "max_size", "hits", "misses", "hit_rate"]
    assert list(dashboard["rate_limiting"]) == [
        *("current_minute_requests", "concurrent_requests", "rejection_rate"),
    ]
    assert list(dashboard["performance"]) == [
        *("total_generations", "success_rate_percent", "avg_time_seconds"),
        *("avg_tokens", "total_cost_usd", "throughput_per_hour"),
    ]
    detailed = worked().get_health_detailed()
    assert list(detailed) == [
        *("status", "healthy", "components", "alerts", "metrics", "last_check"),
    ]
    assert list(detailed["components"]) == [
        *("system_resources", "cache", "rate_limiter", "performance", "patterns"),
    ]
    performance = worked().performance_answer()
    assert list(performance) == ["status", "performance"]
    assert list(performance["performance"])[:10] == [
        *("total_generations", "successful", "failed", "success_rate_percent"),
        *("avg_generation_time_seconds", "avg_tokens_per_generation", "avg_retries"),
        *("total_cost_usd", "uptime_hours", "throughput_per_hour"),
    ]


def test_the_values_of_a_dashboard() -> None:
    optimizer = worked()
    dashboard = optimizer.get_dashboard()
    assert (dashboard["status"], dashboard["healthy"]) == ("degraded", False)
    names = [alert["name"] for alert in dashboard["alerts"]]
    assert set(names) == {"error_rate", "response_time", "check:patterns"}
    assert dashboard["alerts_count"] == 3
    assert dashboard["timestamp"].endswith("Z")
    assert dashboard["rate_limiting"] == {
        "current_minute_requests": 1,
        "concurrent_requests": 0,
        "rejection_rate": 0.0,
    }
    assert dashboard["cache"] == {
        "size": 1,
        "max_size": 1000,
        "hits": 0,
        "misses": 1,
        "hit_rate": 0.0,
    }
    detailed = optimizer.get_health_detailed()
    assert (detailed["status"], detailed["healthy"]) == ("degraded", False)
    assert detailed["components"] == {
        "system_resources": True,
        "cache": True,
        "rate_limiter": True,
        "performance": False,
        "patterns": False,
    }
    calm = ProductionOptimizer(alert_threshold=CALM)
    assert calm.get_dashboard()["status"] == "healthy"
    assert calm.get_health_detailed()["status"] == "healthy"


def test_rejections_and_slots_show() -> None:
    optimizer = ProductionOptimizer(
        rate_limit_config=RateLimitConfig(requests_per_minute=3, requests_per_hour=100),
        clock=ManualClock(),
    )
    assert [bool(optimizer.limiter.try_acquire()) for _ in range(4)] == [True] * 3 + [False]
    assert optimizer.get_dashboard()["rate_limiting"] == {
        "current_minute_requests": 3,
        "concurrent_requests": 0,
        "rejection_rate": 0.25,
    }
    optimizer = ProductionOptimizer()
    with optimizer.limiter:
        assert optimizer.get_dashboard()["rate_limiting"]["concurrent_requests"] == 1
    assert optimizer.get_dashboard()["rate_limiting"]["concurrent_requests"] == 0


def test_a_low_hit_rate_alerts_after_a_hundred_lookups() -> None:
    optimizer = ProductionOptimizer(alert_threshold=CALM, clock=ManualClock())
    for i in range(99):
        optimizer.cache.get(f"a:{i}")
    assert optimizer.get_dashboard()["alerts"] == []
    optimizer.cache.get("a:99")
    [alert] = optimizer.get_dashboard()["alerts"]
    assert (alert["name"], alert["severity"]) == ("cache_hit_rate", "warning")
    assert not optimizer.get_health_detailed()["components"]["cache"]


# -- keys and categories ----------------------------------------------------------


def test_keys_are_canonical() -> None:
    optimizer = ProductionOptimizer()
    key = optimizer.cache_key("sensor", {"a": 1, "b": 2}, min_confidence=0.7, category="named")
    assert key.startswith("sensor:")
    assert key == optimizer.cache_key(
        "sensor", {"b": 2, "a": 1}, category="named", min_confidence=0.7
    )
    assert key != optimizer.cache_key("sensor", {"a": 1, "b": 3}, min_confidence=0.7)
    assert optimizer.cache_key("a", 1).split(":")[1] == optimizer.cache_key("b", 1).split(":")[1]
    versioned = ProductionOptimizer(version="2.1")
    assert versioned.cache_key("sensor", 1) != optimizer.cache_key("sensor", 1)
    assert versioned.get_stats()["version"] == "2.1"
    with pytest.raises(TypeError, match="category"):
        optimizer.cache_key(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="category"):
        optimizer.cache_key("")


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        "from ferrogate import ProductionOptimizer\n"
        "print(ProductionOptimizer(version=3).cache_key('c', 'x', {'b': {1, 2, 3}, 'a': 0.7}))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert seen == {ProductionOptimizer(version=3).cache_key("c", "x", {"a": 0.7, "b": {3, 2, 1}})}


def test_one_category_or_all() -> None:
    optimizer = ProductionOptimizer()
    for i in range(10):
        optimizer.cache.set(optimizer.cache_key("sensor", i), i)
        optimizer.cache.set(optimizer.cache_key("hook", i), i)
    optimizer.cache["sensor:by hand"] = 1
    optimizer.cache.setdefault("sensor:default", 1)
    optimizer.cache.update({"sensor:update": 1})
    optimizer.cache.set("sensor:tagged", 1, tags=["mine"])
    optimizer.cache.set("no category", 1)
    optimizer.cache.set("sensors:other", 1)
    optimizer.cache.set(("sensor:", 1), 1)
    assert optimizer.invalidate("sensor") == 14
    assert optimizer.invalidate("sensor") == 0
    assert optimizer.cache.get(optimizer.cache_key("sensor", 1)) is None
    assert optimizer.cache.get(optimizer.cache_key("hook", 1)) == 1
    assert optimizer.invalidate() == 13
    assert len(optimizer.cache) == 0
    with pytest.raises(TypeError, match="category"):
        optimizer.invalidate(3)  # type: ignore[arg-type]


def test_a_loaded_entry_belongs_to_its_category() -> None:
    optimizer = ProductionOptimizer()

    async def load() -> int:
        return 2

    assert optimizer.cache.get_or_set_sync("sensor:sync", lambda: 1) == 1
    assert asyncio.run(optimizer.cache.get_or_set("sensor:async", load)) == 2
    assert optimizer.cache.get("sensor:async") == 2
    assert optimizer.invalidate("sensor") == 2


def test_a_decorated_call_belongs_to_the_category_of_its_key() -> None:
    optimizer = ProductionOptimizer()
    calls: list[int] = []

    @cached(cache=optimizer.cache, key=lambda n: optimizer.cache_key("sensor", n), tags=["mine"])
    def plain(n: int) -> int:
        calls.append(n)
        return n

    @cached(
        cache=optimizer.cache,
        key=lambda n: optimizer.cache_key("sensor", n),
        tags=lambda n: [f"number:{n}"],
    )
    async def later(n: int) -> int:
        calls.append(n)
        return n

    assert (plain(1), asyncio.run(later(2))) == (1, 2)
    assert optimizer.invalidate("sensor") == 2
    assert len(optimizer.cache) == 0
    assert (plain(1), asyncio.run(later(2))) == (1, 2)
    assert calls == [1, 2, 1, 2]
    assert optimizer.cache.invalidate_tag("mine") == 1
    assert optimizer.cache.invalidate_tag("number:2") == 1


@pytest.mark.parametrize("how", ["set", "setitem", "setdefault", "load"])
def test_a_category_may_have_any_number_of_colons(how: str) -> None:
    optimizer = ProductionOptimizer()
    category = ":".join("abcdefghijkl")
    key = optimizer.cache_key(category, 1)
    match how:
        case "set":
            optimizer.cache.set(key, 1)
        case "setitem":
            optimizer.cache[key] = 1
        case "setdefault":
            assert optimizer.cache.setdefault(key, 1, tags=["mine"]) == 1
        case "load":
            assert optimizer.cache.get_or_set_sync(key, lambda: 1) == 1
    assert optimizer.invalidate(category) == 1
    assert key not in optimizer.cache


def test_users_tags_still_work() -> None:
    optimizer = ProductionOptimizer()
    optimizer.cache.set("sensor:1", 1, tags=["release-7"])
    assert optimizer.cache.invalidate_tag("release-7") == 1
    assert optimizer.invalidate("sensor") == 0


@given(
    st.lists(st.text(alphabet="ab:", max_size=6), max_size=30),
    st.text(alphabet="ab", min_size=1, max_size=3),
)
def test_a_category_is_what_its_keys_begin_with(keys: list[str], category: str) -> None:
    optimizer = ProductionOptimizer(alert_threshold=CALM)
    for key in keys:
        optimizer.cache.set(key, key)
    expected = {key for key in keys if key.startswith(f"{category}:")}
    assert optimizer.invalidate(category) == len(expected)
    assert set(optimizer.cache) == set(keys) - expected


def test_entries_expire_and_are_cleaned_up() -> None:
    clock = ManualClock()
    optimizer = ProductionOptimizer(CacheConfig(max_size=3, ttl_seconds=60), clock=clock)
    for i in range(5):
        optimizer.cache.set(f"a:{i}", i)
    assert optimizer.get_dashboard()["cache"]["size"] == 3
    clock.advance(61)
    assert optimizer.cache.get("a:4") is None
    assert optimizer.get_dashboard()["cache"]["size"] == 0


# -- configuration ----------------------------------------------------------------


def test_from_env_reads_every_variable() -> None:
    optimizer = ProductionOptimizer.from_env(VARIABLES, name="agent", version=2)
    assert optimizer.cache_config == CacheConfig(max_size=7, ttl_seconds=8)
    assert optimizer.rate_limit_config == RateLimitConfig(9, 10, 11)
    assert optimizer.alert_threshold == AlertThreshold(12, 13.5, memory_usage_percent=14)
    assert optimizer.cache.max_size == 7
    assert optimizer.health.thresholds is optimizer.alert_threshold
    assert (optimizer.name, optimizer.version) == ("agent", "2")


def test_from_env_defaults_and_the_real_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    optimizer = ProductionOptimizer.from_env()
    assert optimizer.cache_config == CacheConfig()
    assert optimizer.rate_limit_config == RateLimitConfig()
    assert optimizer.alert_threshold == AlertThreshold()
    monkeypatch.setenv("CACHE_MAX_SIZE", " 5 ")
    monkeypatch.setenv("RATE_LIMIT_BURST", "")
    assert ProductionOptimizer.from_env().cache_config.max_size == 5


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("bad", ["many", "-1", "nan", "1e999", "0x10"])
def test_from_env_names_the_variable(variable: str, bad: str) -> None:
    with pytest.raises(ValueError, match=f"^{variable}: "):
        ProductionOptimizer.from_env({variable: bad})


@pytest.mark.parametrize("variable", [name for name in VARIABLES if "SECONDS" not in name])
@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_from_env_names_the_variable_of_what_is_too_large(variable: str, digits: int) -> None:
    with pytest.raises(ValueError, match=rf"^{variable}: (\w+: )?expected .{{1,150}}$"):
        ProductionOptimizer.from_env({variable: "9" * digits})


def test_from_env_knows_how_many_slots_there_can_be() -> None:
    with pytest.raises(ValueError, match=r"^RATE_LIMIT_BURST: burst_limit: expected at most"):
        ProductionOptimizer.from_env({"RATE_LIMIT_BURST": "5000000000"})
    many = ProductionOptimizer.from_env({"RATE_LIMIT_PER_HOUR": "5000000000"})
    assert many.limiter.try_acquire()
    # A TTL of ages is no TTL; of a float, there is no such number.
    assert ProductionOptimizer.from_env({"CACHE_TTL_SECONDS": "9" * 30}).cache.ttl is not None
    with pytest.raises(ValueError, match=r"^CACHE_TTL_SECONDS: expected a finite number"):
        ProductionOptimizer.from_env({"CACHE_TTL_SECONDS": "9" * 400})


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("enabled", "no"), ("name", 3), ("disk_path", 5), ("disk_path", b"/")],
)
def test_wrong_arguments_are_named(argument: str, bad: object) -> None:
    with pytest.raises(TypeError, match=rf"^{argument}: expected"):
        ProductionOptimizer(**{argument: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["cache_config", "rate_limit_config", "alert_threshold"])
def test_wrong_configurations_are_named(argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        ProductionOptimizer(**{argument: {"max_size": 3}})


def test_parts_can_be_switched_off() -> None:
    optimizer = ProductionOptimizer(
        CacheConfig(enabled=False), RateLimitConfig(requests_per_minute=1, enabled=False), CALM
    )
    optimizer.cache.set("a:1", 1)
    assert optimizer.cache.get("a:1") is None
    assert all(optimizer.limiter.try_acquire() for _ in range(5))
    for _ in range(200):
        optimizer.cache.get("a:1")
    names = {alert["name"] for alert in optimizer.get_dashboard()["alerts"]}
    assert "cache_hit_rate" not in names  # it cannot hit: that is not an alarm
    assert optimizer.get_health_detailed()["components"] == {
        "system_resources": True,
        "cache": True,
        "rate_limiter": True,
        "performance": True,
    }
    assert mismatch(optimizer.get_dashboard(), Dashboard) is None


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_whole_can_be_switched_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("FERROGATE_DISABLED", "1")
    optimizer = worked(enabled=how == "environment")
    assert optimizer.cache.get(optimizer.cache_key("sensor", "http")) is None
    dashboard = optimizer.get_dashboard()
    assert (dashboard["status"], dashboard["alerts"]) == ("healthy", [])
    assert dashboard["performance"]["total_generations"] == 1  # a no-op still counts
    assert mismatch(dashboard, Dashboard) is None


# -- life -------------------------------------------------------------------------


def test_it_starts_and_stops() -> None:
    optimizer = ProductionOptimizer(name="agent")
    with optimizer:
        assert optimizer.health.running
    assert not optimizer.health.running

    async def main() -> None:
        async with optimizer:
            assert optimizer.health.running
        assert not optimizer.health.running

    asyncio.run(main())
    assert repr(optimizer).startswith("<ProductionOptimizer 'agent' generations=0 cache=")


def test_eight_threads_and_a_dashboard() -> None:
    optimizer = ProductionOptimizer(
        rate_limit_config=RateLimitConfig(requests_per_minute=10**6, requests_per_hour=10**7)
    )
    looks: list[Dashboard] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            looks.append(optimizer.get_dashboard())

    def work(number: int) -> None:
        for i in range(500):
            key = optimizer.cache_key(f"c{number}", i % 50)
            if optimizer.cache.get(key) is None:
                optimizer.cache.set(key, i)
            optimizer.limiter.try_acquire()
            optimizer.record_generation(True, 0.001, 1, 0, 0.001)

    watcher = threading.Thread(target=look)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in [watcher, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    dashboard = optimizer.get_dashboard()
    assert dashboard["performance"]["total_generations"] == 4000
    assert dashboard["performance"]["total_cost_usd"] == 4.0
    assert dashboard["cache"]["hits"] + dashboard["cache"]["misses"] == 4000
    assert dashboard["cache"]["size"] == 400
    totals = [seen["performance"]["total_generations"] for seen in looks]
    assert totals == sorted(totals)
