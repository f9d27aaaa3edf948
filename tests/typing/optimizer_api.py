"""Type-checked, never run: what a user's checker sees of the optimizer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from ferrogate import (
    AlertThreshold,
    Cache,
    CacheConfig,
    HealthMonitor,
    PerformanceMetrics,
    ProductionOptimizer,
    RateLimitConfig,
    RateLimiter,
)
from ferrogate.metrics import PerformanceStats

optimizer = ProductionOptimizer(
    CacheConfig(max_size=10), RateLimitConfig(burst_limit=2), AlertThreshold()
)
ProductionOptimizer(cache_config=RateLimitConfig())  # type: ignore[arg-type]

cache: Cache[Any, Any] = optimizer.cache
assert_type(optimizer.limiter, RateLimiter)
assert_type(optimizer.metrics, PerformanceMetrics)
assert_type(optimizer.health, HealthMonitor)

assert_type(optimizer.cache_key("research", "europe", [1], depth=2), str)
optimizer.cache_key()  # type: ignore[call-arg]
optimizer.cache_key(category="research")  # type: ignore[call-arg]
assert_type(optimizer.invalidate(), int)
assert_type(optimizer.invalidate("research"), int)
optimizer.record_generation(success=True, time_seconds=timedelta(seconds=1), tokens=5)
optimizer.record_generation(success=True)  # type: ignore[call-arg]

assert_type(optimizer.get_performance(), PerformanceStats)
assert_type(optimizer.get_dashboard()["cache"]["hits"], int)
assert_type(optimizer.get_health_detailed()["healthy"], bool)
assert_type(ProductionOptimizer.from_env({"FERROGATE_DISABLED": "1"}), ProductionOptimizer)
