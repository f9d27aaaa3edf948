"""Native cache, rate limiter, metrics and health for Python agents in production."""

import os as _os

from ferrogate import _core, _janitor, _loads, _streams, limiter
from ferrogate._core import __version__
from ferrogate.cache import (
    Cache,
    CacheConfig,
    CacheInfo,
    CacheStats,
    LRUCache,
    Savings,
    cache_key,
    cached,
)
from ferrogate.exceptions import (
    FerrogateError,
    InternalError,
    RateLimitExceeded,
    StreamLagError,
)
from ferrogate.health import AlertThreshold, HealthMonitor
from ferrogate.limiter import Decision, Limit, RateLimitConfig, RateLimiter, rate_limited
from ferrogate.metrics import PerformanceMetrics
from ferrogate.optimizer import ProductionOptimizer

__all__ = [
    "AlertThreshold",
    "Cache",
    "CacheConfig",
    "CacheInfo",
    "CacheStats",
    "Decision",
    "FerrogateError",
    "HealthMonitor",
    "InternalError",
    "LRUCache",
    "Limit",
    "PerformanceMetrics",
    "ProductionOptimizer",
    "RateLimitConfig",
    "RateLimitExceeded",
    "RateLimiter",
    "Savings",
    "StreamLagError",
    "__version__",
    "cache_key",
    "cached",
    "rate_limited",
]

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(before=_core._before_fork)
    # In this order: the janitor's thread may sweep as soon as it has started.
    _os.register_at_fork(after_in_child=_core._after_fork_in_child)
    _os.register_at_fork(after_in_child=_loads.after_fork_in_child)
    _os.register_at_fork(after_in_child=_streams.after_fork_in_child)
    _os.register_at_fork(after_in_child=_janitor._after_fork_in_child)
    _os.register_at_fork(after_in_child=limiter._after_fork_in_child)
